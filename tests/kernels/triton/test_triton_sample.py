"""The sampler's Triton kernels against the definition, and against the numbers that the host draws."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import DeviceRules, Shaping, reference, torch_ops
from ridgepoint.kernels.sample import triton as path
from ridgepoint.kernels.sample.random import uniforms
from ridgepoint.kernels.triton_call import DEVICE_TYPE

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


def rules_of(vocab: int) -> DeviceRules:
    """Seats 2 and 0 of four are taken: one by a prompt, biases and stop tokens, one by what is counted."""
    counts_SV, addends_SV = torch.zeros(4, vocab, dtype=torch.int32), torch.zeros(4, vocab)
    counts_SV[2, torch.tensor([3, 70, 149])] += sample.IN_PROMPT
    counts_SV[2, torch.tensor([9, 70])] += sample.IS_STOP
    addends_SV[2, torch.tensor([5, 70, 100])] = torch.tensor([4.0, -7.0, float("-inf")])
    rates = [
        torch.tensor(v, dtype=torch.float64)
        for v in ([1.3, 1.5, 0.8, 1.3], [0.5, 9.0, -1.0, 0.5], [0.25, 9.0, 0.3, 0.2])
    ]
    return DeviceRules(
        counts_SV=counts_SV, addends_SV=addends_SV, seats_R=torch.tensor([2, -1, 0, -1]), banned_R=torch.tensor([1, 1, 0, 0]),
        repetition_R=rates[0], presence_R=rates[1], frequency_R=rates[2],
    )  # fmt: skip


@pytest.mark.parametrize("other", [path, torch_ops], ids=["triton", "torch"])
def test_rules_follow_what_each_seat_has_said(other: ModuleType) -> None:
    vocab = 150
    logits_RV = torch.randn(4, vocab, generator=torch.Generator().manual_seed(1)) * 4
    rules, plain = rules_of(vocab), rules_of(vocab)
    for tokens in ([70, 5, 9, 1], [70, 5, 9, 1], [8, 6, -1, 1]):
        other.count_on_device(rules.counts_SV, rules.seats_R, torch.tensor(tokens))
        reference.count_on_device(plain.counts_SV, plain.seats_R, torch.tensor(tokens))
    assert torch.equal(rules.counts_SV, plain.counts_SV) and int(rules.counts_SV[2, 70]) & 7 == 2
    before = logits_RV.clone()
    got, want = other.edit_on_device(logits_RV, rules), reference.edit_on_device(logits_RV, plain)
    assert torch.equal(logits_RV, before), "log-probabilities are read from it afterwards"
    torch.testing.assert_close(got, want, rtol=2e-7, atol=0.0)
    assert torch.equal(got[1], before[1]) and torch.equal(got[3], before[3])
    assert got[0, 9] == got[0, 70] == got[0, 100] == float("-inf") and got[2, 9] > float("-inf")


@pytest.mark.parametrize("other", [path, torch_ops], ids=["triton", "torch"])
def test_scores_agree_with_the_definition(other: ModuleType) -> None:
    logits_RV = torch.randn(5, 200, generator=torch.Generator().manual_seed(2)) * 3
    logits_RV = logits_RV.bfloat16().float()  # ties are common
    logits_RV[3, :190] = float("-inf")  # whole chunks without a number
    ids_R, num_top_R = torch.tensor([17, 0, 199, 195, 3]), torch.tensor([0, 7, 5, 7, -1])
    got, want = (p.score_on_device(logits_RV, ids_R, num_top_R, 7) for p in (other, reference))
    for r, num_top in enumerate(num_top_R.tolist()):
        if num_top >= 0:
            assert float(got[0][r]) == pytest.approx(float(want[0][r]), abs=1e-5)
            assert got[1][r, :num_top].tolist() == want[1][r, :num_top].tolist()
            assert got[2][r, :num_top].tolist() == pytest.approx(want[2][r, :num_top].tolist(), abs=1e-5)


def test_a_vocabulary_may_be_smaller_than_the_lists() -> None:
    logits_RV = torch.tensor([[1.0, 3.0, 2.0]])
    for other in (path, torch_ops):
        _, ids_RN, values_RN = other.score_on_device(logits_RV, torch.tensor([0]), torch.tensor([3]), 8)
        assert ids_RN.shape == values_RN.shape == (1, 8) and ids_RN[0, :3].tolist() == [1, 2, 0]


FLAT = {
    "equal": lambda generator: torch.zeros(700),
    "nearly": lambda generator: torch.randn(700, generator=generator) * 1e-3,
    "wide": lambda generator: torch.randn(700, generator=generator),
    "tiny": lambda generator: torch.randn(700, generator=generator) * 2.0 ** -torch.arange(700).remainder(16),
    "two": lambda generator: torch.arange(700).remainder(2).float(),
    "banned": lambda generator: torch.where(torch.arange(700) % 3 == 0, float("-inf"), torch.randn(700, generator=generator)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FLAT)
def test_flat_rows_are_narrowed_down_in_few_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose likely tokens are too many for the lists: the same token as by definition, and a bound on the passes."""
    row_V = FLAT[kind](torch.Generator().manual_seed(4))
    rules = [
        (1.0, k, p, m)
        for k, p, m in ((0, 0.9, 0.0), (0, 0.5, 0.0), (300, 1.0, 0.0), (300, 0.9, 0.01), (699, 0.99, 0.0))
    ]
    shaping, logits_RV = shaping_of(rules, seed=5), row_V.repeat(len(rules), 1)
    passes = 0
    look = path.kernels._look

    def counted(*args: object, **facts: object) -> object:
        nonlocal passes
        passes += 1
        return look(*args, **facts)

    if DEVICE_TYPE == "cpu":
        monkeypatch.setattr(path.kernels, "_look", counted)
    assert torch.equal(path.choose(logits_RV, shaping), reference.choose(logits_RV, shaping))
    assert passes <= len(rules) * 2 * (8 if kind != "tiny" else 64)
