"""Worked answers of other people, computed here from the catalogue and the cost functions, at their stated tolerance.

Each entry computes its number; nothing is copied from the table. Measured cases are in `test_planner_measurements`. Where a source
rounds or errs on the way, its number is reproduced from that slip and the right one asserted beside it (`SLIPS`). What is left is named
in `NOT_COMPUTED` with the reason, so that a new case cannot be overlooked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from planner_case_table import Inputs, case_of, cases, dense_model, inputs_of, needs_table, tolerance_of
from test_planner_measurements import MEASURED

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.catalog.tiers import tiers_of
from ridgepoint.cost import (
    ROOFLINE,
    Layout,
    Precision,
    StepBatch,
    kv_bytes_per_token,
    max_sequences,
    shape_of,
    step_cost,
    weight_bytes,
)
from ridgepoint.cost.fleet import (
    DAY_S,
    DailyTokens,
    margin,
    mean_nodes,
    revenue_usd,
    tokens_per_day,
    usd_per_day,
)
from ridgepoint.cost.formats import bytes_per_value
from ridgepoint.cost.links import all_to_all
from ridgepoint.cost.queueing import worst_wait_s
from ridgepoint.cost.roofline import (
    critical_rows,
    critical_tokens,
    flops_per_byte,
    link_critical_tokens,
    matmul_s,
    max_tensor_parallel,
    ridge_batch_rule,
)
from ridgepoint.cost.routing import distinct_experts
from ridgepoint.cost.speculation import Acceptance
from ridgepoint.cost.torus import all_gather_s, all_reduce_s, send_s
from ridgepoint.cost.training import classic_activation_bytes, train_flops_per_token, training_days
from ridgepoint.plan.assume import Assumption
from ridgepoint.plan.pricelist import ListPrice
from ridgepoint.plan.prices import defaults, infer_from_price

pytestmark = needs_table

GIB = 2.0**30
V5E, V5P, V6E = accelerator("tpu-v5e"), accelerator("tpu-v5p"), accelerator("tpu-v6e")
H100, B200 = accelerator("h100"), accelerator("b200")
LLAMA70 = model_spec("llama-3.1-70b")
V5E_LINK, V5P_LINK = 4.5e10, 9e10  # one way, one link


def params_70b() -> float:
    return float(shape_of(LLAMA70).total_params)


def kv_70b(kv: str) -> float:
    return kv_bytes_per_token(LLAMA70, kv)


# ---------------------------------------------------------------- the scaling book's 13B table (it mixes GB and GiB; so must the check)


def llama13(inputs: Inputs) -> tuple[float, float, float]:
    """(kv bytes, all bytes, decode step s): 40 layers, 40 heads of 128, bf16; the GQA variant keeps a fifth of the heads."""
    heads = 40 if inputs["kv"] == "mha" else 8
    per_token = 2 * 40 * heads * 128 * 2.0
    kv = inputs["batch"] * inputs["ctx"] * per_token
    total = kv + 13e9 * 2.0
    return kv, total, total / inputs["bw_total"]


def book_13b(inputs: Inputs, metric: str) -> float:
    kv, _, _ = llama13(inputs)
    # The book adds 26 (GB of weights) to the cache in GB read off as GiB: 6.7 for 6.71e9 bytes.
    total = kv / 1e9 + 26.0
    step = total * 1e9 / inputs["bw_total"]
    return {
        "kv_cache": kv / 1e9,
        "total_memory": total,
        "decode_step": step * 1e3,
        "throughput": inputs["batch"] / step,
    }[metric]


# ---------------------------------------------------------------- llama-3-70B serving on v5e


def min_chips_70b(weights: str) -> float:
    return 70e9 * {"bf16": 2.0, "int8": 1.0, "int4": 0.5}[weights] / V5E.need("spec_memory_bytes", "")


def slice_70b(weights: str) -> int:
    return 1 << math.ceil(math.log2(min_chips_70b(weights)))


def sequences_70b(dtype: str, slices: int = 1) -> float:
    """Weights and cache in one type: what HBM leaves, over a sequence's cache."""
    value = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}[dtype]
    return (slices * slice_70b(dtype) * 16e9 - 70e9 * value) / (kv_70b("fp8") * value * 8192)


def qps_70b(dtype: str, doubled: bool) -> float:
    """Queries per second and chip with full HBM: a step drains it; each query decodes 512 steps."""
    slices = 2 if doubled else 1
    step_s = 16e9 / 8.2e11
    return math.floor(sequences_70b(dtype, slices)) / (512 * step_s) / (slices * slice_70b(dtype))


def rate_70b(sequences: float, dtype: str, slices: int) -> float:
    """Queries per second and chip of the book's sequences on its slice, a step being the 19.5 ms that drain 16 GB."""
    return sequences / (512 * 16e9 / 8.2e11) / (slices * slice_70b(dtype))


def decode_70b(chips: int) -> float:
    total = 70e9 * 1.0 + 32 * 8192 * kv_70b("int8")
    return total / (chips * V5E.need("spec_memory_bytes_per_s", ""))


def classic_params(layers: int, d: int, f: int, heads: int, kv_heads: int, head_dim: int, vocab: int) -> float:
    attention = d * head_dim * (2 * heads + 2 * kv_heads)
    return layers * (3 * d * f + attention) + 2 * vocab * d


MEGATRON = {  # layers, width, heads, tp, pp, micro-batch, chunks (arXiv:2205.05198, table 3)
    "22B": (48, 6144, 64, 8, 1, 4, 1), "gpt3-175B": (96, 12288, 96, 8, 8, 1, 3),
    "530B": (105, 20480, 128, 8, 35, 1, 3), "1T": (128, 25600, 160, 8, 64, 1, 1),
}  # fmt: skip


def megatron(inputs: Inputs, metric: str) -> float:
    layers, width, heads, tp, pp, micro, chunks = MEGATRON[inputs["model"]]
    if metric == "params+optimizer_mem":
        return layers * 12 * width**2 / (tp * pp) * 18.0 / GIB
    selective = metric.startswith("activations_seq")
    return (
        classic_activation_bytes(
            sequence=2048, micro_batch=micro, width=width, heads=heads, layers=layers, tp=tp, pp=pp, chunks_per_stage=chunks,
            recompute="selective" if selective else "none", sequence_parallel=selective,
        )
        / GIB
    )  # fmt: skip


def dense_405b_train_flops(seq: int) -> float:
    return train_flops_per_token(model_spec("llama-3.1-405b"), seq)


DAY = DailyTokens(input_hit=342e9, input_miss=266e9, output=168e9)
TIERS = {"HBM": "hbm", "DDR": "ddr", "flash": "flash", "spinning disk": "disk"}


def tier_drain_s(name: str) -> float:
    return next(tier.drain_s for tier in tiers_of(H100) if tier.id == TIERS[name])


V5E_HBM, V5E_BF16 = 8.2e11, 1.97e14
COMPUTED: dict[str, Callable[[Inputs, str], Any]] = {
    # rooflines
    "sbook-001": lambda i, m: i["flops"] / i["peak"] * 1e3,
    "sbook-002": lambda i, m: i["flops"] / i["peak"] * 1e3,
    "sbook-003": lambda i, m: critical_tokens(V5E.flops_per_s("bf16"), V5E.need("spec_memory_bytes_per_s", ""), 2.0),
    "sbook-004": lambda i, m: critical_tokens(
        V5E.flops_per_s("bf16"), V5E.need("spec_memory_bytes_per_s", ""), bytes_per_value("int8")
    ),
    "sbook-005": lambda i, m: critical_tokens(i["peak"], i["bw"], bytes_per_value("int8")),
    "sbook-006": lambda i, m: critical_tokens(i["peak"], i["bw"], 2.0),
    # Two chips: each does half the FLOPs and reduces B x F in bf16; B cancels: D > 2 x FLOP/s / link.
    "sbook-007": lambda i, m: 2.0 * V5E.flops_per_s("bf16") / i["ici_oneway"],
    "sbook-008": lambda i, m: i["params"] * 2.0 / (i["chips"] * i["bw"]) * 1e3,
    "sbook-009": lambda i, m: 16 * 16 / 8,
    "sbook-010": lambda i, m: 256 * V5E.flops_per_s("bf16"),
    "sbook-011": lambda i, m: 256 * V5E.need("spec_memory_bytes", "") / 1e12,
    "sbook-012": lambda i, m: 8960 / 4,
    "sbook-013": lambda i, m: 8960 * V5P.flops_per_s("bf16"),
    "sbook-014": lambda i, m: 8960 * V5P.need("spec_memory_bytes", "") / 1e12,
    "sbook-015": lambda i, m: critical_tokens(i["peak"], 1.5e10, 2.0),
    "sbook-017": lambda i, m: critical_rows(4096, 16384, 3.94e14, 22 * 8.1e11, 1.0, 1.0, 1.0),
    "sbook-018": lambda i, m: send_s(8 * 128 * 8192 * 2.0, i["ici_oneway"], ports=2, hops=6, hop_s=1e-6) * 1e6,
    "sbook-019": lambda i, m: 131072.0**2 / (16 * 1.6e10) * 1e3,
    # Every chip gathers the whole 16 GB (less its own share) over its two links.
    "sbook-020": lambda i, m: 16e9 * (1 - 1 / 16) / (2 * V5E_LINK) * 1e3,
    "sbook-021": lambda i, m: 16e9 / V5E_HBM * 1e3,
    "sbook-023": lambda i, m: all_gather_s(2048 * 8192 * 2.0 / 16, i["oneway"]) * 1e6,
    "sbook-024": lambda i, m: all_gather_s(2048 * 8192 * 2.0 / 4, 4.5e10, axes=2) * 1e6,
    # An all-reduce of partial sums of a [1024, 4096] output is two all-gathers of it.
    "sbook-025": lambda i, m: all_reduce_s(1024 * 4096 * 2.0, V5E_LINK) * 1e6,
    "sbook-026": lambda i, m: all_gather_s(1024.0, 4.5e10, hop_s=1e-6, hops=2) * 1e6,
    # transformers
    "sbook-028": lambda i, m: 2 * i["L"] * i["D"] * bytes_per_value("fp8"),
    "sbook-029": lambda i, m: 2 * i["D"],
    "sbook-030": lambda i, m: 6 * i["active"] * i["tokens"] / (i["h800_hours"] * 3600 * i["peak_fp8_dense"]),
    **{f"sbook-{n:03d}": book_13b for n in range(31, 79)},
    "sbook-079": lambda i, m: classic_params(i["L"], i["D"], i["F"], i["N"], i["K"], i["H"], i["V"]),
    "sbook-081": lambda i, m: kv_70b("fp8"),
    "sbook-082": lambda i, m: kv_70b("fp8") * i["ctx"] / 1e9,
    "sbook-083": lambda i, m: kv_70b("fp8") * i["ctx"] * i["batch"] / 1e9,
    "sbook-084": lambda i, m: (70e9 + kv_70b("fp8") * 8192 * 32) / 1e9,
    "sbook-085": lambda i, m: math.ceil((70e9 + kv_70b("fp8") * 8192 * 32) / 16e9 - 0.1),
    "sbook-086": lambda i, m: decode_70b(8) * 1e3,
    "sbook-087": lambda i, m: 32 / decode_70b(8),
    "sbook-088": lambda i, m: 32 / decode_70b(8) / 8,
    "sbook-089": lambda i, m: decode_70b(16) * 1e3,
    **{f"sbook-{n:03d}": (lambda i, m: min_chips_70b(i["weights"])) for n in (90, 93, 96)},
    **{f"sbook-{n:03d}": (lambda i, m: slice_70b(i["weights"])) for n in (91, 94, 97)},
    **{f"sbook-{n:03d}": (lambda i, m: sequences_70b(i["weights"])) for n in (92,)},
    "sbook-099": lambda i, m: 16e9 / V5E_HBM * 1e3,
    "sbook-100": lambda i, m: qps_70b(i["dtype"], False),
    # The MLP's one matrix on 32 chips at batch 64: its input gathered, its weights read.
    "sbook-106": lambda i, m: all_gather_s(2.0 * i["batch"] * 8192, V5E_LINK) * 1e6,
    "sbook-107": lambda i, m: 8192 * 28672 * 2.0 / (32 * V5E.need("spec_memory_bytes_per_s", "")) * 1e6,
    "sbook-109": lambda i, m: 2 * params_70b() * i["prompt"] / (i["chips"] * V5E.flops_per_s("bf16") * i["mfu"]),
    "sbook-110": lambda i, m: i["batch"] * (i["prompt"] + i["gen"]) / i["gen"],
    "sbook-112": lambda i, m: H100.flops_per_s("bf16") / i["usd_hr"],
    "sbook-113": lambda i, m: V5P.flops_per_s("bf16") / i["usd_hr"],
    "sbook-114": lambda i, m: V5E.flops_per_s("bf16") / i["usd_hr"],
    # training llama-3-70B
    "sbook-115": lambda i, m: params_70b(),
    "sbook-116": lambda i, m: sum(k.count * k.dense_params for k in shape_of(LLAMA70).kinds),
    "sbook-117": lambda i, m: 2 * shape_of(LLAMA70).embedding_params,
    "sbook-118": lambda i, m: sum(k.count * k.mixer_params for k in shape_of(LLAMA70).kinds),
    "sbook-119": lambda i, m: 6 * params_70b(),
    "sbook-120": lambda i, m: 6 * params_70b() * i["tokens"],
    "sbook-121": lambda i, m: training_days(6 * params_70b() * i["tokens"], i["chips"], V5P.flops_per_s("bf16"), 0.40),
    # bf16 weights, fp32 Adam pair, and four checkpoints a layer of 4 M tokens in bf16
    "sbook-122": lambda i, m: (10 * params_70b() + 2.0 * 8192 * i["batch_tokens"] * 4 * 80) / 1e12,
    "sbook-123": lambda i, m: (
        (10 * params_70b() + 2.0 * 8192 * i["batch_tokens"] * 4 * 80) / V5P.need("spec_memory_bytes", "")
    ),
    "sbook-124": lambda i, m: 4 * 2**20 / i["chips"],
    "sbook-125": lambda i, m: link_critical_tokens(V5P.flops_per_s("bf16"), 3 * 2 * V5P_LINK),
    "sbook-126": lambda i, m: math.sqrt(4 * 2**20 / 28672 * 2 * i["chips"]),
    # GPUs
    "sbook-127": lambda i, m: flops_per_byte(H100),
    "sbook-128": lambda i, m: flops_per_byte(B200),
    "sbook-129": lambda i, m: matmul_s(64, 4096, 8192, B200) * 1e6,
    "sbook-130": lambda i, m: matmul_s(512, 4096, 8192, B200) * 1e6,
    "sbook-131": lambda i, m: 512 * 2**20 * 7 / 8 / i["bw"] * 1e3,
    "sbook-135": lambda i, m: link_critical_tokens(H100.flops_per_s("bf16"), H100.need("spec_scaleup_bytes_per_s", "")),
    "sbook-136": lambda i, m: link_critical_tokens(
        H100.flops_per_s("bf16"), 8 * H100.need("spec_scaleout_bytes_per_s", "")
    ),
    "sbook-137": lambda i, m: link_critical_tokens(
        H100.flops_per_s("bf16"), 8 * H100.need("spec_scaleout_bytes_per_s", ""), i["E_over_k"]
    ),
    "sbook-138": lambda i, m: link_critical_tokens(
        B200.flops_per_s("bf16"), 8 * B200.need("spec_scaleout_bytes_per_s", "")
    ),
    "sbook-139": lambda i, m: max_tensor_parallel(
        i["F"], H100.flops_per_s("bf16"), 8 * H100.need("spec_scaleout_bytes_per_s", "")
    ),
    "sbook-140": lambda i, m: training_days(
        6 * params_70b() * i["tokens"], i["gpus"], H100.flops_per_s("bf16"), i["mfu"]
    ),
    "sbook-142": lambda i, m: _all_to_all_slowdown(),
    # kipply
    "kipply-008": lambda i, m: i["peak"] / i["bw"],
    "kipply-009": lambda i, m: 52e9 * i["bytes"] / i["chips"] / i["bw"] * 1e3,
    # the lecture
    "lecture-002": lambda i, m: ridge_batch_rule(i["ratio"], i["sparsity"]),
    "lecture-003": lambda i, m: i["batch"] / (i["train_ms"] / 1e3),
    "lecture-004": lambda i, m: i["hbm"] / i["bw"] * 1e3,
    "lecture-005": lambda i, m: worst_wait_s(i["train_ms"] / 1e3) * 1e3,
    "lecture-011": lambda i, m: _rack_slowdown(),
    **{f"lecture-{n:03d}": (lambda i, m: tier_drain_s(i["tier"])) for n in (6, 7, 8, 9)},
    # DeepSeek's day: mean nodes are those that prefill and those that decode, each from its tokens and its rate.
    "deepseek-004": lambda i, m: mean_nodes(DAY.input, 73_700) + mean_nodes(DAY.output, 14_800),
    "deepseek-006": lambda i, m: tokens_per_day(226.75 - mean_nodes(DAY.output, 14_800), 73_700),
    "deepseek-007": lambda i, m: 0.563 * DAY.input,
    "deepseek-008": lambda i, m: tokens_per_day(226.75 - mean_nodes(DAY.input, 73_700), 14_800),
    "deepseek-012": lambda i, m: DAY.input / DAY_S / (226.75 - mean_nodes(DAY.output, 14_800)),
    "deepseek-013": lambda i, m: DAY.output / DAY_S / (226.75 - mean_nodes(DAY.input, 73_700)),
    "deepseek-005": lambda i, m: usd_per_day(i["nodes"], chips_per_node=8, usd_per_chip_hour=i["usd_gpu_h"]),
    "deepseek-014": lambda i, m: revenue_usd(DAY, usd_hit=i["in_hit"], usd_miss=i["in_miss"], usd_output=i["out"]),
    "deepseek-015": lambda i, m: margin(
        revenue_usd(DAY, usd_hit=0.14, usd_miss=0.55, usd_output=2.19),
        usd_per_day(226.75, chips_per_node=8, usd_per_chip_hour=2.0),
    ),
    "deepseek-018": lambda i, m: _dispatch_combine_us(i["bw"], i),
    "deepseek-019": lambda i, m: i["layers"] * i["micro"] * _dispatch_combine_us(5e10) / 1e3,
    "deepseek-020": lambda i, m: 1e6 / (61 * 2 * _dispatch_combine_us(i["bw"])),
    "deepseek-021": lambda i, m: _dispatch_combine_us(i["bw"]),
    "deepseek-022": lambda i, m: 61 * 2 * _dispatch_combine_us(i["bw"]) / 1e3,
    "deepseek-023": lambda i, m: 1e6 / (61 * 2 * _dispatch_combine_us(i["bw"])),
    "deepseek-024": lambda i, m: kv_bytes_per_token(model_spec("deepseek-v3")) / 1e3,
    "deepseek-025": lambda i, m: 2 * 80 * 8 * 128 * 2.0 / 1e3,
    "deepseek-026": lambda i, m: kv_bytes_per_token(model_spec("llama-3.1-405b")) / 1e3,
    "deepseek-027": lambda i, m: train_flops_per_token(model_spec(i["model"]), i["seq"]) / 1e9,
    "deepseek-028": lambda i, m: train_flops_per_token(model_spec(i["model"]), i["seq"]) / 1e9,
    "deepseek-029": lambda i, m: Acceptance.constant(0.8, 1).tokens_per_step,
    **{f"train-megatron-{n:03d}": megatron for n in range(9, 21)},
    **{f"expert-touch-{n:03d}": (lambda i, m: distinct_experts(i["E"], i["k"], i["batch"])) for n in (3, 5, 7)},
    "epoch-010": lambda i, m: shape_of(model_spec("mixtral-8x22b")).total_params,
    "epoch-011": lambda i, m: shape_of(model_spec("mixtral-8x22b")).active_params,
}


def _dispatch_combine_us(bandwidth: float, inputs: Inputs | None = None) -> float:
    """32 tokens to 9 experts, 7000 wide, a byte out (fp8) and two back (bf16)."""
    given = inputs or {"tokens": 32, "experts": 9, "hidden": 7000}
    per_pair = given["hidden"] * (bytes_per_value("fp8") + bytes_per_value("bf16"))
    return given["tokens"] * given["experts"] * per_pair / bandwidth * 1e6


def _all_to_all_slowdown() -> float:
    inside = all_to_all(1e9, 8, H100, Layout(ep=8, tp=8), 1.0)[1]
    across = all_to_all(1e9, 16, H100, Layout(ep=16, tp=16), 1.0)[1]
    return across / inside


def _rack_slowdown() -> float:
    rack = accelerator("gb300")
    return rack.need("spec_scaleup_bytes_per_s", "") / rack.need("spec_scaleout_bytes_per_s", "")


# Where the source rounds or errs on the way: why, its number from that slip, and the right one, which is asserted to differ.
SLIPS: dict[str, tuple[str, Callable[[], float], Callable[[], float]]] = {
    "sbook-016": (
        "the book rounds 2 x 4096 x 16384 to 1.3e8 FLOPs a row; exact is 3 % lower",
        lambda: 4096 * 16384 / 8.1e11 / (1.3e8 / 3.94e14 - (4096 + 16384) / 8.1e11),
        lambda: critical_rows(4096, 16384, 3.94e14, 8.1e11, 1.0, 1.0, 1.0),
    ),
    "sbook-022": (
        "the book cuts 1.395 ms off after a digit",
        lambda: math.floor(2 * 8 * 131072.0**2 / 1.97e14 * 1e4) / 10,
        lambda: 2 * 8 * 131072.0**2 / V5E.flops_per_s("bf16") * 1e3,
    ),
    "sbook-027": (
        "the book rounds D = 4096 to 4e3 and leaves the embeddings out",
        lambda: 64 * 16 * 4e3**2,
        lambda: classic_params(64, 4096, 4 * 4096, 32, 32, 128, 32000),
    ),
    "sbook-095": (
        "the book leaves 68 GB on eight chips of 16 that hold 70; 58 are left",
        lambda: 68e9 / (kv_70b("fp8") * 8192),
        lambda: math.floor(sequences_70b("int8")),
    ),
    "sbook-098": (
        "the book divides its misprinted 45 GB of int4 weights by a sequence's cache, not the memory they leave",
        lambda: 45e9 / (0.5 * kv_70b("fp8") * 8192),
        lambda: math.floor(sequences_70b("int4")),
    ),
    "sbook-102": (
        "follows from the 52 sequences of 095", lambda: rate_70b(52, "int8", 1), lambda: qps_70b("int8", False),
    ),
    "sbook-104": (
        "follows from the 67 sequences of 098", lambda: rate_70b(67, "int4", 1), lambda: qps_70b("int4", False),
    ),
    **{
        case: (
            "the book doubles the slice, takes 161 sequences for the 138 that fit, and keeps them for every type",
            lambda dtype=dtype: rate_70b(161, dtype, 2), lambda dtype=dtype: qps_70b(dtype, True),
        )
        for case, dtype in (("sbook-101", "bf16"), ("sbook-103", "int8"), ("sbook-105", "int4"))
    },
    "sbook-108": (
        "the book cuts 4.77 us off",
        lambda: math.floor(2 * 64 * 8192 * 28672 / (32 * 1.97e14) * 1e6),
        lambda: 2 * 64 * 8192 * 28672 / (32 * V5E.flops_per_s("bf16")) * 1e6,
    ),
    "sbook-111": (
        "the book feeds 32 sequences into its sum although the batch it names is 43: four prefill servers, not three",
        lambda: 0.91 * 32 / (512 * 0.019),
        lambda: 0.91 * 43 / (512 * 0.019),
    ),
    "expert-touch-001": (
        "a count over positions that repeat an expert; one token of top-8 routing visits eight different ones",
        lambda: 7.0,
        lambda: distinct_experts(256, 8, 1.0),
    ),
}  # fmt: skip

# Asserted by a test of its own below.
APART = {
    "sbook-080",
    "kipply-007",
    "lecture-001",
    "lecture-010",
    "deepseek-001",
    "deepseek-002",
    "deepseek-016",
    "deepseek-017",
}

NOT_COMPUTED = {
    r"sbook-134": "the bandwidth the source fits its own collectives with, between the peak and the 370 GB/s it measures",
    r"sbook-141": "sends to a rank that hosts several of a token's experts merged into one; the model counts one an expert, as "
    "low-latency dispatch sends them",
    r"lecture-012": "a share of one company's traffic, whose volume the source does not state",
    r"deepseek-(003|009|010|011)": "observations that nothing else published determines: nodes at the peak hour, users' speed, mean context",
    r"deepseek-04[1-3]": "throughput of one engine version under a load whose batch, output length and links are not stated",
    r"deepseek-044": "a price a blog derives from 041 to 043",
    r"llmservingsim-\d+": "means over a request trace (arrivals, lengths) that the case does not state; the waits are 99 % queue",
    r"aic-(mixstep|fail)-\d+": "neither model, chip and layout together nor the lengths are stated",
    r"aic-readme-\d+": "forecasts of another planner, not answers",
    r"distserve-00[45]": "best rate and layout under a goodput limit that is not stated",
    r"inferencex-\d+": "the chip is not stated",
    r"tco-01[0-7]": "read from charts of best submissions; lengths, layout or engine are not stated",
    r"expert-touch-009": "one kernel's median whose batch and shape are not stated",
    r"epoch-00[1-9]": "forecasts of another planner, on fractions of a GPU, without overheads or at prices not stated",
    r"epoch-01[2-5]": "a service's speed and price in the market: no chip, batch or layout is known",
}  # fmt: skip


@pytest.mark.parametrize("case", [c for c in cases() if c["case_id"] in COMPUTED], ids=lambda c: c["case_id"])
def test_worked_answer(case: dict[str, str]) -> None:
    got = COMPUTED[case["case_id"]](inputs_of(case), case["metric"])
    assert got == pytest.approx(float(case["expected"]), rel=tolerance_of(case)), case["notes"]


@pytest.mark.parametrize("case_id", SLIPS)
def test_slip_of_the_source_is_understood_and_not_made(case_id: str) -> None:
    reason, slipped, exact = SLIPS[case_id]
    case = case_of(case_id)
    assert slipped() == pytest.approx(float(case["expected"]), rel=tolerance_of(case)), reason
    assert exact() != pytest.approx(slipped(), rel=0.02)


def test_every_case_is_computed_or_named() -> None:
    sources = (COMPUTED, SLIPS, APART, MEASURED)
    for case in cases():
        ident = case["case_id"]
        named = [pattern for pattern in NOT_COMPUTED if re.fullmatch(pattern, ident)]
        times = sum(ident in source for source in sources) + len(named)
        assert times == 1, f"{ident}: computed or named {times} times"
    for pattern in NOT_COMPUTED:
        assert any(re.fullmatch(pattern, case["case_id"]) for case in cases()), f"{pattern} names no case"


def test_known_errata_are_not_reproduced() -> None:
    assert weight_bytes(LLAMA70, Precision(weights="int4", head="int4")) / 1e9 == pytest.approx(
        36.4, rel=0.03
    )  # the text prints 45
    chips = (10 * params_70b() + 2.0 * 8192 * 4e6 * 4 * 80) / V5P.need("spec_memory_bytes", "")
    assert chips == pytest.approx(225, rel=0.03) and abs(chips - 171) > 40  # a later line says 171


def test_cache_left_on_a_slice_is_the_same_in_every_type() -> None:
    """Weights, cache and slice all halve from bf16 to int8 to int4, so 43 sequences fit each time, and 138 on twice the chips."""
    assert [math.floor(sequences_70b(dtype, 2)) for dtype in ("bf16", "int8", "int4")] == [138, 138, 138]
    assert [math.floor(sequences_70b(dtype)) for dtype in ("bf16", "int8", "int4")] == [43, 43, 43]
    assert qps_70b("int8", False) == pytest.approx(2 * qps_70b("bf16", False))


def test_the_useful_tensor_parallelism_the_book_gives_for_v5e_is_v5p_s() -> None:
    """F / 2550 is 4.59e14 over two links of 90 GB/s; the chip it is stated for has 1.97e14 over two of 45: F / 2189."""
    divisor = float(case_of("sbook-080")["expected"].split("/")[1])
    width = inputs_of(case_of("sbook-080"))["F"]
    assert max_tensor_parallel(width, V5P.flops_per_s("bf16"), 2 * V5P_LINK) == pytest.approx(width / divisor, rel=0.05)
    assert max_tensor_parallel(width, V5E.flops_per_s("bf16"), 2 * V5E_LINK) == pytest.approx(width / 2189, rel=0.01)


@pytest.mark.parametrize(("layers", "width"), [(40, 5120), (12, 768)])
def test_cache_of_multi_head_attention_by_formula(layers: int, width: int) -> None:
    spec = dense_model("mha", layers=layers, d_model=width, heads=width // 64, vocab=1000)
    formula = case_of("kipply-007")["expected"]
    assert formula == "2*2*L*d"
    assert kv_bytes_per_token(spec, "fp16") == 2 * 2 * layers * width


@pytest.mark.parametrize("batch", [300.0, 4096.0, 20000.0])
def test_the_lecture_s_step_time_is_the_floor(batch: float) -> None:
    """max(B N_active / FLOPs, (N_total + B ctx kv) / BW) for a batch that reaches every expert: two bytes and two FLOPs a weight."""
    assert case_of("lecture-001")["expected"] == "max(B*N_active/FLOPs,(N_total+B*ctx*kv)/BW)"
    spec, context = model_spec("qwen3-235b-a22b"), 100.0
    shape = shape_of(spec)
    step = step_cost(spec, H100, Layout(), Precision(), StepBatch.decode(batch, context), ROOFLINE)
    compute_s = 2 * batch * shape.active_params / H100.flops_per_s("bf16")
    weights = 2 * (shape.total_params - shape.embedding_params)  # the table of embeddings is looked up, not read
    memory_s = (weights + batch * context * kv_bytes_per_token(spec)) / H100.need("spec_memory_bytes_per_s", "")
    assert step.floor_s == pytest.approx(max(compute_s, memory_s), rel=0.03)


def test_crossover_at_200k_is_about_two_kilobytes_a_token() -> None:
    case = case_of("lecture-010")
    ratio = inputs_of(case)
    price = ListPrice(
        vendor="v", model="m", input_usd_per_mtok=2.0, output_usd_per_mtok=12.0, cached_input_usd_per_mtok=0.2, long_threshold_tokens=200_000,
        long_input_usd_per_mtok=2.0 * ratio["in_ratio"], long_output_usd_per_mtok=12.0 * ratio["out_ratio"],
    )  # fmt: skip
    active = Assumption(name="active_params", low=1e11, high=1e11, unit="params", why="stated")
    found = infer_from_price(price, defaults([H100, B200]), (), active_params=active)
    crossover = next(item for item in found.inferences if item.name.startswith("KV bytes per token (crossover)"))
    assert crossover.middle == pytest.approx(float(case["expected"]), rel=tolerance_of(case))
    assert crossover.low < float(case["expected"]) < crossover.high


@pytest.mark.parametrize(
    ("case_id", "layout", "routed_per_chip"),
    [
        ("deepseek-001", Layout(dp_attention=32, ep=32), 9), ("deepseek-002", Layout(dp_attention=144, ep=144), 2),
        ("deepseek-016", Layout(tp=4, dp_attention=8, ep=32), 8 + 1), ("deepseek-017", Layout(tp=4, dp_attention=80, ep=320), 1),
    ],
)  # fmt: skip
def test_deepseek_s_layouts_can_be_stated_and_hold_their_model(
    case_id: str, layout: Layout, routed_per_chip: int
) -> None:
    """Degrees as published; 32 redundant experts (64 chips of them in the largest) are what the layouts add to the 256 of the model."""
    text, spec, chip = case_of(case_id)["expected"], model_spec("deepseek-v3"), accelerator("h800")
    for degree in re.findall(r"EP(\d+)", text):
        assert int(degree) == layout.ep
    nodes = int(re.search(r"(\d+) nodes", text).group(1))  # type: ignore[union-attr]
    assert layout.chips == nodes * 8
    redundant = {"deepseek-001": 32, "deepseek-002": 32, "deepseek-016": 32, "deepseek-017": 64}[case_id]
    assert (256 + redundant) / layout.ep == routed_per_chip
    seats = max_sequences(
        spec, Precision.named("fp8"), layout, chip, context=4989.0, step_tokens=float(layout.dp_attention)
    )
    assert seats > layout.dp_attention
