"""What the tests of Triton's products share: the device, random inputs surrounded by NaN, and errors against float64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ridgepoint.kernels.moe_experts.unsummed import UnsummedRows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = 5e-3  # relative error of one rounding to bf16 (2e-3), twice in a row, with room for the sum behind it
# What a product adds to that when its weights are rounded to bf16 after scaling.
BF16_WEIGHTS = 7e-3


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16().to(DEVICE)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative; a NaN in `got` never passes a comparison."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))


def surrounded(x: torch.Tensor, margin: int = 8) -> torch.Tensor:
    """`x` as a view of rows with NaN to the right, above and below (rows stay 16-byte aligned where they were)."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + margin), float("nan"), dtype=x.dtype, device=x.device)
    view = wide[1:-1, : x.shape[1]]
    view.copy_(x)
    return view


def routing(tokens: int, experts: int, top_k: int, kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids: at random, all tokens on the same experts, or only even experts (odd ones stay empty)."""
    g = torch.Generator().manual_seed(seed)
    if kind == "one":
        ids = torch.arange(experts)[-top_k:].expand(tokens, top_k).contiguous()
    else:
        allowed = torch.arange(0, experts, 2 if kind == "even" else 1)
        ids = allowed[torch.rand(tokens, len(allowed), generator=g).argsort(-1)[:, :top_k]].contiguous()
    return torch.rand(tokens, top_k, generator=g).to(DEVICE), ids.to(DEVICE)


def unsummed(rows: int, width: int, top_k: int, ordered: bool) -> tuple[UnsummedRows, torch.Tensor]:
    """What experts leave, among rows of NaN that belong to no pair unless they are ordered, and its sums in float64."""
    g = torch.Generator().manual_seed(rows)
    pairs = rows * top_k
    y = torch.full((pairs if ordered else 2 * pairs + 3, width), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    place = (torch.arange(pairs) if ordered else torch.randperm(len(y), generator=g)[:pairs]).to(DEVICE)
    y[place] = randn(pairs, width, seed=1)
    weights = torch.rand(rows, top_k, generator=g).to(DEVICE)
    want = (y[place].double().view(rows, top_k, width) * weights.double()[..., None]).sum(1)
    return UnsummedRows(y_MD=y, weights_TK=weights, pair_row=None if ordered else place.int()), want


def poisoned_empty(monkeypatch_setattr: Callable[..., None]) -> None:
    """Make every fresh tensor hold NaN (or a large integer), so that whatever a kernel fails to write or mask shows."""
    plain = torch.empty

    def empty(*shape: object, **options: object) -> torch.Tensor:
        fresh = plain(*shape, **options)  # type: ignore[call-overload]
        return fresh.fill_(float("nan") if fresh.is_floating_point() else torch.iinfo(fresh.dtype).max // 2)

    monkeypatch_setattr(torch, "empty", empty)
