"""Measured serving and energy rows as deployments the cost model understands, behind a plausibility and a physics gate.

Decides which rows can be true (by rule, never by name) and how a row's labels, with its benchmark's published recipe (`recipes`), map to a
layout, a precision and a load. Knows nothing of calibration. Data: the folder named by RIDGEPOINT_DATA, or ../shared/data beside the repository; `available()` says if it is there.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from recipes import AS_STATED, Recipe, Run, recipe
from ridgepoint.catalog.hardware import Accelerator, accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.catalog.spec import GqaSpec, MlaSpec, ModelSpec, MoeSpec
from ridgepoint.cost import Layout, Precision, StepBatch, step_cost
from ridgepoint.cost.calibration import ROOFLINE
from ridgepoint.errors import RidgepointError

# Public names of checkpoints whose shapes the catalogue holds under a shorter name.
CATALOGUE_NAME = {
    "deepseek-r1": "deepseek-v3", "deepseek-r1-0528": "deepseek-v3", "deepseek-v3.1": "deepseek-v3", "llama-3.3-70b": "llama-3.1-70b",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b", "minimax-m2": "minimax-m2.5", "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-scout-17b-16e": "llama-4-scout", "nvidia-nemotron-nano-9b-v2": "nemotron-nano-9b-v2",
}  # fmt: skip
_SUFFIXES = re.compile(r"(-instruct|-thinking|-it|-fp8|-2507|-base|-nvfp4|-fp4|-bf16|-v0\.1)+(?=$|-)")


def data_dir() -> Path:
    named = os.environ.get("RIDGEPOINT_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def available() -> bool:
    return (data_dir() / "measured_serving.csv").is_file()


def read(name: str) -> list[dict[str, str]]:
    with (data_dir() / name).open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Row:
    """One measured point. `refused` names the rule that makes it implausible, or is None."""

    ident: str
    model: str
    spec: ModelSpec
    hardware: Accelerator
    engine: str
    version: str
    precision_name: str
    precision: Precision
    layout: Layout
    concurrency: float
    input_tokens: float
    output_tokens: float
    measure_tpot_s: float
    measure_ttft_s: float
    refused: str | None
    recipe: Recipe = AS_STATED
    measure_w: float = 0.0
    measure_j_per_token: float = 0.0
    task: str = ""

    @property
    def deployment(self) -> tuple[str, str, str, str]:
        return (self.model, self.hardware.id, self.precision_name, self.engine)

    @property
    def cost_chip_s(self) -> float:
        """Measured chip-seconds per output token."""
        return float(self.layout.chips) * self.measure_tpot_s / self.concurrency


def short_name(path: str) -> str:
    name = path.split("/")[-1].lower().removeprefix("meta-")
    name = _SUFFIXES.sub("", name)
    return CATALOGUE_NAME.get(name, name)


def precision_of(model: str, label: str, engine: str, hardware: Accelerator) -> Precision:
    """What the label means on the wire. Blank is bf16. gpt-oss has 4-bit experts and bf16 elsewhere however it is labelled;
    an nvfp4 checkpoint keeps attention in bf16 (the published recipes quantise experts and dense feed-forward)."""
    native_fp8, native_fp4 = "fp8" in hardware.spec_flops_per_s, "fp4" in hardware.spec_flops_per_s
    kv = "fp8" if engine == "trtllm" and label in ("fp8", "fp4") else "bf16"
    if model.startswith("gpt-oss"):
        return Precision(experts="mxfp4", activations="fp8" if native_fp4 else "bf16", kv=kv)
    if label in ("", "bf16", "bfloat16", "float16", "fp16"):
        return Precision()
    if label in ("fp8", "fp8_block"):
        return Precision(
            weights="fp8", experts="fp8", activations="fp8" if native_fp8 else "bf16", dispatch="fp8", kv=kv
        )
    if label in ("fp4", "nvfp4"):
        return Precision(
            weights="bf16", experts="nvfp4", activations="nvfp4" if native_fp4 else "bf16", dispatch="fp8", kv=kv
        )
    if label in ("int4", "w4a16"):
        return Precision(weights="bf16" if "kimi" in model else "int4", experts="int4")
    raise ValueError(f"unknown precision label {label!r}")


def _heads(spec: ModelSpec) -> int:
    for layer in spec.layers:
        if isinstance(layer.mixer, GqaSpec | MlaSpec):
            return layer.mixer.num_heads
    return 1


def serving_rows() -> tuple[list[Row], Counter[str]]:
    """Every row the catalogue can express, implausible ones marked, and a count of what was left out by reason."""
    rows: list[Row] = []
    left: Counter[str] = Counter()
    for raw in read("measured_serving.csv"):
        model = short_name(raw["model_path"])
        try:
            spec, hardware = model_spec(model), accelerator(raw["system"])
            precision = precision_of(model, raw["precision"], raw["backend"], hardware)
        except (RidgepointError, ValueError) as error:
            left[str(error)] += 1
            continue
        is_moe = any(isinstance(layer.ffn, MoeSpec) for layer in spec.layers)
        degrees = {name: int(raw[name] or 0) for name in ("tp_size", "pp_size", "moe_tp_size", "moe_ep_size")}
        dp = int(raw["attention_dp_size"] or 1)
        batch = int(raw["batch_size"])
        found = re.search(r"concurrency=(\d+)", raw["silicon_data_source"])
        concurrency = int(found.group(1)) if found else batch * max(dp, 1)
        refused = _implausible(degrees, dp, is_moe, _heads(spec), hardware, batch, concurrency)
        layout = _face_value(degrees, dp, is_moe)
        run = Run(
            raw["silicon_data_source"], model, hardware.id, raw["backend"], raw["backend_version"], raw["precision"], degrees["tp_size"], dp,
            int(raw["isl"]), concurrency,
        )  # fmt: skip
        how = recipe(run)
        if how.expert_parallel:
            layout = replace(layout, ep=layout.stage_chips)
        if how.kv:
            precision = replace(precision, kv=how.kv)
        if how.draft_tokens is None:
            refused = refused or "recipes of this image ran both with and without drafting"
        rows.append(
            Row(
                ident=raw["id"], model=model, spec=spec, hardware=hardware, engine=raw["backend"], version=raw["backend_version"],
                precision_name=raw["precision"] or "bf16", precision=precision, layout=layout, concurrency=float(concurrency),
                input_tokens=float(raw["isl"]), output_tokens=float(raw["osl"]), measure_tpot_s=float(raw["silicon_tpot_ms"]) / 1e3,
                measure_ttft_s=float(raw["silicon_ttft_ms"]) / 1e3, refused=refused, recipe=how,
            )
        )  # fmt: skip
    return rows, left


def _face_value(degrees: dict[str, int], dp: int, is_moe: bool) -> Layout:
    """The layout a row states; an impossible degree reads as 1, an expert degree that fits nowhere as the nearest divisor."""
    tp, pp = max(degrees["tp_size"], 1), max(degrees["pp_size"], 1)
    chips = tp * max(dp, 1)
    wanted = max(degrees["moe_ep_size"], 1) if is_moe else 1
    ep = max(divisor for divisor in range(1, wanted + 1) if chips % divisor == 0)
    return Layout(tp=float(tp), dp_attention=float(max(dp, 1)), ep=float(ep), pp=float(pp))


def _implausible(
    degrees: dict[str, int], dp: int, is_moe: bool, heads: int, hardware: Accelerator, batch: int, concurrency: int
) -> str | None:
    tp, pp, moe_tp, ep = degrees["tp_size"], degrees["pp_size"], degrees["moe_tp_size"], degrees["moe_ep_size"]
    domain = hardware.scaleup_domain_chips or 1
    if min(tp, dp, moe_tp, ep) < 1:
        return "a degree is zero"
    if tp > 1 and dp > 1:
        return "tp and dp both given for one set of chips"
    if tp * dp * max(pp, 1) > domain:
        return "more chips than the scale-up domain has"
    if heads % tp:
        return "tp does not divide the attention heads"
    if is_moe and moe_tp * ep != tp * dp:
        return "expert degrees do not match the chips"
    if concurrency not in (batch, batch * dp):
        return "batch and concurrency disagree"
    return None


def below_floor(row: Row) -> bool:
    """Physics gate: faster than peak bandwidth and peak FLOP/s allow, with the smallest cache any engine keeps and perfect routing.

    A batch larger than memory holds is cut to what fits (some clients wait), which only lowers the floor."""
    from ridgepoint.cost.memory import max_sequences

    precision = replace(row.precision, kv="fp8") if row.precision.kv == "bf16" else row.precision
    context = row.input_tokens + 0.5 * row.output_tokens
    seats = max_sequences(row.spec, precision, row.layout, row.hardware, context=context, step_tokens=1.0)
    batch = StepBatch.decode(max(min(row.concurrency, seats), 1.0), context)
    return row.measure_tpot_s < step_cost(row.spec, row.hardware, row.layout, precision, batch, ROOFLINE).floor_s


def gated(rows: Iterable[Row]) -> tuple[list[Row], Counter[str]]:
    """(rows that may be true, refusals by reason)."""
    kept: list[Row] = []
    refused: Counter[str] = Counter()
    for row in rows:
        reason = row.refused or ("below the physical floor" if below_floor(row) else None)
        if reason:
            refused[reason] += 1
        else:
            kept.append(row)
    return kept, refused
