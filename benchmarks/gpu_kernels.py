"""The GPU suite's sections on single operators: the time of each against this run's rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from gpu_inputs import BLOCK, FORMATS, PagedStep, choices, normal, packs_weights, shaping_for
from gpu_report import Run
from gpu_timing import Timed, median_of, num_sets, relative_error
from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import mla_attention, norm, paged_attention, sample
from ridgepoint.kernels.linear import linear
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.moe_experts.unsummed import Delta, UnsummedRows
from ridgepoint.kernels.sample import DeviceRules, DeviceShaping
from ridgepoint.kernels.triton_call import in_turn

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
    plan = step.plan(lambda tensor: tensor.to(run.device))
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
        plan = step.plan(lambda tensor: tensor.to(device))
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
    """The residual addition with its norm, alone and after the sum of eight experts' rows, as a share of bandwidth over what it reads
    and writes."""
    d = 64 if run.smoke else 2048
    for t in (4,) if run.smoke else (64, 8192):
        _time_norm(run, f"add_rms_{t}_us", t, d, t, lambda rows: rows)
    for t in (4,) if run.smoke else (1, 64, 2048):
        weights = torch.rand(t, 8, device=run.device)
        _time_norm(run, f"add_rms_of_8_{t}_us", t, d, 8 * t, lambda rows, w=weights: _unsummed(rows, w))


def _unsummed(y_MD: torch.Tensor, weights_TK: torch.Tensor) -> UnsummedRows:
    """Rows in an order that has nothing to do with that of their tokens."""
    order = torch.randperm(len(y_MD), device=y_MD.device, dtype=torch.int32)
    return UnsummedRows(y_MD=y_MD, weights_TK=weights_TK, pair_row=order)


def _time_norm(run: Run, name: str, t: int, d: int, rows: int, delta_of: Callable[[torch.Tensor], Delta]) -> None:
    num_bytes = (3.0 * t + rows) * d * 2
    weight = torch.randn(d, device=run.device).bfloat16()

    def call() -> Callable[[], object]:
        x, delta = (torch.randn(count, d, device=run.device).bfloat16() for count in (t, rows))
        return partial(norm.add_rms_norm, x, delta_of(delta), 1.0, weight, 1e-6)

    with torch.inference_mode():
        timed = median_of([call() for _ in range(num_sets(num_bytes, run.device, 16))], run.device, run.budget_s / 6)
    share = num_bytes / timed.seconds / run.rates["memory_bytes_per_s"]
    run.figure(name, timed.seconds * 1e6, "us", bandwidth_frac=share, **timed.facts())


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
