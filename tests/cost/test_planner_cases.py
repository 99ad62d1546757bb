"""Worked answers of other people, computed here from the catalogue and the cost functions, at their stated tolerance.

Each entry computes its number; nothing is copied from the table. Cases that are prose, need a machine nobody described, or are
forecasts of another planner are named in `NOT_COMPUTED` with the reason, so that a new case cannot be overlooked.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost import (
    ROOFLINE,
    Layout,
    Precision,
    StepBatch,
    kv_bytes_per_token,
    shape_of,
    step_cost,
    weight_bytes,
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
from ridgepoint.cost.torus import all_gather_s, send_s
from ridgepoint.cost.training import classic_activation_bytes, train_flops_per_token, training_days

DATA = Path(os.environ.get("RIDGEPOINT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
CASES_FILE = DATA / "planner_cases.csv"
pytestmark = pytest.mark.skipif(not CASES_FILE.is_file(), reason="no shared measured tables here")

GIB = 2.0**30
V5E, V5P, V6E = accelerator("tpu-v5e"), accelerator("tpu-v5p"), accelerator("tpu-v6e")
H100, B200, A100 = accelerator("h100"), accelerator("b200"), accelerator("a100-sxm-80")
LLAMA70 = model_spec("llama-3.1-70b")
V5E_LINK, V5P_LINK = 4.5e10, 9e10  # one way, one link
Inputs = dict[str, Any]


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
    # DeepSeek's day
    "deepseek-005": lambda i, m: i["nodes"] * 8 * 24 * i["usd_gpu_h"],
    "deepseek-014": lambda i, m: 342e9 * i["in_hit"] / 1e6 + 266e9 * i["in_miss"] / 1e6 + 168e9 * i["out"] / 1e6,
    "deepseek-015": lambda i, m: (562027 - 226.75 * 8 * 24 * 2) / (226.75 * 8 * 24 * 2),
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


# Where the source rounds on the way, the exact answer is asserted beside it.
ROUNDED: dict[str, tuple[str, Callable[[], float], Callable[[], float]]] = {
    "sbook-016": (
        "the book rounds 2 x 4096 x 16384 to 1.3e8 FLOPs a row; exact is 3 % lower",
        lambda: 4096 * 16384 / 8.1e11 / (1.3e8 / 3.94e14 - (4096 + 16384) / 8.1e11),
        lambda: critical_rows(4096, 16384, 3.94e14, 8.1e11, 1.0, 1.0, 1.0),
    ),
    "sbook-111": (
        "the book feeds 32 sequences into its sum although the batch it names is 43: four prefill servers, not three",
        lambda: 0.91 * 32 / (512 * 0.019),
        lambda: 0.91 * 43 / (512 * 0.019),
    ),
    "sbook-027": (
        "the book rounds D = 4096 to 4e3 and leaves the embeddings out",
        lambda: 64 * 16 * 4e3**2,
        lambda: classic_params(64, 4096, 4 * 4096, 32, 32, 128, 32000),
    ),
}

NOT_COMPUTED = {
    r"sbook-(022|025|080|106|107|108|132|133|134|141)": "depends on an unstated shape, is prose, or is a measured collective",
    r"sbook-(095|098|10[1-5])": "the source's free memory does not follow from its own slices: asserted apart, below",
    r"kipply-00[1-7]": "a 2022 engine measured at batch 1 on A100, or prose",
    r"lecture-(001|006|007|008|009|010|012)": "prose, or memory tiers and price inference (tested where those live)",
    r"deepseek-(00[1-4]|00[6-9]|01[0-3]|016|017|03\d|04[0-4])": "reported facts of a day or measured kernels: nothing to compute",
    r"train-megatron-00[1-8]": "measured iteration times of one codebase",
    r"(mamf|gemm-a100|llmservingsim|aic-mixstep|aic-fail|aic-readme|splitwise|splitwise-power|distserve|tco|inferencex)-\d+": (
        "measurements or forecasts of particular machines and engines, or list prices"
    ),
    r"expert-touch-(001|002|004|006|008|009)": "achieved bandwidth of kernels; and 7 distinct of 8 chosen, which one token cannot do",
    r"epoch-(00[1-9]|01[2-5])": "forecasts of another planner, or market observations",
    r"splitwise-bad-\d+": "asserted below: the gate must refuse them",
}  # fmt: skip


def cases() -> list[dict[str, str]]:
    if not CASES_FILE.is_file():
        return []
    with CASES_FILE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", [c for c in cases() if c["case_id"] in COMPUTED], ids=lambda c: c["case_id"])
def test_worked_answer(case: dict[str, str]) -> None:
    got = COMPUTED[case["case_id"]](json.loads(case["inputs"]), case["metric"])
    tolerance = float(case["rel_tol"]) if case["rel_tol"] else 0.0
    assert got == pytest.approx(float(case["expected"]), rel=max(tolerance, 1e-9)), case["notes"]


@pytest.mark.parametrize("case_id", ROUNDED)
def test_rounding_of_the_source_is_understood(case_id: str) -> None:
    case = next(c for c in cases() if c["case_id"] == case_id)
    reason, rounded, exact = ROUNDED[case_id]
    assert rounded() == pytest.approx(float(case["expected"]), rel=float(case["rel_tol"])), reason
    assert exact() != pytest.approx(rounded(), rel=0.02)


def test_every_case_is_computed_or_named() -> None:
    for case in cases():
        ident = case["case_id"]
        named = any(re.fullmatch(pattern, ident) for pattern in NOT_COMPUTED)
        assert ident in COMPUTED or ident in ROUNDED or named, f"{ident}: neither computed nor named in NOT_COMPUTED"


def test_known_errata_are_not_reproduced() -> None:
    assert weight_bytes(LLAMA70, Precision(weights="int4", head="int4")) / 1e9 == pytest.approx(
        36.4, rel=0.03
    )  # the text prints 45
    chips = (10 * params_70b() + 2.0 * 8192 * 4e6 * 4 * 80) / V5P.need("spec_memory_bytes", "")
    assert chips == pytest.approx(225, rel=0.03) and abs(chips - 171) > 40  # a later line says 171


def test_cache_left_on_a_slice_is_the_same_in_every_type() -> None:
    """Weights, cache and slice all halve from bf16 to int8 to int4, so 43 sequences fit each time. The book prints 43, 52 and
    67 (the last from the 45 GB its erratum is about), and rates built on them; those are not reproduced."""
    assert [math.floor(sequences_70b(dtype)) for dtype in ("bf16", "int8", "int4")] == [43, 43, 43]
    assert qps_70b("int8", False) == pytest.approx(2 * qps_70b("bf16", False))


@pytest.mark.parametrize("case", [c for c in cases() if c["group"] == "splitwise-bad"], ids=lambda c: c["case_id"])
def test_impossible_measurement_is_below_the_floor(case: dict[str, str]) -> None:
    """64 prompts of 512 tokens on two chips: the 70B's FLOPs alone take longer than the row claims."""
    inputs = json.loads(case["inputs"])
    chip = A100 if inputs["chip"].startswith("a100") else H100
    claimed_s = float(re.search(r"prompt=([\d.]+)ms", case["expected"]).group(1)) / 1e3  # type: ignore[union-attr]
    batch = StepBatch.prefill(float(inputs["batch"]), float(inputs["prompt"]))
    floor = step_cost(LLAMA70, chip, Layout(tp=inputs["tp"]), Precision(), batch, ROOFLINE).floor_s
    assert claimed_s < floor
