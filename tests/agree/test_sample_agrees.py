"""The sampler against its definition, against itself in company, and against the distribution it is asked for."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import Edits, Shaping, cpu, reference, step, torch_ops
from ridgepoint.kernels.sample.random import stream_key, uniform, uniforms

SHAPES = [(0.7, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 40, 0.95, 0.02),
          (0.0, 3, 0.5, 0.0), (2.5, 0, 0.999, 0.0), (1.0, 0, 1.0, 1e-7), (1.0, 1, 1.0, 0.0), (1.0, 10**6, 1.0, 0.0), (0.01, 0, 1.0, 0.0),
          (1e-30, 0, 1.0, 0.0)]  # fmt: skip


def make(num_rows: int, vocab: int, seed: int) -> tuple[torch.Tensor, Shaping]:
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(num_rows, vocab, generator=generator) * 3
    columns = np.array([SHAPES[r % len(SHAPES)] for r in range(num_rows)]).T
    return logits_RV, Shaping(
        temperature_R=columns[0], top_k_R=columns[1].astype(np.int64), top_p_R=columns[2], min_p_R=columns[3],
        uniform_R=uniforms([seed] * num_rows, list(range(num_rows))),
    )  # fmt: skip


def pick(shaping: Shaping, rows: list[int]) -> Shaping:
    return Shaping(
        temperature_R=shaping.temperature_R[rows], top_k_R=shaping.top_k_R[rows], top_p_R=shaping.top_p_R[rows],
        min_p_R=shaping.min_p_R[rows], uniform_R=shaping.uniform_R[rows],
    )  # fmt: skip


@pytest.mark.parametrize("vocab", [1, 2, 17, 300, 1024, 1009])
@pytest.mark.parametrize("path", [cpu, torch_ops], ids=["cpu", "torch_ops"])
def test_choose_agrees_with_the_definition(path: ModuleType, vocab: int) -> None:
    logits_RV, shaping = make(60, vocab, seed=vocab)
    assert torch.equal(path.choose(logits_RV, shaping), reference.choose(logits_RV, shaping))
    assert torch.equal(path.choose(logits_RV, None), reference.choose(logits_RV, None))


@pytest.mark.parametrize("path", [cpu, torch_ops], ids=["cpu", "torch_ops"])
def test_equal_logits_are_kept_or_dropped_together(path: ModuleType) -> None:
    logits_RV = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).repeat(400, 1)
    for top_k, top_p in ((1, 1.0), (2, 1.0), (0, 0.2), (3, 0.5)):
        shaping = Shaping(
            temperature_R=np.ones(400), top_k_R=np.full(400, top_k), top_p_R=np.full(400, top_p),
            min_p_R=np.zeros(400), uniform_R=uniforms([1] * 400, list(range(400))),
        )  # fmt: skip
        ids = path.choose(logits_RV, shaping)
        assert set(ids.tolist()) == {1, 2, 3}
        assert torch.equal(ids, reference.choose(logits_RV, shaping))


@pytest.mark.parametrize("path", [cpu, torch_ops], ids=["cpu", "torch_ops"])
@pytest.mark.parametrize("spread", [0.1, 6.0])
def test_a_wide_nucleus_falls_back_to_a_full_sort(path: ModuleType, spread: float) -> None:
    vocab = 8 * torch_ops.HEAD
    logits_RV = torch.randn(6, vocab, generator=torch.Generator().manual_seed(0)) * spread
    shaping = Shaping(
        temperature_R=np.ones(6), top_k_R=np.array([0, 0, 0, vocab - 5, vocab - 5, 7]),
        top_p_R=np.array([0.9, 0.5, 0.05, 0.9999, 1.0, 0.9]), min_p_R=np.zeros(6), uniform_R=uniforms([3] * 6, list(range(6))),
    )  # fmt: skip
    assert torch.equal(path.choose(logits_RV, shaping), reference.choose(logits_RV, shaping))


@pytest.mark.parametrize("vocab", [37, 1000, 32_003])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_alone_and_in_any_company(vocab: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits_RV, shaping = make(33, vocab, seed=5)
        together = cpu.choose(logits_RV, shaping).tolist()
        alone = [int(cpu.choose(logits_RV[r : r + 1].clone(), pick(shaping, [r]))) for r in range(33)]
        assert alone == together
        order = np.random.default_rng(0).permutation(33)[:20].tolist()
        assert cpu.choose(logits_RV[order], pick(shaping, order)).tolist() == [together[r] for r in order]
        # Not just the tokens: the distribution itself, bit for bit.
        bits = torch.softmax(logits_RV / 0.7, -1).cumsum(-1, dtype=torch.float64)
        for r in (0, 1, 17, 32):
            assert torch.equal(
                bits[r], torch.softmax(logits_RV[r : r + 1].clone() / 0.7, -1).cumsum(-1, dtype=torch.float64)[0]
            )
    finally:
        torch.set_num_threads(before)


def test_penalties_agree_with_the_definition() -> None:
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 4
    ids_N, counts_N = np.array([3, 7, 20, 49]), np.array([0, 1, 5, 2])
    for repetition, presence, frequency in ((1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (1.0, 0.7, 0.0), (0.8, -1.0, 0.3)):
        fast, other, slow = logits_V.clone(), logits_V.clone(), logits_V.clone()
        sample.penalise(fast, ids_N, counts_N, repetition=repetition, presence=presence, frequency=frequency)
        torch_ops.penalise(other, ids_N, counts_N, repetition, presence, frequency)
        reference.penalise(slow, ids_N, counts_N, repetition, presence, frequency)
        torch.testing.assert_close(fast, slow, rtol=2e-7, atol=0.0)  # one rounding: 1 / repetition is rounded once more
        torch.testing.assert_close(other, slow, rtol=2e-7, atol=0.0)
        untouched = [token for token in range(50) if token not in ids_N.tolist()]
        assert torch.equal(fast[untouched], logits_V[untouched])


def test_log_probabilities_agree_with_the_definition() -> None:
    logits_V = (torch.randn(200, generator=torch.Generator().manual_seed(2)) * 3).bfloat16().float()  # ties are common
    for num_top in (0, 1, 5, 20, 200, 500):
        chosen, top = cpu.log_probabilities(logits_V, 17, num_top)
        expected, expected_top = reference.log_probabilities(logits_V, 17, num_top)
        assert chosen == pytest.approx(expected, abs=1e-5)
        assert [token for token, _ in top] == [token for token, _ in expected_top]
        assert [value for _, value in top] == pytest.approx([value for _, value in expected_top], abs=1e-5)
    assert cpu.log_probabilities(logits_V, 17, 5)[1] == cpu.log_probabilities(logits_V, 3, 20)[1][:5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_numbers_are_marked_and_harm_nobody(bad: float) -> None:
    logits_RV, shaping = make(20, 64, seed=9)
    expected = cpu.choose(logits_RV, shaping).tolist()
    logits_RV[3, 10] = logits_RV[5, 63] = bad
    ids = cpu.choose(logits_RV, shaping).tolist()
    assert ids[3] == ids[5] == sample.NOT_FINITE
    assert ids == reference.choose(logits_RV, shaping).tolist()
    assert [ids[r] for r in range(20) if r not in (3, 5)] == [expected[r] for r in range(20) if r not in (3, 5)]
    masked = torch.full((1, 64), float("-inf"))
    assert cpu.choose(masked, None).tolist() == [sample.NOT_FINITE]


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_draws_follow_the_distribution(shape: tuple[float, int, float, float]) -> None:
    """Chi-square of 40,000 draws against the exact probabilities; the seed is fixed, so this cannot flicker."""
    temperature, top_k, top_p, min_p = shape
    draws, vocab = 40_000, 24
    logits_V = torch.randn(vocab, generator=torch.Generator().manual_seed(4)) * 1.5
    weights = (logits_V.double() / temperature).softmax(-1)
    order = weights.sort(descending=True)
    keep = torch.ones(vocab, dtype=torch.bool)
    if top_k:
        keep &= weights >= order.values[min(top_k, vocab) - 1]
    mass = weights[keep].sum()
    ranked = order.values * keep[order.indices]
    before = ranked.cumsum(0) - ranked
    keep[order.indices] &= before < top_p * mass
    keep &= weights >= min_p * weights.max()
    expected = (weights * keep / (weights * keep).sum() * draws).numpy()
    shaping = Shaping(
        temperature_R=np.full(draws, temperature), top_k_R=np.full(draws, top_k), top_p_R=np.full(draws, top_p),
        min_p_R=np.full(draws, min_p), uniform_R=uniforms([2**63 + 5] * draws, list(range(draws))),
    )  # fmt: skip
    counts = np.bincount(cpu.choose(logits_V.repeat(draws, 1), shaping).numpy(), minlength=vocab)
    assert (counts[expected == 0] == 0).all()
    cells = expected > 0
    chi_square = ((counts[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    freedom = cells.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)  # about 1 in 10,000 above it


def test_uniform_numbers_are_uniform_and_independent() -> None:
    count = 1 << 16
    by_index = uniforms([7] * count, list(range(count)))
    by_seed = uniforms(list(range(-count // 2, count // 2)), [0] * count)
    for numbers in (by_index, by_seed):
        assert numbers.min() >= 0.0 and numbers.max() < 1.0
        cells = np.bincount((numbers * 256).astype(int), minlength=256)
        assert ((cells - count / 256) ** 2 / (count / 256)).sum() < 255 + 4 * np.sqrt(510)
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(count)
    assert abs(np.corrcoef(by_index, uniforms([8] * count, list(range(count))))[0, 1]) < 4 / np.sqrt(count)
    assert uniforms([7], [123])[0] == by_index[123]
    assert uniforms([7 + 2**64], [5])[0] == by_index[5]


def test_one_number_at_a_time_is_that_of_the_array() -> None:
    seeds = [0, 7, -1, 2**63 + 5, 2**64 - 1, 2**64 + 7]
    for index in (0, 1, 63, 10**6):
        one_by_one = [uniform(stream_key(seed), index) for seed in seeds]
        assert one_by_one == uniforms(seeds, [index] * len(seeds)).tolist()


@pytest.mark.parametrize("path", [reference, torch_ops, cpu], ids=["reference", "torch_ops", "cpu"])
@pytest.mark.parametrize("num_allowed", [0, 1, 3, 290])
def test_only_what_is_not_banned_is_drawn(path: ModuleType, num_allowed: int) -> None:
    """Rows of which a grammar leaves few tokens, or none: whatever draws the whole step agrees with each path by rows, and
    the scores are those of the logits before."""
    logits_RV, shaping = make(60, 300, seed=num_allowed)
    rng = np.random.default_rng(num_allowed)
    allowed = [set(rng.choice(300, num_allowed, replace=False).tolist()) for _ in range(60)]
    none = np.zeros(0, dtype=np.int64)
    edits: list[Edits | None] = []
    for one in allowed:
        banned = np.array([token for token in range(300) if token not in one])
        edits.append(
            Edits(
                seen_N=none, output_counts_N=none, repetition=1.0, presence=0.0, frequency=0.0, added_A=banned,
                addends_A=np.full(len(banned), -np.inf, dtype=np.float32),
            )
        )  # fmt: skip
    num_top: list[int | None] = [2] * 60
    token_ids, scores = sample.draw(logits_RV.clone(), shaping, edits, num_top)
    twin_ids, twin_scores = step.draw(path, logits_RV.clone(), shaping, edits, num_top)
    assert token_ids == twin_ids
    for row, token in enumerate(token_ids):
        assert token in allowed[row] or (token == sample.NOT_FINITE and num_allowed == 0)
        found, twin = scores[row], twin_scores[row]
        if found is not None and twin is not None:
            assert [one for one, _ in found[1]] == [one for one, _ in twin[1]]
            assert found[1][0][1] == pytest.approx(float(logits_RV[row].log_softmax(-1).max()), abs=1e-5)
