"""Number formats: bytes per value with the scales that travel along, and the arithmetic each pair of operands runs in.

A format's bytes include its block scales (mxfp4: one 8-bit scale per 32 values; nvfp4: one fp8 scale per 16), because they
cross the same wires. The matrix units work in the wider of the two operands' types; what a chip lacks is done in the next
wider type it has (`Accelerator.compute_type`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Format:
    """`bits` of one value, one scale of `scale_bits` per `block` values; `arithmetic` is the matrix-unit type."""

    bits: float
    scale_bits: float
    block: int
    arithmetic: str

    @property
    def bytes_per_value(self) -> float:
        return (self.bits + self.scale_bits / self.block) / 8


FORMATS: dict[str, Format] = {
    "fp32": Format(bits=32, scale_bits=0, block=1, arithmetic="fp32"),
    "fp16": Format(bits=16, scale_bits=0, block=1, arithmetic="fp16"),
    "bf16": Format(bits=16, scale_bits=0, block=1, arithmetic="bf16"),
    # bf16 to the bit as the CPU kernels keep it: of the exponents that lie together all but a few are among sixteen.
    "bf16_12": Format(bits=12, scale_bits=8, block=64, arithmetic="bf16"),
    "fp8": Format(
        bits=8, scale_bits=0, block=1, arithmetic="fp8"
    ),  # one scale per tensor or channel: nothing per value
    "fp8_block": Format(bits=8, scale_bits=32, block=128 * 128, arithmetic="fp8"),  # DeepSeek's 128x128 blocks
    "int8": Format(bits=8, scale_bits=16, block=4096, arithmetic="int8"),  # one scale per output channel
    "int8_g128": Format(bits=8, scale_bits=16, block=128, arithmetic="int8"),
    "int8_g32": Format(bits=8, scale_bits=16, block=32, arithmetic="int8"),
    "int4": Format(bits=4, scale_bits=16, block=128, arithmetic="int4"),  # GPTQ/AWQ groups of 128
    "int4_g32": Format(bits=4, scale_bits=16, block=32, arithmetic="int4"),
    "mxfp4": Format(bits=4, scale_bits=8, block=32, arithmetic="fp4"),
    "nvfp4": Format(bits=4, scale_bits=8, block=16, arithmetic="fp4"),
}

_WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1, "int4": 0, "fp4": 0}


NARROW_TYPES = ("fp8", "int8", "fp4")  # of matrix units: software reaches less of their peaks than of 16-bit ones


def number_format(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"unknown number format {name!r}", hint="allowed: " + ", ".join(FORMATS))
    return FORMATS[name]


def bytes_per_value(name: str) -> float:
    return number_format(name).bytes_per_value


def matmul_type(weights: str, activations: str) -> str:
    """The type the matrix units multiply in: the wider operand's. 4-bit integers are always unpacked to the activations' type."""
    first, second = number_format(weights).arithmetic, number_format(activations).arithmetic
    wide = first if _WIDTH[first] >= _WIDTH[second] else second
    return wide if wide != "int4" else "int8"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Formats of one deployment. `weights`: attention and dense feed-forward; `experts`: routed and shared experts;
    `head`: output head, embeddings, router; `activations`: what matrices are multiplied with; `attention`: the arithmetic
    of scores and values; `dispatch` and `combine`: what crosses the expert-parallel wires on the way out and back."""

    weights: str = "bf16"
    experts: str = "bf16"
    kv: str = "bf16"
    activations: str = "bf16"
    head: str = "bf16"
    attention: str = "bf16"
    dispatch: str = "bf16"
    combine: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("weights", "experts", "kv", "activations", "head", "attention", "dispatch", "combine"):
            number_format(getattr(self, name))

    @classmethod
    def named(cls, name: str) -> Precision:
        """The usual recipe by one word: `bf16`, `fp8` (fp8 weights and activations, bf16 KV), `int4` (weights only), ..."""
        if name not in RECIPES:
            raise ConfigError(f"unknown precision {name!r}", hint="allowed: " + ", ".join(RECIPES))
        return cls(**RECIPES[name])


RECIPES: dict[str, dict[str, str]] = {
    "fp32": dict.fromkeys(
        ("weights", "experts", "kv", "activations", "head", "attention", "dispatch", "combine"), "fp32"
    ),
    "fp16": dict.fromkeys(
        ("weights", "experts", "kv", "activations", "head", "attention", "dispatch", "combine"), "fp16"
    ),
    "bf16": {},
    "bf16_12": {"weights": "bf16_12", "experts": "bf16_12", "head": "bf16_12"},
    "fp8": {"weights": "fp8", "experts": "fp8", "activations": "fp8", "dispatch": "fp8"},
    "fp8_kv8": {"weights": "fp8", "experts": "fp8", "activations": "fp8", "dispatch": "fp8", "kv": "fp8"},
    "int8": {"weights": "int8", "experts": "int8", "activations": "int8"},
    "int4": {"weights": "int4", "experts": "int4"},
    "int4_a8": {
        "weights": "int4",
        "experts": "int4",
        "head": "int4",
        "activations": "int8",
    },  # what CPU kernels call int4-128-a8
    "mxfp4": {"experts": "mxfp4"},  # gpt-oss as released: experts in 4 bits, the rest in bf16
    "nvfp4": {"weights": "nvfp4", "experts": "nvfp4", "activations": "nvfp4", "dispatch": "fp8", "kv": "fp8"},
    "nvfp4_experts": {"weights": "fp8", "experts": "nvfp4", "activations": "fp8", "dispatch": "fp8", "kv": "fp8"},
}
