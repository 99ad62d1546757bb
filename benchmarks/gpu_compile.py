"""Do Triton's kernels, as they are launched by default, compile for an H200 without spills and with its matrix units?

Needs no GPU. Operators run over tensors that have shapes and no memory; every launch is recorded instead of started, then
compiled for sm_90 with the assembler in Triton's wheel. Printed and saved per kernel: registers, spilled bytes, shared memory and
counts of the instructions that matter (HGMMA: matrix units; UTMALDG: copy engine; LDGSTS: asynchronous copies; the rest: what else
is issued, which bounds how fast codes become numbers). `--candidates` compiles instead every configuration that the tuner would
try for the shapes of `tuned_candidates.py`: as many programs as it asks for must fit a multiprocessor, with few spills.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from attention_launches import attention_launches, unsummed
from provenance import provenance, save
from ridgepoint.catalog.spec import ClampedSwiGlu, RouterSpec, SwiGlu
from ridgepoint.kernels import triton_call
from ridgepoint.kernels.add_shared.triton import add_shared
from ridgepoint.kernels.device_weight import FORMATS, DeviceWeight, unfilled_for_device
from ridgepoint.kernels.embed.triton import embed
from ridgepoint.kernels.glu.triton import glu
from ridgepoint.kernels.linear.triton import linear
from ridgepoint.kernels.moe_experts.triton import moe_experts
from ridgepoint.kernels.moe_experts.tunable import BY_ROLES as EXPERTS_BY_ROLES
from ridgepoint.kernels.route.triton import route
from ridgepoint.kernels.tuning import pinned
from tuned_candidates import candidates

TARGET = GPUTarget("cuda", 90, 32)
PROCESSORS = 132
SHARED_BYTES = 227 * 1024
REGISTERS = 65536
STACK_BYTES = 32  # what a program may put aside while it loops
SPILLED_BYTES = (
    64  # of a thread, at most, in a candidate: it loses by the clock, and none should waste the tuner's time
)
PROMPTS = (3073, 3088, 4096, 7778, 8192)  # one class of tiles
TOUCHING = ("LD", "ST", "ATOM", "RED", "UTMA", "UBLK")  # what an instruction that moves data begins with
HARMLESS = ("LDC", "LDCU", "LDS", "LDSM", "STS", "STSM", "STL", "LDL")  # constants, shared and own memory
MATRIX_KERNELS = {"token_tiles": "HGMMA", "weight_tiles": "HGMMA", "block_tiles": "HGMMA", "fp8_tiles": "QGMMA"}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl")
PERSISTENT = (*MATRIX_KERNELS, "attend_splits")
TYPES = {
    torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16", torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5",
}  # fmt: skip
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _TargetAlone:
    """The part of a driver that kernels ask while they are compiled."""

    @staticmethod
    def get_current_target() -> GPUTarget:
        return TARGET


driver.set_active(_TargetAlone())


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside, in order, instead of their effects."""
    launches: list[Launch] = []
    start = JITFunction.__getitem__

    def record(kernel: JITFunction, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
            launches.append(Launch(kernel, grid, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options))

        return launch

    JITFunction.__getitem__ = record
    before = triton_call.DEVICE_TYPE, triton_call._num_multiprocessors
    triton_call.DEVICE_TYPE, triton_call._num_multiprocessors = "meta", lambda index: PROCESSORS
    try:
        yield launches
    finally:
        JITFunction.__getitem__ = start
        triton_call.DEVICE_TYPE, triton_call._num_multiprocessors = before


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Signature, constants and attributes, as a launch derives them: integers of 1 become constants, multiples of 16 are known
    to be. Launches that agree in all three share one compiled kernel."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments.get(parameter.name, parameter.default)
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and free):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        where = value.storage_offset() * value.itemsize if isinstance(value, torch.Tensor) else value
        if isinstance(where, int) and free and where % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compiled_as(launch: Launch) -> str:
    """What launches agree in that share one compiled kernel."""
    return launch.kernel.__name__ + str((specialised(launch), launch.options))


def variants(runs: list[Callable[[], object]]) -> dict[str, int]:
    """How many compiled kernels of each name these runs need together."""
    needed: dict[str, set[str]] = {}
    for run in runs:
        with recorded() as launches, torch.no_grad():
            run()
        for launch in launches:
            needed.setdefault(launch.kernel.__name__, set()).add(compiled_as(launch))
    return {name: len(keys) for name, keys in needed.items()}


def compiled(launch: Launch) -> dict[str, Any]:
    kind = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = kind(launch.kernel, *specialised(launch))
    result = triton.compile(source, target=TARGET, options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = subprocess.run([BIN / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True)
        sass = subprocess.run([BIN / "nvdisasm", "-c", file.name], capture_output=True, text=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr).groups())
    issued = Counter(op for op, _ in _instructions(sass) if op)
    return {
        "kernel": launch.kernel.__name__, "warps": result.metadata.num_warps, "stages": result.metadata.num_stages,
        "registers": registers, "stack_bytes": stack, "shared_bytes": result.metadata.shared,
        "loops": [dict(loop.most_common()) for loop in innermost_loops(sass)],
        "instructions": dict(issued.most_common()),
        "waits_added": waits_added(sass, result.asm["ptx"]) if launch.kernel.is_gluon() else 0,
        "waits_first": not launch.options.get("launch_pdl") or waits_first(sass),
    }  # fmt: skip


def _instructions(sass: str) -> list[tuple[str, str]]:
    """(operation, the rest of its line), with the labels between them as (\"\", label)."""
    return [(op, rest) for _, op, rest in _predicated(sass)]


def _predicated(sass: str) -> list[tuple[str, str, str]]:
    """The same, after the predicate of each."""
    pattern = r"^(\.L_\w+):|^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_]+)([. ;].*)$"
    return [(when, op, rest) if op else ("", "", label) for label, when, op, rest in re.findall(pattern, sass, re.M)]


def waits_first(sass: str) -> bool:
    """Whether on no way from the start anything is read or written before a wait for the kernel before (ACQBULK)."""
    lines = _predicated(sass)
    label_at = {rest: place for place, (_, op, rest) in enumerate(lines) if not op}
    waits, seen, ways = False, set(), [0]
    while ways:
        place = ways.pop()
        if place in seen or place >= len(lines):
            continue
        seen.add(place)
        when, op, rest = lines[place]
        if op == "ACQBULK":
            waits = True
            continue
        if op.startswith(TOUCHING) and op not in HARMLESS:
            return False
        if op in ("BRA", "BRX"):
            ways += [label_at[label] for label in re.findall(r"\.L_\w+", rest)]
        if when or op not in ("BRA", "BRX", "EXIT"):
            ways.append(place + 1)
    return waits


def waits_added(sass: str, ptx: str) -> int:
    """Waits for products that the kernel does not ask for: the assembler adds one where it does not see that registers are those of
    a product that has ended, and what is then done under it is done after it."""
    waits = sum(op == "WARPGROUP" and rest.startswith(".DEPBAR") for op, rest in _instructions(sass))
    return waits - ptx.count("wgmma.wait_group")


def innermost_loops(sass: str) -> list[Counter[str]]:
    """What each loop that holds no other issues in one turn."""
    lines = _instructions(sass)
    label_at = {rest: place for place, (op, rest) in enumerate(lines) if not op}
    spans = []
    for place, (op, rest) in enumerate(lines):
        target = re.search(r"\.L_\w+", rest) if op == "BRA" else None
        first = label_at.get(target[0], len(lines)) if target else len(lines)
        if first < place - 1:  # the jump to itself behind the end is no loop
            spans.append((first, place))
    inner = [span for span in spans if not any(o != span and span[0] <= o[0] and o[1] <= span[1] for o in spans)]
    return [Counter(op for op, _ in lines[first : last + 1] if op) for first, last in inner]


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, GluonDescriptor):
        shape = ", ".join(map(str, value.block_shape))
        return f"tensordesc<{TYPES[value.base.dtype]}[{shape}],{value.layout!r}>"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}[{','.join(map(str, value.block_shape))}]>"
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def faults(result: dict[str, Any]) -> list[str]:
    """What must not be: spills in an innermost loop or more than a few words of them, more shared memory than there is, a
    product without the matrix units or waited for unasked, an overlapped launch that does not wait first."""
    issued, found = result["instructions"], []
    if result["stack_bytes"] > STACK_BYTES or any("STL" in loop or "LDL" in loop for loop in result["loops"]):
        found.append(f"spills ({result['stack_bytes']} bytes of stack)")
    if result["shared_bytes"] > SHARED_BYTES:
        found.append(f"{result['shared_bytes']} bytes of shared memory")
    wanted = MATRIX_KERNELS.get(result["kernel"])
    if wanted and not issued.get(wanted):
        found.append(f"no {wanted}")
    if result["waits_added"] > 0:
        found.append(f"{result['waits_added']} waits for products that it did not ask for")
    if not result["waits_first"]:
        found.append("launched beside the kernel before it, without waiting for what that one writes")
    return found


# ---------------------------------------------------------------- what is launched


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _packed(fmt: str, num: int, outputs: int, inputs: int, glu: bool) -> torch.Tensor | DeviceWeight:
    """A weight of this shape without memory."""
    if fmt == "bf16":
        return _meta(num, outputs, inputs) if num > 1 else _meta(outputs, inputs)
    return unfilled_for_device(fmt, num, outputs, inputs, glu=glu, stacked=num > 1, device="meta")


def _experts(fmt: str, tokens: int, d: int, f: int, e: int, k: int, clamped: bool = False) -> None:
    biases = (_meta(e, 2 * f), _meta(e, d)) if clamped else (None, None)
    activation = ClampedSwiGlu(alpha=1.702, limit=7.0) if clamped else SwiGlu()
    moe_experts(
        _meta(tokens, d), _meta(tokens, k, dtype=torch.float32), _meta(tokens, k, dtype=torch.int64),
        _packed(fmt, e, 2 * f, d, True), _packed(fmt, e, d, f, False), activation, *biases,
    )  # fmt: skip


def _experts_by_roles(tokens: int, d: int, f: int, e: int, k: int) -> None:
    with pinned("experts", EXPERTS_BY_ROLES):
        _experts("bf16", tokens, d, f, e, k)


def _route(scores: str, experts: int, groups: int, top_k: int) -> None:
    router = RouterSpec(
        scores=scores, normalise=True, scale=1.0, bias=False, correction_bias=groups > 1, num_groups=groups,
        topk_groups=max(1, groups // 2), group_score="top2_sum", jitter_eps=None,
    )  # fmt: skip
    correction = _meta(experts, dtype=torch.float32) if groups > 1 else None
    route(_meta(64, experts, dtype=torch.float32), correction, router, top_k)


def cases(smoke: bool) -> dict[str, Callable[[], object]]:
    """Every tile of the shipped table in every format, at the shapes that matter, and the small operators."""
    found: dict[str, Callable[[], object]] = {}
    small: dict[str, Callable[[], object]] = {
        "experts bf16 x4": lambda: _experts("bf16", 4, 2816, 704, 128, 8),
        "mla 128 bf16 by roles": attention_launches()["mla 128 bf16 by roles"],
    }
    for tokens in (4, 64, 200, 600, 1500, 32768):
        found[f"experts bf16 x{tokens}"] = lambda t=tokens: _experts("bf16", t, 2048, 768, 128, 8)
    found["experts bf16 x2048 by roles"] = lambda: _experts_by_roles(2048, 2048, 768, 128, 8)
    found["experts bf16 2816 x4096"] = lambda: _experts("bf16", 4096, 2816, 704, 128, 8)
    for fmt in FORMATS:
        for tokens in (4, 64, 200, 600, 8192):
            found[f"experts {fmt} x{tokens}"] = lambda f=fmt, t=tokens: _experts(f, t, 2048, 768, 128, 8)
        for rows in (1, 20, 40, 4096):
            found[f"linear {fmt} x{rows}"] = lambda f=fmt, r=rows: linear(
                _meta(r, 2048), _packed(f, 1, 4096, 2048, False)
            )
    for tokens in (4, 2000):
        found[f"experts gpt-oss x{tokens}"] = lambda t=tokens: _experts("mxfp4", t, 2880, 2880, 128, 4, clamped=True)
    found["route softmax"] = lambda: _route("softmax", 128, 1, 8)
    found["route sigmoid, 8 groups"] = lambda: _route("sigmoid", 256, 8, 8)
    found["route softmax of the chosen"] = lambda: _route("softmax_topk", 128, 1, 4)
    found["glu"] = lambda: glu(_meta(64, 2 * 6144), SwiGlu())
    found["add_shared"] = lambda: add_shared(_meta(64, 2048), _meta(64, 2048), _meta(64, 1))
    found["add_shared to experts"] = lambda: add_shared(unsummed(64, 2048, 8, ordered=False), _meta(64, 2048), None)
    found["embed"] = lambda: embed(_meta(64, dtype=torch.int64), _meta(1000, 2048), 1.0, torch.bfloat16)
    return small if smoke else found | attention_launches()


def candidate_faults(result: dict[str, Any], per_processor: int) -> list[str]:
    """As `faults`, with few spills allowed."""
    found = [fault for fault in faults(result) if not fault.startswith("spills")]
    if result["stack_bytes"] > SPILLED_BYTES:
        found.append(f"spills ({result['stack_bytes']} bytes of stack; allowed: {SPILLED_BYTES})")
    return found + crowding(result, per_processor)


def crowding(result: dict[str, Any], per_processor: int) -> list[str]:
    """Persistent programs that are to share a multiprocessor and cannot: those left over would start when others end."""
    found = []
    registers = -(-result["registers"] // 8) * 8 * 32 * result["warps"]
    fitting = min(SHARED_BYTES // max(1, result["shared_bytes"]), REGISTERS // registers)
    if fitting < per_processor:
        found.append(f"{per_processor} programs on a multiprocessor, {fitting} fit")
    return found


def compile_cases(only: str, smoke: bool) -> list[dict[str, Any]]:
    """A row for every kernel of every case, under the first that launches it."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, run in cases(smoke).items():
        if only not in name:
            continue
        with recorded() as launches, torch.no_grad():
            run()
        for launch in launches:
            per_processor = -(-launch.grid[0] // PROCESSORS) if launch.kernel.__name__ in PERSISTENT else 1
            key = compiled_as(launch), per_processor
            if key in rows:
                continue
            result = rows[key] = compiled(launch) | {"case": name}
            result["faults"] = faults(result) + crowding(result, per_processor)
            _show(name, result)
    return list(rows.values())


def compile_candidates(only: str, smoke: bool) -> list[dict[str, Any]]:
    """A row for every kernel of every candidate; equal launches are compiled once."""
    rows: list[dict[str, Any]] = []
    known: dict[str, dict[str, Any]] = {}
    for candidate in candidates(smoke):
        if only not in candidate.name:
            continue
        with recorded() as launches, torch.no_grad():
            candidate.run()
        for launch, per_processor in candidate.tried(launches):
            key = compiled_as(launch)
            if key not in known:
                known[key] = compiled(launch)
            result = known[key] | {
                "case": candidate.name,
                "config": str(candidate.config),
                "per_processor": per_processor,
            }
            result["faults"] = candidate_faults(result, per_processor)
            rows.append(result)
            _show(candidate.name, result)
    return rows


def _show(name: str, result: dict[str, Any]) -> None:
    wanted = ("HGMMA", "QGMMA", "HMMA", "UTMALDG", "LDGSTS", "LDS", "STS", "LDSM")
    shown = " ".join(f"{n} {result['instructions'][n]}" for n in wanted if n in result["instructions"])
    print(
        f"{name:28} {result['kernel']:18} {result['warps']:5} {result['registers']:4} {result['stack_bytes']:5} "
        f"{result['shared_bytes']:7}  {shown} of {sum(result['instructions'].values())}"
        + "".join(f"  FAULT: {fault}" for fault in result["faults"]),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two cases")
    parser.add_argument(
        "--candidates", action="store_true", help="what the tuner would try, instead of what runs by default"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="JSON result")
    args = parser.parse_args()
    print(f"{'case':28} {'kernel':18} {'warps':>5} {'regs':>4} {'stack':>5} {'shared':>7}  instructions")
    if args.candidates:
        rows = compile_candidates(args.only, args.smoke)
        wrong = sum(bool(row["faults"]) for row in rows)
        print(f"{len(rows)} kernels of candidates, {wrong} with faults")
        save(args.out, provenance(__doc__) | {"triton": triton.__version__, "target": "sm_90", "candidates": rows})
        sys.exit(1 if wrong else 0)
    rows = compile_cases(args.only, args.smoke)
    wrong = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} kernels, {wrong} with faults")
    needed = variants([lambda t=t: _experts("bf16", t, 2048, 768, 128, 8) for t in PROMPTS])
    print(f"compiled kernels for {len(PROMPTS)} lengths of prompts: {needed}")
    save(
        args.out,
        provenance(__doc__) | {"triton": triton.__version__, "target": "sm_90", "kernels": rows, "variants": needed},
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
