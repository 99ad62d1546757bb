"""The GPU suite's sections on single operators: each against its definition, then its time against this run's rates."""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gpu_report import Run
from gpu_timing import Timed, median_of, num_sets, poisoned, relative_error
from ridgepoint.catalog.spec import RouterSpec, SwiGlu
from ridgepoint.kernels import dispatch, mla_attention, norm, paged_attention, sample
from ridgepoint.kernels.add_shared import add_shared
from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.glu import glu
from ridgepoint.kernels.linear import linear
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.rope import rope, rope_tables
from ridgepoint.kernels.route import route
from ridgepoint.kernels.sample import DeviceRules, DeviceShaping
from ridgepoint.kernels.triton_call import in_turn

BF16_TOLERANCE = 1e-2  # operands and results of 8 bits of mantissa
FORMATS = ("fp8", "fp8-a8", "int8", "int4-32", "mxfp4")
BLOCK = 16
To = Callable[[torch.Tensor], torch.Tensor]
Case = Callable[[To], torch.Tensor]

ROUTER = RouterSpec(
    scores="softmax", normalise=True, scale=1.0, bias=False, correction_bias=False, num_groups=1, topk_groups=1,
    group_score="max", jitter_eps=None,
)  # fmt: skip


def has_triton(op: str) -> bool:
    return importlib.util.find_spec(f"ridgepoint.kernels.{op}.triton") is not None


def packs_weights() -> bool:
    return importlib.util.find_spec("ridgepoint.kernels.device_weight") is not None


def reads_packed_weights(device: torch.device) -> bool:
    """Whether the experts' path on this device is Triton's, which alone reads them."""
    return dispatch.implementation("moe_experts", torch.empty(0, device=device)).__name__.endswith(".triton")


_fresh = 0  # joins every seed


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_fresh * 104_729 + seed * 7919 + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).bfloat16()


# ---------------------------------------------------------------- against the definition


def checks(run: Run) -> None:
    """Every Triton kernel, its outputs full of NaN beforehand: small shapes against the definition, a model's shapes against
    torch's path (which tests hold against the definition) in float32. Inputs are drawn afresh in every run. What disagrees is
    tried again with every launch waiting for the one before: that tells a wrong kernel from one that starts too early."""
    global _fresh
    _fresh = 0 if run.smoke else secrets.randbits(24)
    run.note(f"inputs drawn from seed {_fresh}")
    worst: dict[str, float] = {}
    failed: list[str] = []

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.to(run.device)
        return moved.float() if moved.dtype == torch.bfloat16 else moved

    for small, path, to_slow in ((True, "reference", lambda tensor: tensor), (False, "cpu", wide)):
        if run.smoke and not small:
            continue
        for op, name, case, tolerance in _cases(small, partial(_belongs, run.part)):
            if run.smoke and name.endswith(" 1"):
                continue  # its longer sibling is enough
            if not has_triton(op):
                if op not in worst:
                    run.note(f"{op} has no Triton kernel")
                worst.setdefault(op, float("nan"))
                continue
            error = 0.0  # unless it runs
            with run.apart(f"{op} {name} beside {path}"):
                error = _disagreement(run, case, path, to_slow)
                worst[op] = max(worst.get(op, 0.0), error)
            if not error <= tolerance:
                with run.apart(f"{op} {name} in turn"), in_turn():
                    again = _disagreement(run, case, path, to_slow)
                    failed.append(f"{op} {name} beside {path}: {error:.3g} > {tolerance:.3g} ({again:.3g} in turn)")
                    run.note(f"WRONG {failed[-1]}")
    for op in worst:
        if has_triton(op):
            run.figure(f"{op}_error", worst[op], "")
    if failed:
        raise AssertionError(f"{len(failed)} kernels disagree with their definition: " + "; ".join(failed))


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


def _cases(small: bool, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str, Case, float]]:
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


def _row_cases(tokens: Sequence[int], d: int, f: int, e: int, k: int) -> Iterator[tuple[str, str, Case, float]]:
    for t in tokens:
        x, delta, w = normal(t, d, seed=1), normal(t, d, seed=2), normal(d, seed=3)
        yield "norm", f"rms {t}", lambda to, x=x, w=w: norm.rms_norm(to(x), to(w), 1e-6), BF16_TOLERANCE
        yield "norm", f"add {t}", lambda to, x=x, y=delta, w=w: torch.cat(
            norm.add_rms_norm(to(x), to(y), 1.0, to(w), 1e-6)
        ), BF16_TOLERANCE  # fmt: skip
        h = normal(t, 2 * f, seed=4)
        yield "glu", f"{t}", lambda to, h=h: glu(to(h), SwiGlu()), BF16_TOLERANCE
        gate = normal(t, 1, seed=5)
        yield "add_shared", f"{t}", lambda to, x=x, y=delta, g=gate: add_shared(to(x), to(y), to(g)), BF16_TOLERANCE
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


def _linear_cases(t: int, d: int, f: int) -> Iterator[tuple[str, str, Case, float]]:
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


def _expert_cases(t: int, d: int, f: int, e: int, k: int) -> Iterator[tuple[str, str, Case, float]]:
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


def _attention_cases(smoke: bool) -> Iterator[tuple[str, str, Case, float]]:
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
                plan = paged_attention.prepare(to(step.starts), to(step.contexts), to(step.tables), BLOCK)
                return paged_attention.attend(
                    to(q), kv, plan, width**-0.5, window, sinks if sinks is None else to(sinks)
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


TUNED = {
    "mla_decode": "mla_attention",
    "paged_prompt": "paged_attention",
    "experts": "moe_experts",
}  # what has the tiles


def _with_tile(op: str, name: str, case: Case, to: To) -> torch.Tensor:
    """With the kernel in Gluon that has this tile."""
    if importlib.util.find_spec("triton") is None:
        return case(to)
    from ridgepoint.kernels.tuning import pinned

    with pinned(op, getattr(importlib.import_module(f"ridgepoint.kernels.{TUNED[op]}.tunable"), name)):
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
        plan = paged_attention.prepare(to(step.starts), to(step.contexts), to(step.tables), BLOCK)
        scale = (nope + rotary) ** -0.5
        return mla_attention.attend(to(q_nope), to(q_rope), kv, to(w_uk), to(w_uv), plan, scale, None)

    return attend


def _sample_cases(smoke: bool) -> Iterator[tuple[str, str, Case, float]]:
    rows, vocab = (6, 300) if smoke else (15, 151_936)
    generator = torch.Generator().manual_seed(22)
    logits = torch.randn(rows, vocab, generator=generator) * 3
    shaping = shaping_for(rows, generator)
    yield "sample", "greedy", lambda to: sample.choose_on_device(to(logits), None).double(), 0.0
    yield "sample", "drawn", lambda to: sample.choose_on_device(
        to(logits), DeviceShaping(**{name: to(column) for name, column in vars(shaping).items()})
    ).double(), 0.0  # fmt: skip


class PagedStep:
    """Sequences scattered over shuffled blocks: `contexts[b]` tokens each, the last `queries[b]` of them asking."""

    def __init__(self, contexts: Sequence[int], queries: Sequence[int]) -> None:
        widest = -(-max(contexts) // BLOCK)
        self.num_blocks = len(contexts) * widest + 1
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(len(contexts)))
        self.tables = order[: len(contexts) * widest].view(len(contexts), widest)
        self.contexts, self.starts = torch.tensor(contexts), torch.tensor([0, *queries]).cumsum(0)
        position = torch.cat([torch.arange(count) for count in contexts])
        sequence = torch.repeat_interleave(torch.arange(len(contexts)), self.contexts)
        self.all_slots = self.tables[sequence, position // BLOCK] * BLOCK + position % BLOCK


def choices(tokens: int, experts: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of `top_k` distinct experts for each token, uniformly, and weights that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    return scores.topk(top_k).indices, torch.rand(tokens, top_k, generator=generator).softmax(-1)


def shaping_for(rows: int, generator: torch.Generator) -> DeviceShaping:
    """A little of everything: greedy rows, temperatures, top-k, top-p, min-p."""

    def pick(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)[torch.arange(rows) % len(values)]

    return DeviceShaping(
        temperature_R=pick([0.0, 0.7, 1.0]), top_k_R=pick([0, 20]).long(), top_p_R=pick([1.0, 0.9, 0.95, 1.0, 0.5]),
        min_p_R=pick([0.0, 0.0, 0.0, 0.05]), uniform_R=torch.rand(rows, dtype=torch.float64, generator=generator),
    )  # fmt: skip


# ---------------------------------------------------------------- experts


def experts(run: Run) -> None:
    """Routed experts: many tokens against torch's own grouped product, few against bandwidth over the touched weights."""
    wide = [(32768, 2048, 768, 128, 8), (32768, 4096, 1536, 128, 8)] if not run.smoke else [(64, 32, 32, 8, 2)]
    for shape in wide:
        with run.apart(f"forward {shape}"):
            _many_tokens(run, *shape)
    for t in (1, 4, 16, 32, 128, 4096) if not run.smoke else (1, 4):
        with run.apart(f"decode {t}"):
            _few_tokens(run, t, *((2816, 704, 128, 8) if not run.smoke else (32, 32, 8, 2)))


def _many_tokens(run: Run, t: int, d: int, f: int, e: int, k: int) -> None:
    each_s, flops = run.budget_s / 12, 6.0 * t * k * d * f
    layer = ExpertLayer(d, f, e, run.device)
    sets = [layer.tokens(t, k, seed) for seed in range(2)]
    ours = median_of([partial(layer.run, *s) for s in sets], run.device, each_s)
    run.figure(f"forward_{t}_{d}_{f}_tflops", flops / ours.seconds / 1e12, "TFLOP/s", shape=[t, d, f, e, k],
               roof_frac=run.floor_s(flops, layer.nbytes) / ours.seconds, **ours.facts())  # fmt: skip
    if run.device.type == "cuda":
        theirs = median_of([partial(layer.grouped_mm, *s) for s in sets], run.device, each_s)
        with torch.inference_mode():
            error = relative_error(layer.run(*sets[0]), layer.grouped_mm(*sets[0]))
        run.figure(f"forward_{t}_{d}_{f}_over_grouped_mm", theirs.seconds / ours.seconds, "x",
                   grouped_mm_us=theirs.seconds * 1e6, relative_difference=error)  # fmt: skip


def _few_tokens(run: Run, t: int, d: int, f: int, e: int, k: int) -> None:
    """Also with every launch waiting for the one before, at four tokens: what overlapping them is worth."""
    layer = ExpertLayer(d, f, e, run.device)
    sets = [layer.tokens(t, k, seed) for seed in range(2 if run.smoke else 8)]
    calls = [partial(layer.run, *s) for s in sets]
    ours = median_of(calls, run.device, run.budget_s / 12)
    touched = sum(len(ids.unique()) for _, _, ids in sets) / len(sets)
    facts = {"shape": [t, d, f, e, k], "touched_experts": touched, **ours.facts()}
    run.figure(f"decode_{t}_us", ours.seconds * 1e6, "us", **facts)
    share = touched * layer.expert_bytes / ours.seconds / run.rates["memory_bytes_per_s"]
    run.figure(f"decode_{t}_bandwidth_frac", share, "", **facts)
    if t >= 1024:
        run.figure(f"decode_{t}_tflops", 6.0 * t * k * d * f / ours.seconds / 1e12, "TFLOP/s", **facts)
    if t == 4:
        with in_turn():
            apart = median_of(calls, run.device, run.budget_s / 24)
        run.figure(f"decode_{t}_overlap_us", (apart.seconds - ours.seconds) * 1e6, "us", in_turn_us=apart.seconds * 1e6)


class ExpertLayer:
    """Random weights of one layer, and the ways to run them."""

    def __init__(self, d: int, f: int, e: int, device: torch.device) -> None:
        self.d, self.f, self.e, self.device = d, f, e, device
        self.gate_up = (torch.randn(e, 2 * f, d, device=device) * d**-0.5).bfloat16()
        self.down = (torch.randn(e, d, f, device=device) * f**-0.5).bfloat16()

    @property
    def expert_bytes(self) -> int:
        return 3 * self.d * self.f * 2

    @property
    def nbytes(self) -> int:
        return self.e * self.expert_bytes

    def tokens(self, t: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Activations, weights and ids."""
        ids, weights = choices(t, self.e, k, seed)
        return torch.randn(t, self.d, device=self.device).bfloat16(), weights.to(self.device), ids.to(self.device)

    @torch.inference_mode()
    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return moe_experts(x, weights, ids, self.gate_up, self.down, SwiGlu())

    @torch.inference_mode()
    def grouped_mm(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The same in torch's operators: sort, gather, two grouped products, gather back, weighted sum."""
        flat = ids.flatten()
        order = flat.argsort(stable=True)
        ends = torch.searchsorted(flat[order], torch.arange(self.e, device=x.device), right=True).int()
        h = torch._grouped_mm(x[order // ids.shape[1]], self.gate_up.transpose(1, 2), offs=ends)
        gate, up = h.chunk(2, dim=-1)
        y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        return torch.bmm(weights.bfloat16()[:, None], y[back].view(*ids.shape, -1))[:, 0]


def linear_section(run: Run) -> None:
    """Products with packed weights at decode sizes, as a share of bandwidth over the packed bytes; fp8 at many rows too."""
    if not packs_weights():
        run.note("no packed weights for this device in this tree")
        return
    for fmt in FORMATS:
        with run.apart(fmt):
            _packed_linear(run, fmt)


def _packed_linear(run: Run, fmt: str) -> None:
    from ridgepoint.kernels.device_weight import pack_for_device

    outputs, inputs = (64, 256) if run.smoke else (8192, 4096)
    copies = num_sets(outputs * inputs, run.device, 8)
    weights = [pack_for_device(normal(outputs, inputs, seed=s).to(run.device), fmt) for s in range(copies)]

    def timed(t: int) -> Timed:
        x = normal(t, inputs).to(run.device)
        with torch.inference_mode():
            return median_of([partial(linear, x, w) for w in weights], run.device, run.budget_s / 20)

    for t in (1, 16, 64) if not run.smoke else (2,):
        taken = timed(t)
        share = weights[0].nbytes / taken.seconds / run.rates["memory_bytes_per_s"]
        run.figure(f"{fmt}_{t}_bandwidth_frac", share, "", shape=[t, inputs, outputs], **taken.facts())
    if fmt.startswith("fp8"):  # the same codes, as bf16 and as they are
        t = 4096 if not run.smoke else 20
        taken = timed(t)
        run.figure(f"{fmt}_{t}_tflops", 2.0 * t * inputs * outputs / taken.seconds / 1e12, "TFLOP/s", **taken.facts())


# ---------------------------------------------------------------- attention


def paged(run: Run) -> None:
    """Decoding attention as a share of bandwidth over keys and values; prompts in FLOP/s."""
    heads, kv_heads, width = (4, 2, 16) if run.smoke else (32, 4, 128)
    for batch, context in [(64, 4096), (1, 8192), (16, 1024)] if not run.smoke else [(3, 50)]:
        with run.apart(f"decode {batch}x{context}"):
            step = PagedStep([context] * batch, [1] * batch)
            kv_bytes = 2.0 * batch * context * kv_heads * width * 2
            timed = _time_paged(run, step, batch, heads, kv_heads, width, num_sets(kv_bytes, run.device, 8))
            share = kv_bytes / timed.seconds / run.rates["memory_bytes_per_s"]
            run.figure(
                f"decode_{batch}x{context}_bandwidth_frac", share, "", heads=[heads, kv_heads, width], **timed.facts()
            )
    for length in (2048, 8192) if not run.smoke else (40,):
        with run.apart(f"prompt {length}"):
            step = PagedStep([length], [length])
            timed = _time_paged(run, step, length, heads, kv_heads, width, 2)
            flops = 2.0 * heads * width * length * length  # causal: half of 4 H P T^2
            run.figure(f"prompt_{length}_tflops", flops / timed.seconds / 1e12, "TFLOP/s", **timed.facts())


def _time_paged(run: Run, step: PagedStep, tokens: int, heads: int, kv_heads: int, width: int, copies: int) -> Timed:
    caches = [
        paged_attention.allocate(step.num_blocks, BLOCK, kv_heads, width, torch.bfloat16, run.device).normal_()
        for _ in range(copies)
    ]
    q = torch.randn(tokens, heads, width, device=run.device).bfloat16()
    plan_of = (step.starts.to(run.device), step.contexts.to(run.device), step.tables.to(run.device), BLOCK)
    plan = paged_attention.prepare(*plan_of)
    with torch.inference_mode():
        return median_of(
            [partial(paged_attention.attend, q, kv, plan, width**-0.5, None, None) for kv in caches],
            run.device, run.budget_s / 8,
        )  # fmt: skip


def mla(run: Run) -> None:
    """Absorbed latent decoding: with all heads of a large model as a share of its roof, which is the arithmetic of all heads on the
    latents; with 16, a small model's or one GPU's of eight, as a share of bandwidth over latents that are read once. Prompts
    in FLOP/s of what lifting takes."""
    for heads in (4,) if run.smoke else (128, 16):
        with run.apart(f"decode with {heads} heads"):
            _latent_decode(run, LatentShape(heads, *((16, 16, 32, 16) if run.smoke else (128, 64, 512, 128))))
    with run.apart("prompt"):
        _latent_prompt(run, LatentShape(4, 16, 16, 32, 16) if run.smoke else LatentShape(128, 128, 64, 512, 128))


@dataclass(frozen=True)
class LatentShape:
    heads: int
    nope: int
    rotary: int
    latent: int
    value: int

    @property
    def lift_flops(self) -> float:
        """Of moving one query into the latent space and its result out of it, or of lifting one key."""
        return 2.0 * self.heads * self.latent * (self.nope + self.value)

    def calls(self, run: Run, step: PagedStep, tokens: int, copies: int) -> list[Callable[[], torch.Tensor]]:
        """Attention of `tokens` queries over as many caches."""
        device = run.device
        caches = [
            mla_attention.allocate(step.num_blocks, BLOCK, self.latent, self.rotary, torch.bfloat16, device).normal_()
            for _ in range(copies)
        ]
        q_nope, q_rope = (
            torch.randn(tokens, self.heads, w, device=device).bfloat16() for w in (self.nope, self.rotary)
        )
        w_uk, w_uv = (
            (torch.randn(self.heads, w, self.latent, device=device) * self.latent**-0.5).bfloat16()
            for w in (self.nope, self.value)
        )
        plan = paged_attention.prepare(*(t.to(device) for t in (step.starts, step.contexts, step.tables)), BLOCK)
        scale = (self.nope + self.rotary) ** -0.5
        return [partial(mla_attention.attend, q_nope, q_rope, kv, w_uk, w_uv, plan, scale, None) for kv in caches]


def _latent_decode(run: Run, shape: LatentShape) -> None:
    batch, context = (3, 50) if run.smoke else (64, 4096)
    kv_bytes = 2.0 * batch * context * (shape.latent + shape.rotary)
    with torch.inference_mode():
        calls = shape.calls(run, PagedStep([context] * batch, [1] * batch), batch, num_sets(kv_bytes, run.device, 8))
        timed = median_of(calls, run.device, run.budget_s / 4)
    flops = batch * (2.0 * context * shape.heads * (2 * shape.latent + shape.rotary) + shape.lift_flops)
    num_bytes = kv_bytes + shape.lift_flops
    facts = {"tflops": flops / timed.seconds / 1e12, "heads": shape.heads, **timed.facts()}
    name = f"decode_{batch}x{context}" + ("" if shape.heads == 128 else f"_{shape.heads}_heads")
    run.figure(f"{name}_roof_frac", run.floor_s(flops, num_bytes) / timed.seconds, "", **facts)
    run.figure(f"{name}_bandwidth_frac", num_bytes / timed.seconds / run.rates["memory_bytes_per_s"], "", **facts)


def _latent_prompt(run: Run, shape: LatentShape) -> None:
    length = 40 if run.smoke else 2048
    with torch.inference_mode():
        timed = median_of(shape.calls(run, PagedStep([length], [length]), length, 2), run.device, run.budget_s / 4)
    # Lifted: every key of every head once, then causal attention over keys and values as wide as they are.
    attended = 1.0 * shape.heads * length**2 * (shape.nope + shape.rotary + shape.value)
    flops = length * shape.lift_flops + attended
    run.figure(f"prompt_{length}_tflops", flops / timed.seconds / 1e12, "TFLOP/s", heads=shape.heads, **timed.facts())


# ---------------------------------------------------------------- rows and samples


def norms(run: Run) -> None:
    """The residual addition with its norm, as a share of bandwidth over what it reads and writes."""
    d = 64 if run.smoke else 2048
    for t in (4,) if run.smoke else (64, 8192):
        num_bytes = 4.0 * t * d * 2
        sets = [
            [torch.randn(t, d, device=run.device).bfloat16() for _ in range(2)]
            for _ in range(num_sets(num_bytes, run.device, 16))
        ]
        weight = torch.randn(d, device=run.device).bfloat16()
        with torch.inference_mode():
            timed = median_of(
                [partial(norm.add_rms_norm, *s, 1.0, weight, 1e-6) for s in sets], run.device, run.budget_s / 4
            )  # fmt: skip
        share = num_bytes / timed.seconds / run.rates["memory_bytes_per_s"]
        run.figure(f"add_rms_{t}_us", timed.seconds * 1e6, "us", bandwidth_frac=share, **timed.facts())


def samples(run: Run) -> None:
    """Choosing tokens on the device, greedy, drawn and by every rule, as a share of bandwidth over one reading of the logits."""
    vocab = 300 if run.smoke else 151_936
    for rows in (3,) if run.smoke else (1, 64, 256):
        num_bytes = 4.0 * rows * vocab
        logits = [torch.randn(rows, vocab, device=run.device) * 3 for _ in range(num_sets(num_bytes, run.device, 16))]
        shaping = shaping_for(rows, torch.Generator().manual_seed(1))
        on_device = DeviceShaping(**{name: column.to(run.device) for name, column in vars(shaping).items()})
        rules = _some_rules(rows, vocab, run.device)
        ways = {
            "greedy": lambda x: sample.choose_on_device(x, None),
            "drawn": lambda x, shaping=on_device: sample.choose_on_device(x, shaping),
            "ruled": lambda x, shaping=on_device, rules=rules: _ruled(x, shaping, *rules),
        }
        for name, choose in ways.items():
            with run.apart(f"{name} {rows}"):
                with torch.inference_mode():
                    timed = median_of([partial(choose, x) for x in logits], run.device, run.budget_s / 12)
                share = num_bytes / timed.seconds / run.rates["memory_bytes_per_s"]
                run.figure(f"{name}_{rows}_us", timed.seconds * 1e6, "us", bandwidth_frac=share, **timed.facts())


def _some_rules(rows: int, vocab: int, device: torch.device) -> tuple[DeviceRules, torch.Tensor]:
    """Rules for every second row, and five alternatives wanted of every third."""
    row = torch.arange(rows, device=device)
    rate = torch.full((rows,), 1.1, dtype=torch.float64, device=device)
    rules = DeviceRules(
        counts_SV=torch.zeros(rows, vocab, dtype=torch.int32, device=device).random_(0, 2),
        addends_SV=torch.zeros(rows, vocab, device=device), seats_R=torch.where(row % 2 == 0, row, -1),
        banned_R=torch.zeros_like(row), repetition_R=rate, presence_R=rate, frequency_R=rate,
    )  # fmt: skip
    return rules, torch.where(row % 3 == 0, 5, -1)


def _ruled(x: torch.Tensor, shaping: DeviceShaping, rules: DeviceRules, num_top_R: torch.Tensor) -> torch.Tensor:
    ids_R = sample.choose_on_device(sample.edit_on_device(x, rules), shaping)
    sample.count_on_device(rules.counts_SV, rules.seats_R, ids_R)
    return sample.score_on_device(x, ids_R, num_top_R, 20)[0]
