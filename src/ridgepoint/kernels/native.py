"""The C++ kernel library: finding it, its ISA, its threads, its huge-page memory, and running its operators.

Knows structs and addresses, not what an operator means. The library is optional: `load_error()` says why it is absent,
and callers then use torch ops. Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ridgepoint.errors import ConfigError, RidgepointError

ABI_VERSION = 7
ISAS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "amx_emulated")
EMULATED = "amx_emulated"  # AMX's kernels without its instructions: for tests, only where it is forced
FORMATS = {"f32": 0, "bf16": 1, "int8": 2, "int4": 3, "mxfp4": 4, "fp8": 5, "bf16-12": 6}
F32, BF16, CODE = 0, 1, 2
FIXED_ROWS, TOKEN_ROWS, LOGIT_ROWS = 0, 1, 2
SPIN_US = 200  # a worker stays awake this long after its last work: longer than the gaps inside a step

i32, i64, f32, ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_HEADER = {"op": i32, "rows_from": i32, "rows": i64}

PackedWeight = _struct(
    "PackedWeight", format=i32, glu=i32, num_matrices=i64, outputs=i64, inputs=i64, group=i64, panel_bytes=i64, data=ptr,
    activation_bits=i32, pad=i32,
)  # fmt: skip
LinearOp = _struct(
    "LinearOp", **_HEADER, weight=ptr, x=ptr, y=ptr, bias=ptr, x_stride=i64, y_stride=i64, x_head_stride=i64,
    x_dtype=i32, y_dtype=i32, heads=i32, pad=i32,
)  # fmt: skip
MoeOp = _struct(
    "MoeOp", **_HEADER, gate_up=ptr, down=ptr, x=ptr, y=ptr, weights=ptr, expert_ids=ptr, bias_gate_up=ptr,
    bias_down=ptr, x_stride=i64, y_stride=i64, top_k=i64, x_dtype=i32, y_dtype=i32, activation=i32, alpha=f32,
    limit=f32, pad=i32,
)  # fmt: skip
NormOp = _struct(
    "NormOp", **_HEADER, x=ptr, delta=ptr, sum=ptr, y=ptr, weight=ptr, bias=ptr, x_stride=i64, delta_stride=i64,
    sum_stride=i64, y_stride=i64, groups=i64, width=i64, eps=f32, delta_scale=f32, dtype=i32, mean_centred=i32,
    weight_dtype=i32, weight_offset=f32,
)  # fmt: skip
RopeOp = _struct(
    "RopeOp", **_HEADER, x=ptr, y=ptr, cos=ptr, sin=ptr, x_stride=i64, x_head_stride=i64, y_stride=i64, table_stride=i64,
    heads=i64, width=i64, half=i64, dtype=i32, interleaved=i32,
)  # fmt: skip
RouteOp = _struct(
    "RouteOp", **_HEADER, logits=ptr, correction=ptr, weights=ptr, expert_ids=ptr, num_experts=i64, top_k=i64,
    num_groups=i64, topk_groups=i64, scores=i32, normalise=i32, group_top2=i32, pad=i32, scale=f32, jitter=f32,
)  # fmt: skip
EmbedOp = _struct(
    "EmbedOp", **_HEADER, ids=ptr, table=ptr, y=ptr, width=i64, vocab=i64, y_stride=i64, table_dtype=i32, y_dtype=i32,
    scale=f32, pad=f32,
)  # fmt: skip
GluOp = _struct(
    "GluOp",
    **_HEADER,
    x=ptr,
    y=ptr,
    width=i64,
    x_stride=i64,
    y_stride=i64,
    dtype=i32,
    activation=i32,
    alpha=f32,
    limit=f32,
)
AddSharedOp = _struct(
    "AddSharedOp", **_HEADER, routed=ptr, shared=ptr, gate=ptr, y=ptr, width=i64, routed_stride=i64, shared_stride=i64,
    gate_stride=i64, y_stride=i64, dtype=i32, pad=i32,
)  # fmt: skip
RopeTablesOp = _struct(
    "RopeTablesOp", **_HEADER, positions=ptr, inv_freq=ptr, cos=ptr, sin=ptr, half=i64, magnitude=f32, pad=f32
)
MapOp = _struct(
    "MapOp", **_HEADER, x=ptr, y=ptr, width=i64, x_stride=i64, y_stride=i64, dtype=i32, scale=f32, limit=f32, pad=f32
)
KvWriteOp = _struct(
    "KvWriteOp", **_HEADER, k=ptr, v=ptr, slots=ptr, cache=ptr, block_bytes=i64, block_size=i64, num_slots=i64, heads=i64,
    key_dim=i64, v_dim=i64, k_stride=i64, v_stride=i64, dtype=i32, format=i32, latent=i32, pad=i32,
)  # fmt: skip
AttentionOp = _struct(
    "AttentionOp", **_HEADER, q=ptr, q_rope=ptr, y=ptr, cache=ptr, query_starts=ptr, context_lens=ptr, block_tables=ptr,
    sinks=ptr, num_seqs=ptr, prompt_lens=ptr, block_bytes=i64, block_size=i64, table_stride=i64, heads=i64, kv_heads=i64,
    key_dim=i64, rope_dim=i64, v_dim=i64, q_stride=i64, q_head_stride=i64, q_rope_stride=i64, y_stride=i64, window=i64, lift_tokens=i64,
    dtype=i32, format=i32, latent=i32, lifted=i32, scale=f32, pad=i32,
)  # fmt: skip
UnliftedLinearOp = _struct("UnliftedLinearOp", **_HEADER, linear=LinearOp, attention=ptr)
LiftedAttentionOp = _struct(
    "LiftedAttentionOp", **_HEADER, latents=AttentionOp, w_uk=ptr, w_uv=ptr, nope_dim=i64, out_dim=i64, w_dtype=i32, pad=i32,
)  # fmt: skip
SampleOp = _struct(
    "SampleOp",
    **_HEADER,
    logits=ptr,
    rules=ptr,
    ids=ptr,
    logprobs=ptr,
    top_ids=ptr,
    vocab=i64,
    stride=i64,
    most_top=i64,
)
OP_IDS = {
    LinearOp: 0, MoeOp: 1, NormOp: 2, RopeOp: 3, RouteOp: 4, EmbedOp: 5, GluOp: 6, KvWriteOp: 7, AttentionOp: 8,
    AddSharedOp: 9, RopeTablesOp: 10, MapOp: 11, SampleOp: 12, UnliftedLinearOp: 13, LiftedAttentionOp: 14,
}  # fmt: skip


class NativeError(RidgepointError):
    """A native operator refused its arguments."""


# ---------------------------------------------------------------- the library


def library_path() -> Path | None:
    """Where the built library is: named by RIDGEPOINT_NATIVE, beside this file, or where an editable install put it."""
    named = os.environ.get("RIDGEPOINT_NATIVE")
    if named is not None:
        return Path(named) if named not in ("", "0") else None
    beside = Path(__file__).with_name("_native.so")
    if beside.exists():
        return beside
    spec = importlib.util.find_spec("ridgepoint.kernels._native")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@cache
def _opened() -> tuple[ctypes.CDLL | None, str]:
    """The library, or the reason there is none."""
    if os.environ.get("RIDGEPOINT_NATIVE") in ("", "0"):
        return None, "switched off by RIDGEPOINT_NATIVE"
    path = library_path()
    if path is None:
        return None, "not built: the package was installed without a C++ compiler"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path} cannot be loaded: {error}"
    version = library.rp_abi_version()
    if version != ABI_VERSION:
        return None, f"{path} speaks ABI {version}, this package {ABI_VERSION}: rebuild it"
    for function, result, arguments in (
        ("rp_last_error", ctypes.c_char_p, []),
        ("rp_isa_reads", i32, [i32]),
        ("rp_alloc", ptr, [i64]),
        ("rp_free", None, [ptr, i64]),
        ("rp_packed_bytes", i64, [ptr]),
        ("rp_pack", i32, [ptr, ptr, i64, ptr, i64, i32, ptr, i64]),
        ("rp_unpack", i32, [ptr, i64, ptr, i64]),
        ("rp_checksum", ctypes.c_uint64, [ptr, i64]),
        ("rp_map_file", ptr, [i32, i64]),
        ("rp_unmap_file", None, [ptr, i64]),
        ("rp_take_chunks", i64, [i32, ptr, ptr, i64, ptr]),
        ("rp_run", i32, [ptr, i64, i64, i64]),
        ("rp_profile", i32, [ptr, i64, i64, i64, ptr]),
        ("rp_fill", None, [ptr, i64]),
        ("rp_read_s", ctypes.c_double, [ptr, i64]),
        ("rp_probe_peak", ctypes.c_double, [i32, i32]),
    ):
        entry = getattr(library, function)
        entry.restype, entry.argtypes = result, arguments
    library.rp_set_threads(_threads_wanted(), _spin_us())
    forced = os.environ.get("RIDGEPOINT_ISA")
    if forced:
        _force(library, forced)
    return library, ""


def load_error() -> str | None:
    """Why there is no native library, or None when there is one."""
    library, reason = _opened()
    return None if library is not None else reason


def available() -> bool:
    return _opened()[0] is not None


def library() -> ctypes.CDLL:
    loaded, reason = _opened()
    if loaded is None:
        raise NativeError(
            f"the native kernel library is absent: {reason}", hint="install a C++ compiler and reinstall ridgepoint"
        )
    return loaded


# ---------------------------------------------------------------- ISA and threads


def isa() -> str:
    return ISAS[library().rp_isa_current()]


def supported_isas() -> list[str]:
    """ISAs this processor runs, the plainest first; the last is the default."""
    return [name for i, name in enumerate(ISAS) if name != EMULATED and library().rp_isa_supported(i)]


def reads(fmt: str) -> bool:
    """Whether the ISA in use multiplies weights of this format as they lie; others are made plain before, again and again."""
    return bool(library().rp_isa_reads(FORMATS[fmt]))


def whole_format(dtype: str) -> str:
    """The format that keeps weights of `float32` or `bfloat16` to the bit and is read fastest here; other types as they are."""
    if dtype == "bfloat16":
        return "bf16-12" if reads("bf16-12") else "bf16"
    return "f32" if dtype == "float32" else dtype


def can_emulate_tiles() -> bool:
    """Whether `EMULATED` can be forced: this processor has all of AMX's ISA but the tiles."""
    return bool(library().rp_isa_supported(ISAS.index(EMULATED)))


def _force(loaded: ctypes.CDLL, name: str) -> None:
    if name not in ISAS:
        raise ConfigError(f"ISA {name!r} is unknown; allowed: {', '.join(ISAS)}")
    if loaded.rp_isa_force(ISAS.index(name)) != 0:
        raise ConfigError(f"this processor does not run ISA {name!r}", hint="unset RIDGEPOINT_ISA")


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run native operators by one ISA inside the block."""
    before = isa()
    _force(library(), name)
    try:
        yield
    finally:
        _force(library(), before)


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, and the container's CPU quota rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota_cores()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _cgroup_quota_cores() -> float | None:
    """Cores granted by cgroup v2 (cpu.max, the tightest of the path) or v1 (cfs_quota over cfs_period)."""
    root = Path("/sys/fs/cgroup")
    quotas: list[float] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for folder in _ancestors(root, path):
                quotas += _ratio(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for folder in _ancestors(root / "cpu", path):
                quotas += _ratio(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
    return min(quotas, default=None)


def _ancestors(root: Path, path: str) -> list[Path]:
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _ratio(*files: Path) -> list[float]:
    try:
        quota, period = " ".join(file.read_text() for file in files).split()[:2]
    except (OSError, ValueError):
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]


def _threads_wanted() -> int:
    named = os.environ.get("RIDGEPOINT_NUM_THREADS")
    if named is None:
        return usable_cores()
    if not named.isdigit() or int(named) < 1:
        raise ConfigError(f"RIDGEPOINT_NUM_THREADS={named!r} is not a positive whole number")
    return int(named)


def num_threads() -> int:
    return int(library().rp_threads())


def _spin_us() -> int:
    return int(os.environ.get("RIDGEPOINT_SPIN_US", SPIN_US))


def set_num_threads(threads: int, spin_us: int | None = None) -> None:
    """Threads of the pool, the caller included; workers stay awake `spin_us` after their work (None: as the environment says)."""
    spin_us = _spin_us() if spin_us is None else spin_us
    if library().rp_set_threads(threads, spin_us) != 0:
        raise ConfigError(f"threads={threads}, spin_us={spin_us}: threads must be at least 1, spin_us at least 0")


# ---------------------------------------------------------------- memory and calls


def allocate(num_bytes: int) -> np.ndarray:
    """Zeroed bytes in huge pages (where the system gives them), freed with the last view."""
    lib = library()
    address = lib.rp_alloc(num_bytes)
    if not address:
        raise NativeError(f"out of memory: {num_bytes} bytes for packed weights")
    owner = (ctypes.c_uint8 * max(1, num_bytes)).from_address(address)
    weakref.finalize(owner, lib.rp_free, address, num_bytes)
    return np.frombuffer(memoryview(owner), dtype=np.uint8)[:num_bytes]


def reserve(num_bytes: int) -> np.ndarray:
    """Zeroed bytes of which the system hands out a page when it is first touched, huge ones where it has them."""
    memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)[:num_bytes]


def op(kind: type[ctypes.Structure], rows: int, **fields: Any) -> ctypes.Structure:
    return kind(op=OP_IDS[kind], rows_from=FIXED_ROWS, rows=rows, **fields)


def run(operator: ctypes.Structure) -> None:
    """Run one operator."""
    check(library().rp_run(ctypes.byref(ptr(ctypes.addressof(operator))), 1, 0, 0))


def run_list(pointers: Any, count: int, tokens: int, logit_rows: int) -> None:
    """Run `count` operators in order in one parallel region; recorded row counts become `tokens` or `logit_rows`."""
    check(library().rp_run(pointers, count, tokens, logit_rows))


def profile_list(pointers: Any, count: int, tokens: int, logit_rows: int) -> list[float]:
    """`run_list`, with the seconds of each operator."""
    seconds = (ctypes.c_double * count)()
    check(library().rp_profile(pointers, count, tokens, logit_rows, seconds))
    return list(seconds)


def check(code: int) -> None:
    if code != 0:
        raise NativeError(f"native operator failed: {library().rp_last_error().decode()}")


def measure_read_bytes_per_s(num_bytes: int = 1 << 30, repeats: int = 3) -> float:
    """Best read bandwidth of all threads over a buffer of `num_bytes` (beyond the caches: that of the memory)."""
    probe = ReadProbe(num_bytes)
    return max(probe.bytes_per_s() for _ in range(repeats))


class ReadProbe:
    """Memory that can be read again and again, to see how fast it is just then: on shared machines that changes by the second."""

    PIECE_BYTES = 1 << 18

    def __init__(self, num_bytes: int) -> None:
        if num_bytes < self.PIECE_BYTES:
            raise ConfigError(f"a probe of {num_bytes} bytes: at least {self.PIECE_BYTES} are read at a time")
        self._memory = allocate(num_bytes // self.PIECE_BYTES * self.PIECE_BYTES)
        library().rp_fill(self._memory.ctypes.data, self._memory.nbytes)

    def bytes_per_s(self) -> float:
        """Of all threads reading it once."""
        return self._memory.nbytes / float(library().rp_read_s(self._memory.ctypes.data, self._memory.nbytes))


def measure_peak_flops_per_s(fmt: str = "bf16", milliseconds: int = 200) -> float:
    """Products and sums per second of all threads in registers, in the ISA in use."""
    return float(library().rp_probe_peak(FORMATS[fmt], milliseconds))
