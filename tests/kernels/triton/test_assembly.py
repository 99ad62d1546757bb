"""The assembly that widens four-bit codes, executed here instruction by instruction: what no interpreter of Triton's does."""

from __future__ import annotations

import re

import pytest
import torch

from ridgepoint.kernels.gemm import dequantise

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
WORDS = [0x01234567, 0x89ABCDEF, 0xFEDCBA98, 0x76543210, 0x00000000, 0xFFFFFFFF, 0x80000001]


def bf16_bits(value: float) -> int:
    return int(torch.tensor(value).bfloat16().view(torch.int16)) & 0xFFFF


def bf16_value(bits: int) -> torch.Tensor:
    return torch.tensor(bits - (bits >> 15 << 16), dtype=torch.int16).view(torch.bfloat16)


def halves(register: int) -> tuple[int, int]:
    return register & 0xFFFF, register >> 16


def execute(assembly: str, word: int, scale: int) -> list[int]:
    """The eight outputs' bits. Registers are 32-bit; every instruction that is used is defined here and no other."""
    registers: dict[str, int] = {"$8": word, "$9": scale}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    for line in re.findall(r"(?:^|[{;\n])\s*([a-z][\w.]* [^;]*);", assembly):
        name, _, rest = line.partition(" ")
        operands = re.findall(r"\{[^}]*\}|[^,\s]+", rest)
        if name == "mov.b32" and operands[0].startswith("{"):
            low, high = re.findall(r"[$\w]+", operands[0])
            registers[low], registers[high] = halves(value(operands[1]))
        elif name == "mov.b32" and operands[1].startswith("{"):
            low, high = re.findall(r"[$\w]+", operands[1])
            registers[operands[0]] = value(low) | value(high) << 16
        elif name == "mov.b32":
            registers[operands[0]] = value(operands[1])
        elif name == "shl.b32":
            registers[operands[0]] = value(operands[1]) << value(operands[2]) & 0xFFFFFFFF
        elif name == "shr.u32":
            registers[operands[0]] = value(operands[1]) >> value(operands[2])
        elif name == "and.b32":
            registers[operands[0]] = value(operands[1]) & value(operands[2])
        elif name == "lop3.b32":
            a, b, c, table = (value(operand) for operand in operands[1:])
            bits = [table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1 for i in range(32)]
            registers[operands[0]] = sum(bit << i for i, bit in enumerate(bits))
        elif name in ("sub.rn.bf16x2", "mul.rn.bf16x2"):
            pairs = zip(halves(value(operands[1])), halves(value(operands[2])), strict=True)
            wide = [(bf16_value(a).double(), bf16_value(b).double()) for a, b in pairs]
            low, high = (bf16_bits(float(a - b if name.startswith("sub") else a * b)) for a, b in wide)
            registers[operands[0]] = low | high << 16
        else:
            raise AssertionError(f"no instruction {name!r}")
    return [registers[f"${i}"] for i in range(8)]


@pytest.mark.parametrize("kind", ["int4", "mxfp4"])
@pytest.mark.parametrize("word", WORDS, ids=hex)
def test_every_nibble_comes_out_where_it_belongs(kind: str, word: int) -> None:
    """Output 2 p is nibble p and output 2 p + 1 nibble p + 4, by the scale, rounded once to bf16."""
    assembly = {"int4": dequantise._INT4, "mxfp4": dequantise._MXFP4}[kind].value
    scales = (0.375, -0.0117, 1.0) if kind == "int4" else (2.0**-9, 2.0, 2.0**-100)
    for scale in scales:
        stored = bf16_bits(scale if kind == "int4" else scale * 2.0**126)
        exact = float(bf16_value(stored)) if kind == "int4" else scale
        got = execute(assembly, word, stored)
        for output, bits in enumerate(got):
            nibble = word >> 4 * (output // 2 + 4 * (output % 2)) & 15
            number = nibble - 8.0 if kind == "int4" else FP4[nibble]
            assert float(bf16_value(bits)) == float(torch.tensor(number * exact, dtype=torch.float64).bfloat16())
