"""Cases of latent decoding in Gluon: a kernel's arguments as numpy arrays, what they attend to by definition, and launches that are
emulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gluon_emulator
import numpy as np
import pytest
import torch
from gluon_memory import Order, eager

from ridgepoint.kernels import tuning
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.paged_attention.triton import prepare
from ridgepoint.kernels.tuning import AttentionTile

H, C, R, PAGE = 128, 512, 64, 16


def case(contexts: list[int], split: int, window: int) -> dict[str, Any]:
    """A kernel's arguments. What no query sees is NaN."""
    rng = np.random.default_rng(sum(contexts) + split)
    columns = -(-max(contexts) // PAGE)
    tables = rng.permutation(len(contexts) * columns).reshape(len(contexts), columns).astype(np.int64)
    items = [(b, s) for b, n in enumerate(contexts) for s in range(-(-min(n, window or n) // split))]

    def bf16(*shape: int) -> np.ndarray:
        return torch.from_numpy(rng.standard_normal(shape)).bfloat16().float().numpy()

    kv = np.full((tables.size * PAGE, C + R), np.nan, np.float32)
    for table, n in zip(tables, contexts, strict=True):
        at = np.arange(max(0, n - (window or n)), n)
        kv[table[at // PAGE] * PAGE + at % PAGE] = bf16(len(at), C + R)
    return {
        "q_latent_ptr": bf16(H * len(contexts) * C), "q_rope_ptr": bf16(len(contexts) * H * R),
        "kv_ptr": kv.reshape(-1), "out_ptr": np.full(len(contexts) * H * C, np.nan, np.float32),
        "acc_ptr": np.full(len(items) * H * C, np.nan, np.float32), "max_ptr": np.full(len(items) * H, np.nan, np.float32),
        "sum_ptr": np.full(len(items) * H, np.nan, np.float32), "starts_ptr": np.arange(len(contexts) + 1, dtype=np.int64),
        "contexts_ptr": np.array(contexts, np.int64), "tables_ptr": tables.reshape(-1), "items_ptr": np.array(items, np.int32).reshape(-1),
        "split_tokens_ptr": np.full(len(contexts), split, np.int32), "counts_ptr": np.array([len(items), 0], np.int32),
        "latent_head_stride": len(contexts) * C, "latent_stride": C, "rope_stride": H * R, "rope_head_stride": R,
        "table_stride": columns, "qk_scale": 0.05 * math.log2(math.e), "window": window, "H": H, "PAGE": PAGE, "C": C, "R": R,
    }  # fmt: skip


def attended(given: dict[str, Any]) -> np.ndarray:
    """[sequences, H, C] by the definition."""
    contexts, results = given["contexts_ptr"], []
    kv = given["kv_ptr"].reshape(-1, PAGE, C + R).astype(np.float64)
    for b, context in enumerate(contexts):
        table = given["tables_ptr"].reshape(len(contexts), -1)[b]
        keys = kv[table].reshape(-1, C + R)[max(0, context - (given["window"] or context)) : context]
        q = np.concatenate((given["q_latent_ptr"].reshape(H, -1, C)[:, b], given["q_rope_ptr"].reshape(-1, H, R)[b]), 1)
        weights = np.exp2((q @ keys.T - (q @ keys.T).max(1, keepdims=True)) * given["qk_scale"])
        results.append(weights @ keys[:, :C] / weights.sum(1, keepdims=True))
    return np.stack(results)


def joined(given: dict[str, Any]) -> np.ndarray:
    """The kernel's whole sequences as they are, its splits combined."""
    out = given["out_ptr"].reshape(-1, H, C).astype(np.float64)
    items = given["items_ptr"].reshape(-1, 2)
    acc, largest, total = (
        given[name].reshape(len(items), H, -1).astype(np.float64) for name in ("acc_ptr", "max_ptr", "sum_ptr")
    )
    for b in range(len(out)):
        mine = items[:, 0] == b
        if mine.sum() > 1:
            weight = np.exp2(largest[mine] - largest[mine].max(0))
            out[b] = (acc[mine] * weight).sum(0) / (total[mine] * weight).sum(0)
    return out


def error_of(module: Any, given: dict[str, Any], order: Callable[[], Order] = lambda: eager(0)) -> float:
    """Of the kernel of `module`, run by three programs, relative to the definition."""
    gluon_emulator.run(module, module.attend_splits, 3, order, **given)
    found, wanted = joined(given), attended(given)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


class Emulated:
    """In the kernel's place: a launch is emulated on the tensors it is given."""

    def __init__(self, module: Any) -> None:
        self.module, self.kernel = module, module.attend_splits
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*args: Any, num_warps: int, **kwargs: Any) -> None:
            assert num_warps == self.module.WARPS
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
            arrays = {name: _array(value) for name, value in tensors.items()}
            gluon_emulator.run(self.module, self.kernel, grid[0], **(named | arrays))
            for name in ("out_ptr", "acc_ptr", "max_ptr", "sum_ptr"):
                tensors[name].copy_(torch.from_numpy(arrays[name][: tensors[name].numel()]).view(tensors[name].shape))
            self.grids.append(grid)

        return launch


def _array(x: torch.Tensor) -> np.ndarray:
    """The numbers from where `x` starts on, as they lie."""
    flat = x.as_strided((x.untyped_storage().nbytes() // x.itemsize - x.storage_offset(),), (1,))
    return (flat.float() if x.dtype == torch.bfloat16 else flat).clone().numpy()


def disagreement(module: Any, tile: AttentionTile, monkeypatch: pytest.MonkeyPatch) -> float:
    """Between attention launched with this tile, whose kernel is that of `module`, and attention as usual."""
    made = torch.Generator().manual_seed(3)

    def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=made) * scale).bfloat16()

    contexts, heads, nope, value = [75, 3], 64, 16, 16
    tables = torch.randperm(10, generator=made).view(2, 5)
    kv = path.allocate(10, PAGE, C, R, torch.bfloat16, "cpu")
    kv.copy_(randn(*kv.shape))
    plan = prepare(torch.arange(3), torch.tensor(contexts), tables, PAGE)
    given = (randn(2, heads, nope), randn(2, heads, R), kv, randn(heads, nope, C, scale=0.2), randn(heads, value, C, scale=0.05), plan)  # fmt: skip
    usual = path.attend(*given, 0.05, None).float()
    emulated = Emulated(module)
    monkeypatch.setattr(module, "attend_splits", emulated)
    with tuning.pinned("mla_decode", tile):
        found = path.attend(*given, 0.05, None).float()
    assert len(emulated.grids) == 1
    return float((found - usual).norm() / usual.norm())
