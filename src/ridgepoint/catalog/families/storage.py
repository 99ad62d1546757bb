"""How a checkpoint's numbers are stored when not plainly: read from `quantization_config`, decoded by the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Fp8Blocks:
    """e4m3 matrices, one float scale (`<weight>_scale_inv`) per block of rows x columns (DeepSeek-V3, MiniMax-M2)."""

    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Mxfp4:
    """gpt-oss experts: 4-bit e2m1 in blocks of 32 (`<weight>_blocks`) with power-of-two scales (`<weight>_scales`)."""


@dataclass(frozen=True, kw_only=True)
class Int8Channels:
    """compressed-tensors, weights only: int8 matrices with a scale (`<weight>_scale`) per row or per group of a row."""


Storage = Fp8Blocks | Mxfp4 | Int8Channels


def read_storage(c: ConfigReader) -> Storage | None:
    """None: plain tensors. An unknown or partly understood scheme is refused."""
    q = c.get("quantization_config", c.get("compression_config"))
    c.get("compression_config")
    if q is None:
        return None
    if not isinstance(q, dict):
        raise c.refuse("quantization_config", q, "an object")
    method = q.get("quant_method")
    if method == "fp8":
        return _fp8(q)
    if method == "mxfp4":
        if c.family != "gpt_oss":
            raise CheckpointError(f"quantization method 'mxfp4' is not supported for {c.family}; allowed: gpt_oss")
        return Mxfp4()
    if method == "compressed-tensors":
        return _compressed(q)
    raise CheckpointError(f"quantization method {method!r} is not supported; allowed: fp8, mxfp4, compressed-tensors")


def _fp8(q: dict[str, Any]) -> Fp8Blocks:
    block, fmt = q.get("weight_block_size"), q.get("fmt", "float8_e4m3fn")
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise CheckpointError(f"fp8 format {fmt!r} is not supported; allowed: e4m3")
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(b, int) and b > 0 for b in block)):
        raise CheckpointError(f"fp8 weight_block_size {block!r} is not supported; allowed: [rows, columns]")
    if q.get("activation_scheme", "dynamic") != "dynamic":
        raise CheckpointError(f"fp8 activation_scheme {q['activation_scheme']!r} is not supported; allowed: dynamic")
    return Fp8Blocks(rows=block[0], columns=block[1])


def _compressed(q: dict[str, Any]) -> Int8Channels:
    fmt = q.get("format")
    if fmt not in ("int-quantized", "naive-quantized"):
        raise CheckpointError(
            f"compressed-tensors format {fmt!r} is not supported; allowed: int-quantized, naive-quantized"
        )
    if q.get("kv_cache_scheme") is not None:
        raise CheckpointError("compressed-tensors kv_cache_scheme is not supported; allowed: none")
    groups = q.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError("compressed-tensors config_groups is missing")
    for name, group in groups.items():
        weights = group.get("weights") or {}
        got = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric"), weights.get("strategy"))
        if got[:3] != (8, "int", True) or got[3] not in ("channel", "group"):
            raise CheckpointError(
                f"compressed-tensors {name}: weights {got} are not supported; allowed: 8-bit symmetric int by channel or group"
            )
        if group.get("input_activations") is not None or group.get("output_activations") is not None:
            raise CheckpointError(
                f"compressed-tensors {name}: quantised activations are not supported; allowed: weights only"
            )
    return Int8Channels()
