"""Latent decoding in Gluon: its source, emulated, against attention in float64, and refused when a wait is taken out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gluon_emulator
import numpy as np
import pytest
import torch

from ridgepoint.kernels import tuning
from ridgepoint.kernels.mla_attention import gluon_splits
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.mla_attention.tunable import EARLY
from ridgepoint.kernels.paged_attention.triton import prepare

H, C, R, PAGE = 128, 512, 64, 16


def case(contexts: list[int], split: int, window: int) -> dict[str, Any]:
    rng = np.random.default_rng(sum(contexts) + split)
    columns = -(-max(contexts) // PAGE)
    tables = rng.permutation(len(contexts) * columns).reshape(len(contexts), columns).astype(np.int64)
    items = [(b, s) for b, n in enumerate(contexts) for s in range(-(-min(n, window or n) // split))]

    def bf16(*shape: int) -> np.ndarray:
        return torch.from_numpy(rng.standard_normal(shape)).bfloat16().float().numpy()

    return {
        "q_latent_ptr": bf16(H * len(contexts) * C), "q_rope_ptr": bf16(len(contexts) * H * R),
        "kv_ptr": bf16(tables.size * PAGE * (C + R)), "out_ptr": np.full(len(contexts) * H * C, np.nan, np.float32),
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


def emulate(given: dict[str, Any], programs: int = 3) -> None:
    gluon_emulator.run(gluon_splits, gluon_splits.attend_splits, programs, **given)


@pytest.mark.parametrize(
    ("contexts", "split", "window"), [([130, 1, 64], 128, 0), ([300, 77], 128, 150), ([65], 256, 0)]
)
def test_it_attends(contexts: list[int], split: int, window: int) -> None:
    given = case(contexts, split, window)
    emulate(given)
    found, wanted = joined(given), attended(given)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 5e-3  # weights and partial results in bf16


WAITED_FOR = ("fence_async_shared", "gl.thread_barrier", "async_copy.wait_group")


@pytest.mark.parametrize(
    "line", [line for name in WAITED_FOR for line in gluon_emulator.statements(gluon_splits, name)]
)
def test_whatever_is_taken_out_is_missed(line: int) -> None:
    given = case([200, 30], 256, 0)
    module = gluon_emulator.without(gluon_splits, line)
    with pytest.raises(AssertionError, match=r"reads|writes"):
        gluon_emulator.run(module, module.attend_splits, 3, **given)


class Emulated:
    """In the kernel's place: a launch is emulated on the tensors it is given."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.grids = kernel, []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*args: Any, num_warps: int, **kwargs: Any) -> None:
            assert num_warps == gluon_splits.WARPS
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
            arrays = {name: _array(value) for name, value in tensors.items()}
            gluon_emulator.run(gluon_splits, self.kernel, grid[0], **(named | arrays))
            for name in ("out_ptr", "acc_ptr", "max_ptr", "sum_ptr"):
                tensors[name].copy_(torch.from_numpy(arrays[name][: tensors[name].numel()]).view(tensors[name].shape))
            self.grids.append(grid)

        return launch


def _array(x: torch.Tensor) -> np.ndarray:
    """The numbers from where `x` starts on, as they lie."""
    flat = x.as_strided((x.untyped_storage().nbytes() // x.itemsize - x.storage_offset(),), (1,))
    return (flat.float() if x.dtype == torch.bfloat16 else flat).clone().numpy()


def test_attention_that_asks_early_agrees_with_attention_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
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
    emulated = Emulated(gluon_splits.attend_splits)
    monkeypatch.setattr(gluon_splits, "attend_splits", emulated)
    with tuning.pinned("mla_decode", EARLY):
        early = path.attend(*given, 0.05, None).float()
    assert len(emulated.grids) == 1
    assert float((early - usual).norm() / usual.norm()) < 1e-2


def test_only_shapes_that_it_serves_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not path.may_ask_early(128, C, R, torch.bfloat16), "the interpreter does not know it"
    monkeypatch.setattr(path, "INTERPRETED", SimpleNamespace(value=False))
    assert path.may_ask_early(128, C, R, torch.bfloat16)
    for heads, latent, rotary, kept in (
        (16, C, R, torch.bfloat16),
        (128, 256, R, torch.bfloat16),
        (128, C, R, torch.int8),
    ):
        assert not path.may_ask_early(heads, latent, rotary, kept)
