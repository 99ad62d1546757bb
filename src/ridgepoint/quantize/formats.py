"""The formats a checkpoint can be written in, and the `quantization_config` that says so to every reader.

Decides codes, groups and layout by name; knows no tensors. The layouts are those other engines read: compressed-tensors
for integers and mxfp4, DeepSeek's block scales for fp8, gpt-oss's blocks for mxfp4 experts of that family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ridgepoint.errors import ConfigError
from ridgepoint.models.codes import Kind
from ridgepoint.models.stored import Packing

HEAD = "lm_head.weight"
BITS: dict[Kind, int] = {"int8": 8, "int4": 4, "fp4": 4, "fp8": 8}


@dataclass(frozen=True, kw_only=True)
class Format:
    """`group` inputs (0: the row) of `group_rows` outputs share a scale; `head` is what becomes of the output head."""

    name: str
    kind: Kind
    packing: Packing
    group: int
    group_rows: int = 1
    head: Literal["same", "int8", "plain"]


# Four bits cost the head, which every token multiplies with, most of what they cost the model: eight are left to it.
# Readers of fp8 and mxfp4 checkpoints expect the head plain.
FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format(name="int8", kind="int8", packing="bytes", group=0, head="same"),
        Format(name="int8-g128", kind="int8", packing="bytes", group=128, head="same"),
        Format(name="int4-g32", kind="int4", packing="int32", group=32, head="int8"),
        Format(name="int4-g128", kind="int4", packing="int32", group=128, head="int8"),
        Format(name="fp8-block", kind="fp8", packing="fp8 blocks", group=128, group_rows=128, head="plain"),
        Format(name="mxfp4", kind="fp4", packing="fp4 pairs", group=32, head="plain"),
    )
}
_PACKED_INT8 = Format(name="int8", kind="int8", packing="int32", group=0, head="same")
_GPT_OSS = Format(name="mxfp4", kind="fp4", packing="gpt-oss blocks", group=32, head="plain")


_COMPRESSED_NAMES: dict[Packing, str] = {
    "bytes": "int-quantized",
    "int32": "pack-quantized",
    "fp4 pairs": "mxfp4-pack-quantized",
}


def format_named(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is unknown; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(fmt: Format, tensor: str, *, family: str, stacked: bool) -> Format | None:
    """What the matrix `tensor` becomes in a checkpoint of `fmt`; None: it stays as it is."""
    if tensor == HEAD:
        return {"same": fmt, "int8": _PACKED_INT8, "plain": None}[fmt.head]
    if fmt.kind == "fp4" and family == "gpt_oss":
        return _GPT_OSS if stacked else None
    return fmt


def quantization_config(fmt: Format, family: str, kept: list[str], with_head: bool) -> dict[str, Any]:
    """`kept` are the modules with a matrix that stays plain; `with_head`: the head is among the quantised ones."""
    if fmt.kind == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [fmt.group_rows, fmt.group],
            "modules_to_not_convert": kept,
        }
    if fmt.kind == "fp4" and family == "gpt_oss":
        return {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    groups = {"group_0": _config_group(fmt, ["Linear"])}
    if with_head and fmt.head == "int8":
        groups["group_1"] = _config_group(_PACKED_INT8, [HEAD.removesuffix(".weight")])
    return {
        "quant_method": "compressed-tensors",
        "format": _COMPRESSED_NAMES[fmt.packing],
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": kept,
    }


def _config_group(fmt: Format, targets: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": BITS[fmt.kind],
        "type": "float" if fmt.kind == "fp4" else "int",
        "symmetric": True,
        "strategy": "group" if fmt.group else "channel",
        "group_size": fmt.group or None,
        "dynamic": False,
        "observer": "minmax",
    }
    if fmt.kind == "fp4":
        weights |= {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    # A group's own format: without one, readers of weights-only int8 expect it packed into words.
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": _COMPRESSED_NAMES[fmt.packing],
    }
