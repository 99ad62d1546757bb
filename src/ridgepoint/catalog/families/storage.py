"""How a checkpoint's numbers are stored when not plainly: read from `quantization_config`, decoded by the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
class Scheme:
    """Weights of `bits`: two's complement integers, or e2m1 with power-of-two scales. `group` inputs share a scale (0: a row)."""

    bits: int
    kind: Literal["int", "float"]
    group: int


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """compressed-tensors, weights only: `<weight>` in int8, or `<weight>_packed` (nibbles or bytes in int32, e2m1 in uint8),
    each with `<weight>_scale`. A checkpoint may use several schemes; the stored shapes say which one a tensor has."""

    schemes: tuple[Scheme, ...]


Storage = Fp8Blocks | Mxfp4 | Compressed


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


# compressed-tensors `format` -> (bits, type) of the weights it may hold
_FORMATS: dict[str, tuple[tuple[int, str], ...]] = {
    "int-quantized": ((8, "int"),),
    "naive-quantized": ((8, "int"),),
    "pack-quantized": ((4, "int"), (8, "int")),
    "mxfp4-pack-quantized": ((4, "float"),),
}
_HOLDS = {fmt: ", ".join(f"{bits}-bit {kind}" for bits, kind in held) for fmt, held in _FORMATS.items()}


def _compressed(q: dict[str, Any]) -> Compressed:
    if q.get("kv_cache_scheme") is not None:
        raise CheckpointError("compressed-tensors kv_cache_scheme is not supported; allowed: none")
    groups = q.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise CheckpointError("compressed-tensors config_groups is missing")
    return Compressed(schemes=tuple(_scheme(name, group, q.get("format")) for name, group in groups.items()))


def _scheme(name: str, group: dict[str, Any], whole_format: Any) -> Scheme:
    """One config group; its own `format` wins over the checkpoint's (which may be `mixed-precision`)."""
    fmt = group.get("format") or whole_format
    if fmt not in _FORMATS:
        raise CheckpointError(f"compressed-tensors format {fmt!r} is not supported; allowed: {', '.join(_FORMATS)}")
    if group.get("input_activations") is not None or group.get("output_activations") is not None:
        raise CheckpointError(
            f"compressed-tensors {name}: quantised activations are not supported; allowed: weights only"
        )
    weights = group.get("weights") or {}
    bits: Any = weights.get("num_bits")
    kind: Any = weights.get("type")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    got = (bits, kind, weights.get("symmetric"), strategy)
    if (bits, kind) not in _FORMATS[fmt] or got[2] is not True or strategy not in ("channel", "group"):
        raise CheckpointError(
            f"compressed-tensors {name}: weights {got} are not supported; allowed: {_HOLDS[fmt]}, symmetric, by channel or group"
        )
    if strategy == "group" and not (isinstance(size, int) and size > 0):
        raise CheckpointError(f"compressed-tensors {name}: group_size {size!r} is not supported; allowed: 1 and up")
    if weights.get("actorder") not in (None, "weight", "static"):
        raise CheckpointError(
            f"compressed-tensors {name}: actorder {weights['actorder']!r} is not supported; allowed: null, weight, static"
        )
    return Scheme(bits=bits, kind=kind, group=int(size or 0) if strategy == "group" else 0)
