"""What should a prompt take on one H200, kernel by kernel, and what part of that is the cost model's floor?

Needs no GPU and measures nothing. The kernels of a layer are those that a decoder without memory launches (`gpu_launches.py`), prompts
by warps with roles; each is priced by what it must move and compute at the rates of `gpu_expected.toml`, and one without a price is
an error, so that this follows the code. The assumption to doubt first is `FITS`: rows that the kernel before has just written come
from L2. What is foreseen without it is printed too. Ends with 1 where `gpu_expected.toml` says something else.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gpu_launches import GAP_US, OVERLAPPED_GAP_US, Model
from gpu_model import chip_of
from gpu_report import expected_figures
from provenance import provenance, save
from ridgepoint.catalog.models import catalog_model
from ridgepoint.catalog.spec import GqaSpec, ModelSpec, MoeSpec
from ridgepoint.cost.calibration import ROOFLINE
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.step import step_cost
from ridgepoint.cost.timer import batch_of
from ridgepoint.engine.prediction import precision_of
from ridgepoint.kernels.gemm.gluon_blocks import GROUPS, ROWS
from ridgepoint.kernels.moe_experts.tunable import BY_ROLES as EXPERTS_BY_ROLES
from ridgepoint.kernels.paged_attention.tunable import ROLES as PROMPT_ROLES
from ridgepoint.kernels.tuning import pinned
from ridgepoint.sched.step import StepShape

EXPECTED = expected_figures()
MEMORY, L2, DENSE = (
    EXPECTED["rates", name]["expected"] for name in ("memory_bytes_per_s", "l2_bytes_per_s", "bf16_flops_per_s")
)
PROCESSORS = 132
WAVE = DENSE / 0.97  # within a wave: 8192^3 leaves the last of its 16 with half of the multiprocessors
STREAMED, ROWS_SHARE = (
    0.92,
    0.90,
)  # of the copy rate: weights by the copy engine; rows, as the norm of 8,192 is foreseen
GATHERED = 0.81  # of the dense rate: the wide tiles of experts, as in the forward passes of [experts]
FITS = 32 << 20  # bytes that are surely still in an L2 of 50 MB
CHAIN_US = 2.0  # a kernel with next to nothing to do: loads that depend on each other, a store
ENDS_US = 2.0  # of a dense product: its first tiles arrive, its last ones leave
WAVE_US = 1.0  # of each wave: results that are stored under nothing
RAMP_US = 2.0  # the same of the experts', whose next launch waits nearby
ROUTER_US = 6.0  # 128 columns: 16 tiles, or inputs cut up and summed by a second launch


# What the last layer does for every token; the rest of it, for the one whose logits are wanted.
EVERY_TOKEN = ("queries, keys and values", "experts' rows join, norm", "norm, rotation, store", "attention")


@dataclass(frozen=True)
class Part:
    kernel: str
    what: str
    us: float


class Prompt:
    """Times of the kernels of one layer. `fits`: see `FITS`."""

    def __init__(self, spec: ModelSpec, tokens: int, fits: int) -> None:
        mixer, moe = spec.layers[-1].mixer, spec.layers[-1].ffn
        assert isinstance(mixer, GqaSpec) and isinstance(moe, MoeSpec)
        self.tokens, self.width, self.fits = tokens, spec.d_model, fits
        self.heads, self.moe = mixer, moe
        self.row_bytes = 2 * tokens * spec.d_model
        self.q_width, self.kv_width = mixer.num_heads * mixer.head_dim, 2 * mixer.num_kv_heads * mixer.head_dim
        self.pair_bytes = 2 * tokens * moe.top_k
        self.rows_each = tokens * moe.top_k / moe.num_experts
        self.by_roles = 64 <= self.rows_each <= ROWS.value * GROUPS.value

    def parts(self, kernel: str, count: int) -> list[Part]:
        """Of one layer."""
        moe, kv = self.moe, self.kv_width
        prices: dict[str, Callable[[], list[tuple[str, float]]]] = {
            "torch.linear": lambda: [
                ("queries, keys and values", self.product_us(self.width, self.q_width + kv)),
                ("out of attention", self.product_us(self.q_width, self.width)),
            ],
            "torch.mm": lambda: [("router", ROUTER_US)],
            "norm_rows": lambda: [
                ("attention joins, norm", self.rows_us(self.row_bytes, 3 * self.row_bytes)),
                ("experts' rows join, norm", self.rows_us(0, self.pair_bytes * self.width + 3 * self.row_bytes)),
            ],
            "rotate_heads": lambda: [
                ("norm, rotation, store", self.rows_us(2 * self.tokens * (self.q_width + kv), 2 * self.tokens * (self.q_width + kv))),
            ],
            "attend_tiles": lambda: [("attention", self.attention_us())],
            "block_tiles": lambda: [
                ("gate and up", self.streamed_us(2 * moe.width * self.width, moe.width)),
                ("down", self.streamed_us(moe.width * self.width, moe.width + self.width)),
            ],
            "token_tiles": lambda: [("experts' products", self.wide_us())] + [("the others of them", RAMP_US)] * (count - 1),
        }  # fmt: skip
        small = {"_route": "choice of experts", "_count": "groups", "_sum_over_chunks": "groups", "_place": "groups"}
        priced = [(small[kernel], CHAIN_US)] if kernel in small else prices[kernel]()
        assert len(priced) == count, f"{kernel} is launched {count} times a layer, {len(priced)} have a price"
        in_turn = kernel.startswith("torch.")
        return [Part(kernel, what, us + (GAP_US if in_turn else OVERLAPPED_GAP_US)) for what, us in priced]

    def product_us(self, inputs: int, outputs: int) -> float:
        """Whole waves of tiles of 128 x 256."""
        waves = math.ceil(math.ceil(self.tokens / 128) * math.ceil(outputs / 256) / PROCESSORS)
        return waves * (2.0 * 128 * 256 * inputs / (WAVE / PROCESSORS) * 1e6 + WAVE_US) + ENDS_US

    def rows_us(self, just_written: int, others: int) -> float:
        """A pass over rows, of which `just_written` bytes were the last kernel's."""
        from_l2 = just_written if just_written <= self.fits else 0
        through_l2 = (just_written + others) / L2 if from_l2 else 0.0
        return max(CHAIN_US, 1e6 * max(through_l2, (just_written - from_l2 + others) / (ROWS_SHARE * MEMORY)))

    def attention_us(self) -> float:
        flops = 2.0 * self.q_width * self.tokens**2  # causal: half
        return flops / (EXPECTED["paged_attention", f"prompt_{self.tokens}_tflops"]["expected"] * 1e6)

    def streamed_us(self, weights_each: int, row_width: int) -> float:
        """All weights of a product once, and `row_width` channels of each pair: results, and inputs that so many weights have driven out
        of the cache."""
        num_bytes = 2 * self.moe.num_experts * weights_each + self.pair_bytes * row_width
        return num_bytes / (STREAMED * MEMORY) * 1e6 + RAMP_US

    def wide_us(self) -> float:
        """Both products where arithmetic binds; blocks of 128 rows and short ones of 64 waste 32 rows an expert."""
        flops = 6.0 * self.tokens * self.moe.top_k * self.width * self.moe.width * (1 + 32 / self.rows_each)
        return flops / (GATHERED * DENSE) * 1e6 + 2 * RAMP_US


def parts_of(spec: ModelSpec, tokens: int, fits: int = FITS) -> list[Part]:
    prompt = Prompt(spec, tokens, fits)
    with (
        pinned("experts", EXPERTS_BY_ROLES) if prompt.by_roles else nullcontext(),
        pinned("paged_prompt", PROMPT_ROLES),
    ):
        two, three = (Model(spec, layers, 1).prompt(tokens)[0] for layers in (2, 3))
    layer = three - two
    return [part for kernel, count in layer.items() for part in prompt.parts(kernel, count)]


def around_us(spec: ModelSpec) -> float:
    """Of a step beside its layers: the head over one row, and a score of small kernels."""
    return one_row_us(spec.vocab_size * spec.d_model, 20)


def layers_us(spec: ModelSpec, parts: list[Part]) -> float:
    """Of all layers, given the parts of one. In the last a single row leaves attention."""
    mixer, moe = spec.layers[-1].mixer, spec.layers[-1].ffn
    assert isinstance(mixer, GqaSpec) and isinstance(moe, MoeSpec)
    weights = spec.d_model * (mixer.num_heads * mixer.head_dim + moe.num_experts + 3 * moe.top_k * moe.width)
    last = [part.us for part in parts if part.what in EVERY_TOKEN]
    assert len(last) == len(EVERY_TOKEN)
    earlier = (len(spec.layers) - 1) * sum(part.us for part in parts)
    return earlier + sum(last) + one_row_us(weights, len(parts) - len(last))


def one_row_us(weights: int, kernels: int) -> float:
    """Kernels that read so many weights for a single row."""
    return 2 * weights / (0.85 * MEMORY) * 1e6 + kernels * (CHAIN_US + GAP_US)


def floor_us(spec: ModelSpec, tokens: int) -> float:
    precision = precision_of(Model(spec, 1, 1).decoder)
    chip = chip_of({name: entry["expected"] for (section, name), entry in EXPECTED.items() if section == "rates"})
    cost = step_cost(spec, chip, Layout(), precision, batch_of(StepShape([tokens], [0], 1)), ROOFLINE)
    return float(cost.floor_s) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--smoke", action="store_true", help="the shorter prompt")
    parser.add_argument("--out", type=Path, help="JSON result")
    args = parser.parse_args()
    spec = catalog_model("qwen3-30b-a3b").spec
    found, stale = [], False
    for tokens in args.tokens[: 1 if args.smoke else None]:
        parts, floor = parts_of(spec, tokens), floor_us(spec, tokens)
        whole = [layers_us(spec, some) + around_us(spec) for some in (parts, parts_of(spec, tokens, fits=0))]
        print(f"{tokens} tokens, us a layer")
        for part in parts:
            print(f"  {part.kernel:18} {part.what:26} {part.us:7.1f}")
        print(f"  {whole[0] / 1e3:.1f} ms, {floor / whole[0]:.3f} of the floor of {floor / 1e3:.1f} ms; "
              f"without rows from L2 {whole[1] / 1e3:.1f} ms, {floor / whole[1]:.3f}")  # fmt: skip
        foreseen = EXPECTED["model", f"prefill_{tokens}_floor_frac"]["expected"]
        if abs(foreseen - floor / whole[0]) > 0.015:
            stale = True
            print(f"  gpu_expected.toml says {foreseen}")
        found.append({"tokens": tokens, "floor_us": floor, "us": whole[0], "us_without_l2": whole[1],
                      "floor_frac": floor / whole[0], "layer": [vars(part) for part in parts]})  # fmt: skip
    save(args.out, provenance(__doc__) | {"prompts": found})
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
