"""Routed experts in Triton against their definition: every activation and format, odd sizes, uneven routings."""

from __future__ import annotations

import pytest
import torch
from products import BF16, BF16_WEIGHTS, DEVICE, error, poisoned_empty, randn, routing, surrounded

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu, SwiGlu
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import FORMATS, pack_for_device
from ridgepoint.kernels.gemm.few_pairs import ROOM
from ridgepoint.kernels.gemm.launch import Product
from ridgepoint.kernels.gemm.quantise import rounded_rows
from ridgepoint.kernels.glu.reference import glu
from ridgepoint.kernels.moe_experts import reference
from ridgepoint.kernels.moe_experts import triton as fast
from ridgepoint.kernels.moe_experts.groups import SMALL, group_rows
from ridgepoint.kernels.tuning import ExpertTiles, Tile

# As BF16, and where a sum's last bit moves a row's rounding to bf16, its code of three bits moves by one.
FP8_AGAIN = 8e-3
CLAMPED = ClampedSwiGlu(alpha=1.702, limit=0.7)
NARROW = Tile(kernel="weights", block_n=64, block_k=32, group=2, num_warps=4, num_stages=2, per_processor=1)
WIDE = Tile(kernel="tokens", block_n=64, block_k=32, group=2, num_warps=4, num_stages=2, per_processor=1)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned_empty(monkeypatch.setattr)


def use(monkeypatch: pytest.MonkeyPatch, tile: Tile, block_m: int) -> None:
    """Run experts with this tile, whatever the tables say."""
    tiles = ExpertTiles(block_m=block_m, first=tile, second=tile)
    monkeypatch.setattr(tuning, "choose", lambda *_: tiles)


def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are listed by a launch of their own, however few."""
    monkeypatch.setattr(fast, "ROOM", 0)


def experts(num: int, d: int, f: int, bias: bool) -> list[torch.Tensor | None]:
    shapes = [(num, 2 * f, d), (num, d, f), *([(num, 2 * f), (num, d)] if bias else [])]
    made = [randn(*s, seed=i, scale=s[-1] ** -0.5 if len(s) == 3 else 1) for i, s in enumerate(shapes)]
    return [*made, None, None] if not bias else list(made)


def agree(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, activation: Activation, given: list) -> None:
    got = fast.moe_experts(x, weights, ids, *given[:2], activation, *given[2:])
    want = reference.moe_experts(x.double(), weights, ids, *given[:2], activation, *given[2:])
    assert got.dtype == torch.bfloat16
    assert error(got, want) <= BF16


# T, D, F, E, K, routing: no tokens, one, a few; widths no multiple of a tile, nor of 16 bytes; K = 1 and K = E
CASES = [
    (0, 32, 16, 4, 2, "random"),
    (1, 40, 24, 6, 3, "random"),
    (1, 27, 13, 5, 5, "random"),
    (17, 96, 40, 7, 1, "even"),
    (17, 64, 72, 4, 4, "random"),
    (33, 32, 16, 6, 2, "one"),
]


@pytest.mark.parametrize("way", ["tokens", "weights", "weights, listed"])
@pytest.mark.parametrize("activation", [SwiGlu(), CLAMPED], ids=["plain", "clamped"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_experts(case: tuple, activation: Activation, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, d, f, num, top_k, kind = case
    use(monkeypatch, WIDE if way == "tokens" else NARROW, 16)
    if way == "weights, listed":
        listed(monkeypatch)
    weights, ids = routing(tokens, num, top_k, kind)
    agree(
        surrounded(randn(tokens, d, seed=9)), weights, ids, activation, experts(num, d, f, bias=activation is CLAMPED)
    )


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if not fmt.endswith("-a8")])
def test_formats(fmt: str) -> None:
    """By the tables' own tiles; 160 inputs are a block and a piece of one."""
    weights, ids = routing(17, 5, 2, "random")
    w_gate_up, w_down, *biases = experts(5, 160, 48, bias=True)
    assert w_gate_up is not None and w_down is not None
    gate_up, down = pack_for_device(w_gate_up, fmt, glu=True), pack_for_device(w_down, fmt)
    x = surrounded(randn(17, 160, seed=9))
    got = fast.moe_experts(x, weights, ids, gate_up, down, SwiGlu(), *biases)
    want = reference.moe_experts(x.double(), weights, ids, gate_up.dense(), down.dense(), SwiGlu(), *biases)
    assert error(got, want) <= BF16_WEIGHTS


@pytest.mark.parametrize(("tokens", "unit"), [(1, None), (17, None), (70, 16)])
def test_experts_of_fp8_codes_meet_fp8_codes(tokens: int, unit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both products round their rows; 160 inputs are a group and a piece of one, 72 features less than a tile."""
    if unit is not None:
        tile = Tile(kernel="weights", block_n=64, block_k=128, group=2, num_warps=4, num_stages=2, per_processor=1)
        tiles = ExpertTiles(block_m=32, unit=unit, first=tile, second=tile)
        monkeypatch.setattr(tuning, "choose", lambda *_: tiles)
    weights, ids = routing(tokens, 5, 2, "random")
    w_gate_up, w_down, bias_up, bias_down = experts(5, 160, 72, bias=True)
    assert w_gate_up is not None and w_down is not None and bias_up is not None and bias_down is not None
    gate_up, down = pack_for_device(w_gate_up, "fp8-a8", glu=True), pack_for_device(w_down, "fp8-a8")
    x = surrounded(randn(tokens, 160, seed=9))
    got = fast.moe_experts(x, weights, ids, gate_up, down, CLAMPED, bias_up, bias_down)
    rows = rounded_rows(x).repeat_interleave(2, 0).double()
    experts_of = ids.flatten()
    h = torch.einsum("mi,moi->mo", rows, gate_up.dense()[experts_of].double()) + bias_up[experts_of].double()
    h = rounded_rows(glu(h, CLAMPED).bfloat16()).double()
    y = torch.einsum("mi,moi->mo", h, down.dense()[experts_of].double()) + bias_down[experts_of].double()
    want = (y.view(tokens, 2, -1) * weights.double()[..., None]).sum(1)
    assert error(got, want) <= FP8_AGAIN


@pytest.mark.parametrize("kind", ["random", "one", "even"])
def test_few_pairs_have_the_bits_of_listed_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pairs as there is room for: experts with several blocks, with one, with none."""
    use(monkeypatch, NARROW, 16)
    weights, ids = routing(ROOM // 2, 9, 2, kind)
    x, given = surrounded(randn(len(ids), 64, seed=9)), experts(9, 64, 32, bias=True)
    few = fast.moe_experts(x, weights, ids, *given[:2], CLAMPED, *given[2:])
    listed(monkeypatch)
    assert torch.equal(few, fast.moe_experts(x, weights, ids, *given[:2], CLAMPED, *given[2:]))


def test_the_tables_serve_every_size() -> None:
    """From one row to more than any table names, by shipped tiles."""
    for tokens, num in ((2, 8), (40, 2), (80, 2)):
        weights, ids = routing(tokens, num, 2, "random")
        agree(randn(tokens, 64, seed=9), weights, ids, SwiGlu(), experts(num, 64, 32, bias=False))


@pytest.mark.parametrize("tile", [WIDE, NARROW], ids=["tokens", "weights"])
def test_a_token_does_not_depend_on_its_company(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one tile: the bits of a token alone are its bits in any batch, in any place."""
    use(monkeypatch, tile, 16)
    weights, ids = routing(20, 4, 2, "random")
    x, given = randn(20, 64, seed=9), experts(4, 64, 32, bias=False)

    def run(rows: torch.Tensor) -> torch.Tensor:
        return fast.moe_experts(x[rows], weights[rows], ids[rows], *given[:2], SwiGlu())

    everyone = run(torch.arange(20))
    assert torch.equal(run(torch.arange(20)), everyone)
    assert torch.equal(run(torch.tensor([7]))[0], everyone[7])
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(shuffled), everyone[shuffled])


@pytest.mark.parametrize("pairs", [3, SMALL, SMALL + 300])
@pytest.mark.parametrize("kind", ["random", "one", "even"])
@pytest.mark.parametrize("unit", [16, 32])
def test_groups(pairs: int, kind: str, unit: int) -> None:
    """One launch or three: rows sorted by expert, stably, each expert's from a unit's start, every pair exactly once."""
    num, block_m = 7, 32
    _, ids = routing(pairs, num, 1, kind)
    groups = group_rows(ids, num, block_m, unit)
    flat, row_pair, pair_row = ids.flatten().cpu(), groups.row_pair.cpu(), groups.pair_row.cpu()
    entries = []
    for height, blocks in zip((block_m, unit), groups.tables, strict=False):
        assert blocks.block_m == height and int(blocks.count) <= blocks.capacity
        entries += [
            (start, expert, rows, height) for expert, start, rows in blocks.table.T[: int(blocks.count)].tolist()
        ]
    entries.sort()
    assert len(groups.tables) == (1 if unit == block_m else 2)
    end, seen = 0, []
    for (
        start,
        expert,
        rows,
        height,
    ) in entries:  # blocks lie side by side, hold rows of one expert, and are full but the last
        assert start == end and 0 < rows <= height
        end = start + height
        mine = row_pair[start : start + rows]
        assert (flat[mine] == expert).all() and (pair_row[mine] == torch.arange(start, start + rows)).all()
        seen += mine.tolist()
    counts = torch.bincount(flat, minlength=num)
    assert end == int(((counts + unit - 1) // unit).sum()) * unit <= groups.capacity_rows
    assert seen == flat.argsort(stable=True).tolist()


@pytest.mark.parametrize("tile", [WIDE, NARROW], ids=["tokens", "weights"])
def test_short_blocks_take_what_is_left(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts with fewer rows than a block, with one and a bit, with none: tall and short tiles give one result."""
    tiles = ExpertTiles(block_m=32, unit=16, first=tile, second=tile)
    monkeypatch.setattr(tuning, "choose", lambda *_: tiles)
    weights, ids = routing(70, 6, 2, "even")
    agree(surrounded(randn(70, 64, seed=9)), weights, ids, CLAMPED, experts(6, 64, 32, bias=True))
    agree(surrounded(randn(9, 64, seed=9)), weights[:9], ids[:9], CLAMPED, experts(6, 64, 32, bias=True))


def test_gradients_and_other_types_go_to_torch() -> None:
    weights, ids = routing(5, 4, 2, "random")
    w_gate_up, w_down, *_ = experts(4, 32, 16, bias=False)
    assert w_gate_up is not None and w_down is not None
    x = randn(5, 32).requires_grad_()
    fast.moe_experts(x, weights, ids, w_gate_up, w_down, SwiGlu()).float().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    wide = fast.moe_experts(x.detach().float(), weights, ids, w_gate_up.float(), w_down.float(), SwiGlu())
    want = reference.moe_experts(x.detach().double(), weights, ids, w_gate_up, w_down, SwiGlu())
    assert wide.dtype == torch.float32 and error(wide, want) < 1e-5
    packed = pack_for_device(w_gate_up, "int8", glu=True), pack_for_device(w_down, "int8")
    with pytest.raises(ConfigError, match=r"cannot take torch\.float32 activations"):
        fast.moe_experts(x.detach().float(), weights, ids, *packed, SwiGlu())


def test_a_product_alone() -> None:
    """Rows in order, one matrix, a float32 result, a bias, both kernels; rows beyond the last are not written."""
    x, w, bias = surrounded(randn(21, 80)), randn(40, 80, seed=1, scale=0.1), randn(40, seed=2)
    want = x.double() @ w.double().T + bias.double()
    for tile in (WIDE, NARROW):
        got = Product(x=x, w=w, bias=bias, tile=tile, block_m=16, out_dtype=torch.float32).run()
        assert got.device.type == DEVICE and error(got, want) < 1e-6


@pytest.mark.skipif(DEVICE != "cuda", reason="no GPU: nothing to capture")
@pytest.mark.parametrize("tokens", [1, 200])
def test_a_captured_layer_never_asks_the_host(tokens: int) -> None:
    """Captured once, replayed with other routings: no synchronisation, the same bits as a fresh call."""
    weights, ids = routing(tokens, 16, 4, "random")
    x, given = randn(tokens, 128, seed=9), experts(16, 128, 64, bias=False)
    fast.moe_experts(x, weights, ids, *given[:2], SwiGlu())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fast.moe_experts(x, weights, ids, *given[:2], SwiGlu())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for seed in (1, 2):
        fresh_weights, fresh_ids = routing(tokens, 16, 4, "even" if seed == 1 else "random", seed)
        weights.copy_(fresh_weights)
        ids.copy_(fresh_ids)
        graph.replay()
        assert torch.equal(out, fast.moe_experts(x, weights, ids, *given[:2], SwiGlu()))
