"""The GPU suite's first section on single operators: each of them against its definition."""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

import gpu_inputs
import gpu_roles
from gpu_inputs import BLOCK, FORMATS, PagedStep, To, choices, normal, packs_weights, reads_packed_weights, shaping_for
from gpu_report import Run
from gpu_timing import poisoned, relative_error
from ridgepoint.catalog.spec import RouterSpec, SwiGlu
from ridgepoint.kernels import dispatch, mla_attention, norm, paged_attention, sample
from ridgepoint.kernels.add_shared import add_shared
from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.glu import glu
from ridgepoint.kernels.linear import linear
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.moe_experts.unsummed import Delta, UnsummedRows
from ridgepoint.kernels.rope import rope, rope_tables
from ridgepoint.kernels.route import route
from ridgepoint.kernels.sample import DeviceShaping
from ridgepoint.kernels.triton_call import in_turn

BF16_TOLERANCE = 1e-2  # operands and results of 8 bits of mantissa
Case = Callable[[To], torch.Tensor]
CheckedCase = tuple[str, str, Case, float]  # operator, name, what it computes, tolerance

ROUTER = RouterSpec(
    scores="softmax", normalise=True, scale=1.0, bias=False, correction_bias=False, num_groups=1, topk_groups=1,
    group_score="max", jitter_eps=None,
)  # fmt: skip


def has_triton(op: str) -> bool:
    return importlib.util.find_spec(f"ridgepoint.kernels.{op}.triton") is not None


def checks(run: Run) -> None:
    """Every Triton kernel, its outputs full of NaN beforehand: small shapes against the definition, a model's shapes against
    torch's path (which tests hold against the definition) in float32. Inputs are drawn afresh in every run. What disagrees is
    tried again with every launch waiting for the one before: that tells a wrong kernel from one that starts too early. Kernels whose
    warps have roles come last: what has been found by then is kept if they hang."""
    seed = 0 if run.smoke else secrets.randbits(24)
    gpu_inputs.draw_afresh(seed)
    run.note(f"inputs drawn from seed {seed}")
    gpu_roles.on_trial(run.out, run.part)

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.to(run.device)
        return moved.float() if moved.dtype == torch.bfloat16 else moved

    apart: dict[bool, list[tuple[str, To, CheckedCase]]] = {False: [], True: []}  # whether by roles
    for small, path, to_slow in ((True, "reference", _as_it_is), (False, "cpu", wide)):
        if small or not run.smoke:
            for case in cases(small, partial(_belongs, run.part)):
                apart[case[1].endswith(gpu_roles.BY_ROLES)].append((path, to_slow, case))
    failed = _check(run, apart[False], "")
    wrong = _check(run, apart[True], "_by_roles")
    if wrong:
        gpu_roles.found_wrong(run.out, run.part, "; ".join(wrong))
    else:
        gpu_roles.cleared(run.out, run.part)
    if failed or wrong:
        raise AssertionError(
            f"{len(failed + wrong)} kernels disagree with their definition: " + "; ".join(failed + wrong)
        )


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _check(run: Run, checked: Sequence[tuple[str, To, CheckedCase]], kind: str) -> list[str]:
    """What is wrong, in lines; and a figure for each operator, its largest error."""
    worst: dict[str, float] = {}
    failed: list[str] = []
    for path, to_slow, (op, name, case, tolerance) in checked:
        if run.smoke and name.endswith(" 1"):
            continue  # its longer sibling is enough
        if not has_triton(op):
            if op not in worst:
                run.note(f"{op} has no Triton kernel")
            worst.setdefault(op, float("nan"))
            continue
        error = None
        with run.apart(f"{op} {name} beside {path}"):
            error = _disagreement(run, case, path, to_slow)
        if error is None:
            failed.append(f"{op} {name} beside {path} does not run")
            continue
        worst[op] = max(worst.get(op, 0.0), error)
        if not error <= tolerance:
            again = float("inf")
            with run.apart(f"{op} {name} in turn"), in_turn():
                again = _disagreement(run, case, path, to_slow)
            failed.append(f"{op} {name} beside {path}: {error:.3g} > {tolerance:.3g} ({again:.3g} in turn)")
            run.note(f"WRONG {failed[-1]}")
    for op in worst:
        if has_triton(op):
            run.figure(f"{op}{kind}_error", worst[op], "")
    return failed


def _belongs(part: str | None, op: str) -> bool:
    """Whether a part of the checks has this operator; the small ones share one."""
    apart = ("moe_experts", "linear", "paged_attention", "mla_attention", "sample")
    return part is None or op == part or (part == "rows" and op not in apart)


def _disagreement(run: Run, case: Case, path: str, to_slow: To) -> float:
    with torch.inference_mode():
        with forced(path):
            reference = case(to_slow)
        with poisoned(), forced("triton"):
            out = case(lambda tensor: tensor.to(run.device))
    return relative_error(out, reference)


def cases(small: bool, wanted: Callable[[str], bool]) -> Iterator[CheckedCase]:
    """(op, name, case, tolerance) of the operators that are wanted. A case computes with the tensors that `to` makes of its own."""
    d, f, e, k = (64, 32, 8, 2) if small else (2048, 768, 32, 8)
    tokens = (1, 5) if small else (1, 4, 37, 300)
    if wanted("norm"):
        yield from _row_cases(tokens, d, f, e, k)
    for t in tokens:
        if wanted("linear"):
            yield from _linear_cases(t, d, f)
        if wanted("moe_experts"):
            yield from _expert_cases(t, d, f, e, k)
    yield from (case for case in _attention_cases(small) if wanted(case[0]))
    if wanted("sample"):
        yield from _sample_cases(small)


def _left_unsummed(y_MD: torch.Tensor, weights_TK: torch.Tensor, pair_row: torch.Tensor) -> Delta:
    """Experts' results as the path under test leaves them to the next norm; the definition leaves sums."""
    if reads_packed_weights(y_MD.device):
        return UnsummedRows(y_MD=y_MD, weights_TK=weights_TK, pair_row=pair_row.int())
    rows_TKD = y_MD[pair_row].view(*weights_TK.shape, -1)
    return (rows_TKD * weights_TK[..., None]).sum(1)


def _row_cases(tokens: Sequence[int], d: int, f: int, e: int, k: int) -> Iterator[CheckedCase]:
    for t in tokens:
        x, delta, w = normal(t, d, seed=1), normal(t, d, seed=2), normal(d, seed=3)
        yield "norm", f"rms {t}", lambda to, x=x, w=w: norm.rms_norm(to(x), to(w), 1e-6), BF16_TOLERANCE
        yield "norm", f"add {t}", lambda to, x=x, y=delta, w=w: torch.cat(
            norm.add_rms_norm(to(x), to(y), 1.0, to(w), 1e-6)
        ), BF16_TOLERANCE  # fmt: skip
        rows, order = normal(t * k, d, seed=20), torch.randperm(t * k, generator=torch.Generator().manual_seed(t))
        weights = torch.rand(t, k, generator=torch.Generator().manual_seed(t))
        yield "norm", f"add of experts {t}", lambda to, x=x, y=rows, s=weights, p=order, w=w: torch.cat(
            norm.add_rms_norm(to(x), _left_unsummed(to(y), to(s), to(p)), 1.0, to(w), 1e-6)
        ), BF16_TOLERANCE  # fmt: skip
        h = normal(t, 2 * f, seed=4)
        yield "glu", f"{t}", lambda to, h=h: glu(to(h), SwiGlu()), BF16_TOLERANCE
        gate = normal(t, 1, seed=5)
        yield "add_shared", f"{t}", lambda to, x=x, y=delta, g=gate: add_shared(to(x), to(y), to(g)), BF16_TOLERANCE
        yield "add_shared", f"of experts {t}", lambda to, x=x, y=rows, s=weights, p=order: add_shared(
            _left_unsummed(to(y), to(s), to(p)), to(x), None
        ), BF16_TOLERANCE  # fmt: skip
        ids, weight = torch.randint(0, 50, (t,), generator=torch.Generator().manual_seed(t)), normal(50, d, seed=6)
        yield "embed", f"{t}", lambda to, i=ids, w=weight: embed(to(i), to(w), 2.0, torch.bfloat16), BF16_TOLERANCE
        q = normal(t, 4, 64, seed=7)
        position = torch.arange(t) * 31
        inverse = 1e4 ** (-torch.arange(0, 64, 2) / 64)
        yield "rope", f"{t}", lambda to, q=q, p=position, i=inverse: rope(
            to(q), *rope_tables(to(p), to(i), 1.0), False
        ), BF16_TOLERANCE  # fmt: skip
        logits = torch.randn(t, e, generator=torch.Generator().manual_seed(t))
        yield "route", f"ids {t}", lambda to, x=logits: route(to(x), None, ROUTER, k)[1].double(), 0.0
        yield "route", f"weights {t}", lambda to, x=logits: route(to(x), None, ROUTER, k)[0], 1e-5


def _linear_cases(t: int, d: int, f: int) -> Iterator[CheckedCase]:
    x, w = normal(t, d, seed=8), normal(3 * f, d, scale=d**-0.5, seed=9)
    yield "linear", f"bf16 {t}", lambda to: linear(to(x), to(w)), BF16_TOLERANCE
    if not packs_weights():
        return
    from ridgepoint.kernels.device_weight import pack_for_device
    from ridgepoint.kernels.gemm.quantise import rounded_rows

    for fmt in FORMATS if t > 4 else FORMATS[-1:]:
        # The reference multiplies with the very weights that the packed codes stand for.
        def packed_linear(to: To, fmt: str = fmt) -> torch.Tensor:
            weight = pack_for_device(to(w), fmt)
            if _is_triton(x, to):
                return linear(to(x), weight)
            return linear(rounded_rows(to(x)) if fmt.endswith("-a8") else to(x).float(), weight.dense()[0])

        yield "linear", f"{fmt} {t}", packed_linear, BF16_TOLERANCE


def _expert_cases(t: int, d: int, f: int, e: int, k: int) -> Iterator[CheckedCase]:
    x = normal(t, d, seed=8)
    gate_up, down = normal(e, 2 * f, d, scale=d**-0.5, seed=10), normal(e, d, f, scale=f**-0.5, seed=11)
    ids, weights = choices(t, e, k, seed=t)

    def experts(to: To) -> torch.Tensor:
        return moe_experts(to(x), to(weights), to(ids), to(gate_up), to(down), SwiGlu())

    yield "moe_experts", f"bf16 {t}", experts, BF16_TOLERANCE
    if f % 64 == 0:
        yield "moe_experts", f"bf16 {t} by roles", partial(_with_tile, "experts", "BY_ROLES", experts), BF16_TOLERANCE
    if not packs_weights():
        return
    from ridgepoint.kernels.device_weight import pack_for_device

    # Not of fp8 rows: between its products the definition rounds nothing.
    for fmt in [fmt for fmt in (FORMATS if t > 4 else FORMATS[-1:]) if not fmt.endswith("-a8")]:

        def packed_experts(to: To, fmt: str = fmt) -> torch.Tensor:
            packed = pack_for_device(to(gate_up), fmt, glu=True), pack_for_device(to(down), fmt)
            if _is_triton(x, to):
                return moe_experts(to(x), to(weights), to(ids), *packed, SwiGlu())
            return moe_experts(to(x).float(), to(weights), to(ids), packed[0].dense(), packed[1].dense(), SwiGlu())

        yield "moe_experts", f"{fmt} {t}", packed_experts, BF16_TOLERANCE


def _is_triton(x: torch.Tensor, to: To) -> bool:
    return dispatch.implementation("linear", to(x)).__name__.endswith(".triton")


def _attention_cases(smoke: bool) -> Iterator[CheckedCase]:
    contexts = [5, 40, 17] if smoke else [5, 300, 1100]
    heads, kv_heads, width = (4, 2, 16) if smoke else (32, 4, 128)
    for name, queries in (("decode", [1, 1, 1]), ("mixed", [1, 33 if smoke else 260, 1]), ("prompt", contexts)):
        step = PagedStep(contexts, queries)
        q, k, v = (normal(sum(n), h, width, seed=s) for n, h, s in
                   ((queries, heads, 12), (contexts, kv_heads, 13), (contexts, kv_heads, 14)))  # fmt: skip
        for window, with_sinks in ((None, False), (20 if smoke else 128, True)):
            sinks = normal(heads, seed=15) if with_sinks else None

            def attend(to: To, step=step, q=q, k=k, v=v, window=window, sinks=sinks) -> torch.Tensor:  # type: ignore[no-untyped-def]
                like = to(k)
                kv = paged_attention.allocate(step.num_blocks, BLOCK, kv_heads, width, like.dtype, like.device)
                paged_attention.write(kv, to(k), to(v), to(step.all_slots))
                return paged_attention.attend(
                    to(q), kv, step.plan(to), width**-0.5, window, sinks if sinks is None else to(sinks)
                )

            kind = f"{name} {'window sinks' if with_sinks else 'full'}"
            yield "paged_attention", kind, attend, BF16_TOLERANCE
            if not smoke and name != "decode":
                yield (
                    "paged_attention",
                    f"{kind} by roles",
                    partial(_with_tile, "paged_prompt", "ROLES", attend),
                    BF16_TOLERANCE,
                )
        heads = 4 if smoke else 16
        yield "mla_attention", name, _mla_case(step, queries, contexts, heads, smoke), 2 * BF16_TOLERANCE
    if not smoke:
        decode = _mla_case(PagedStep(contexts, [1, 1, 1]), [1, 1, 1], contexts, 64, smoke)
        for kernel, tile in (("asked early", "EARLY"), ("by roles", "ROLES")):
            yield (
                "mla_attention",
                f"decode, {kernel}",
                partial(_with_tile, "mla_decode", tile, decode),
                2 * BF16_TOLERANCE,
            )


def _with_tile(op: str, name: str, case: Case, to: To) -> torch.Tensor:
    """With the kernel in Gluon that has this tile."""
    if importlib.util.find_spec("triton") is None:
        return case(to)
    from ridgepoint.kernels.tuning import pinned

    (folder,) = (part for part, tuned in gpu_roles.TUNED.items() if tuned == op)
    with pinned(op, getattr(importlib.import_module(f"ridgepoint.kernels.{folder}.tunable"), name)):
        return case(to)


def _mla_case(step: PagedStep, queries: list[int], contexts: list[int], heads: int, smoke: bool) -> Case:
    nope, rotary, latent, value = (16, 16, 32, 16) if smoke else (128, 64, 512, 128)
    q_nope, q_rope = normal(sum(queries), heads, nope, seed=16), normal(sum(queries), heads, rotary, seed=17)
    c, r = normal(sum(contexts), latent, seed=18), normal(sum(contexts), rotary, seed=19)
    w_uk, w_uv = normal(heads, nope, latent, scale=latent**-0.5, seed=20), normal(heads, value, latent, scale=latent**-0.5, seed=21)  # fmt: skip

    def attend(to: To) -> torch.Tensor:
        like = to(c)
        kv = mla_attention.allocate(step.num_blocks, BLOCK, latent, rotary, like.dtype, like.device)
        mla_attention.write(kv, to(c), to(r), to(step.all_slots))
        scale = (nope + rotary) ** -0.5
        return mla_attention.attend(to(q_nope), to(q_rope), kv, to(w_uk), to(w_uv), step.plan(to), scale, None)

    return attend


def _sample_cases(smoke: bool) -> Iterator[CheckedCase]:
    rows, vocab = (6, 300) if smoke else (15, 151_936)
    generator = torch.Generator().manual_seed(22)
    logits = torch.randn(rows, vocab, generator=generator) * 3
    shaping = shaping_for(rows, generator)
    yield "sample", "greedy", lambda to: sample.choose_on_device(to(logits), None).double(), 0.0
    yield "sample", "drawn", lambda to: sample.choose_on_device(
        to(logits), DeviceShaping(**{name: to(column) for name, column in vars(shaping).items()})
    ).double(), 0.0  # fmt: skip
