"""The sampler's Triton kernels against the definition, and against the numbers that the host draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import Shaping, reference
from ridgepoint.kernels.sample import triton as path
from ridgepoint.kernels.sample.random import uniforms

SHAPES = [(0.7, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 40, 0.95, 0.02),
          (0.0, 3, 0.5, 0.0), (2.5, 0, 0.999, 0.0), (1.0, 0, 1.0, 1e-7), (1.0, 1, 1.0, 0.0), (1.0, 10**6, 1.0, 0.0), (0.01, 0, 1.0, 0.0),
          (1e-30, 0, 1.0, 0.0)]  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks to a row, and few places in a list."""
    monkeypatch.setattr(path, "CHUNK", 64)
    monkeypatch.setattr(path, "PENALTY_CHUNK", 64)
    monkeypatch.setattr(path, "ROOM", 16)


def shaping_of(rows: list[tuple[float, int, float, float]], seed: int) -> Shaping:
    columns = np.array(rows).T
    return Shaping(
        temperature_R=columns[0], top_k_R=columns[1].astype(np.int64), top_p_R=columns[2], min_p_R=columns[3],
        uniform_R=uniforms([seed] * len(rows), list(range(len(rows)))),
    )  # fmt: skip


def rows_of(shaping: Shaping, rows: list[int]) -> Shaping:
    return Shaping(**{name: values[rows] for name, values in vars(shaping).items()})


@pytest.mark.parametrize("spread", [0.2, 3.0])  # flat rows overflow the lists and are searched whole
@pytest.mark.parametrize("vocab", [1, 17, 64, 200])
def test_choose_agrees_with_the_definition(vocab: int, spread: float) -> None:
    logits_RV = torch.randn(12, vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    shaping = shaping_of(SHAPES, seed=vocab)
    assert torch.equal(path.choose(logits_RV, shaping), reference.choose(logits_RV, shaping))
    assert torch.equal(path.choose(logits_RV, None), reference.choose(logits_RV, None))


def test_equal_logits_are_kept_or_dropped_together() -> None:
    logits_RV = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).repeat(12, 1)
    for top_k, top_p in ((1, 1.0), (2, 1.0), (0, 0.2), (3, 0.5)):
        shaping = shaping_of([(1.0, top_k, top_p, 0.0)] * 12, seed=1)
        ids = path.choose(logits_RV, shaping)
        assert set(ids.tolist()) == {1, 2, 3}
        assert torch.equal(ids, reference.choose(logits_RV, shaping))


def test_a_row_is_the_same_alone_and_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_RV = torch.randn(12, 200, generator=torch.Generator().manual_seed(3)) * 2
    shaping = shaping_of(SHAPES, seed=8)
    together = path.choose(logits_RV, shaping).tolist()
    for r in (0, 2, 4, 9):
        assert int(path.choose(logits_RV[r : r + 1], rows_of(shaping, [r]))) == together[r]
    monkeypatch.setattr(path, "CHUNK", 256)
    assert path.choose(logits_RV, shaping).tolist() == together


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_numbers_are_marked_and_harm_nobody(bad: float) -> None:
    logits_RV = torch.randn(12, 200, generator=torch.Generator().manual_seed(9))
    shaping = shaping_of(SHAPES, seed=9)
    expected = path.choose(logits_RV, shaping).tolist()
    logits_RV[3, 70] = logits_RV[5, 199] = bad
    for ids, plain in ((path.choose(logits_RV, shaping), False), (path.choose(logits_RV, None), True)):
        assert ids[3] == ids[5] == sample.NOT_FINITE
        assert plain or [int(ids[r]) for r in range(12) if r not in (3, 5)] == [
            expected[r] for r in range(12) if r not in (3, 5)
        ]
    masked = torch.full((1, 64), float("-inf"))
    assert path.choose(masked, None).tolist() == [sample.NOT_FINITE]
    assert path.choose(masked, shaping_of(SHAPES[:1], seed=1)).tolist() == [sample.NOT_FINITE]


def test_strided_rows() -> None:
    wide = torch.randn(6, 400, generator=torch.Generator().manual_seed(2))
    shaping = shaping_of(SHAPES[:6], seed=2)
    assert torch.equal(path.choose(wide[:, :300], shaping), reference.choose(wide[:, :300], shaping))


def test_uniform_numbers_are_the_hosts() -> None:
    seeds = [0, 1, -1, 7, 2**63 - 1, -(2**63), 123456789012345678]
    indices = [0, 5, 1, 10**9, 3, 2, 77]
    rows = [(s, i) for s in seeds for i in indices]
    got = path.uniforms_on_device(torch.tensor([s for s, _ in rows]), torch.tensor([i for _, i in rows]))
    assert np.array_equal(got.numpy(), uniforms([s for s, _ in rows], [i for _, i in rows]))


def test_penalties_follow_what_each_seat_has_said() -> None:
    vocab = 150
    logits_RV = torch.randn(3, vocab, generator=torch.Generator().manual_seed(1)) * 4
    counts_SV = torch.zeros(4, vocab, dtype=torch.int32)
    counts_SV[2, torch.tensor([3, 70, 149])] += path.IN_PROMPT  # the prompt of the sequence in seat 2
    seats_R = torch.tensor([2, -1, 0])
    for tokens in ([70, 5, 9], [70, 5, 9], [8, 6, -1]):
        path.count_on_device(counts_SV, seats_R, torch.tensor(tokens))
    rules = {"repetition": [1.3, 1.5, 0.8], "presence": [0.5, 9.0, -1.0], "frequency": [0.25, 9.0, 0.3]}
    got = logits_RV.clone()
    path.penalise_on_device(got, counts_SV, seats_R, *(torch.tensor(v, dtype=torch.float64) for v in rules.values()))
    said = {0: {3: 0, 70: 2, 149: 0, 8: 1}, 2: {9: 2}}
    for r, tokens in said.items():
        reference.penalise(
            logits_RV[r], np.array(list(tokens)), np.array(list(tokens.values())), *(v[r] for v in rules.values())
        )
    torch.testing.assert_close(got, logits_RV, rtol=2e-7, atol=0.0)


def test_log_probabilities_agree_with_the_definition() -> None:
    logits_RV = (
        (torch.randn(3, 200, generator=torch.Generator().manual_seed(2)) * 3).bfloat16().float()
    )  # ties are common
    ids_R = torch.tensor([17, 0, 199])
    for num_top in (0, 1, 7):
        chosen_R, top_ids_RN, top_RN = path.log_probabilities_on_device(logits_RV, ids_R, num_top)
        for r in range(3):
            chosen, top = reference.log_probabilities(logits_RV[r], int(ids_R[r]), num_top)
            assert float(chosen_R[r]) == pytest.approx(chosen, abs=1e-5)
            assert top_ids_RN[r].tolist() == [token for token, _ in top]
            assert top_RN[r].tolist() == pytest.approx([value for _, value in top], abs=1e-5)
