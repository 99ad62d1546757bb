"""The native sampler against the definition of sampling and its numpy twin, and the bits of its results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_support import ISAS, needs_native, same_bits_whoever_computes

from ridgepoint.kernels import native
from ridgepoint.kernels.sample import Edits, SampledRows, Shaping, cpu, reference, step
from ridgepoint.kernels.sample import native as path
from ridgepoint.kernels.sample.random import uniforms
from ridgepoint.kernels.tensor_call import recording

pytestmark = needs_native
# temperature, top_k, top_p, min_p
SHAPES = [(0.7, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 40, 0.95, 0.02),
          (0.0, 3, 0.5, 0.0), (2.5, 0, 0.999, 0.0), (1.0, 0, 1.0, 1e-7), (1.0, 1, 1.0, 0.0), (1.0, 10**6, 0.5, 0.0),
          (1e-30, 0, 1.0, 0.0)]  # fmt: skip


def make(num_rows: int, vocab: int, seed: int) -> tuple[torch.Tensor, Shaping]:
    logits_RV = torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    columns = np.array([SHAPES[r % len(SHAPES)] for r in range(num_rows)]).T
    return logits_RV, Shaping(
        temperature_R=columns[0], top_k_R=columns[1].astype(np.int64), top_p_R=columns[2], min_p_R=columns[3],
        uniform_R=uniforms([seed] * num_rows, list(range(num_rows))),
    )  # fmt: skip


def pick(shaping: Shaping, row: int) -> Shaping:
    return Shaping(**{name: values[[row]] for name, values in vars(shaping).items()})


def edits_of(rows: int, vocab: int) -> list[Edits | None]:
    """Every second row: penalties, a bias, a ban, or all of them."""
    rng = np.random.default_rng(vocab)
    made: list[Edits | None] = []
    for r in range(rows):
        seen = rng.permutation(vocab)[: min(vocab, 3 + r)] if r % 4 in (1, 2) else np.zeros(0, np.int64)
        added = rng.permutation(vocab)[: max(1, vocab // 3)][:9] if r % 4 == 3 or r % 8 == 2 else np.zeros(0, np.int64)
        addends = rng.normal(0, 3, len(added)).astype(np.float32)
        addends[vocab // 2 :: 2] = -np.inf
        edits = Edits(
            seen_N=seen, output_counts_N=rng.integers(0, 3, len(seen)), repetition=1.2, presence=0.4, frequency=0.1,
            added_A=added, addends_A=addends,
        )  # fmt: skip
        made.append(edits if len(seen) or len(added) else None)
    return made


def same_draws(got: tuple, expected: tuple) -> None:
    assert got[0] == expected[0]
    for mine, theirs in zip(got[1], expected[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine[0] == pytest.approx(theirs[0], abs=2e-5)
            assert [token for token, _ in mine[1]] == [token for token, _ in theirs[1]]
            assert [value for _, value in mine[1]] == pytest.approx([value for _, value in theirs[1]], abs=2e-5)


@pytest.mark.parametrize("vocab", [1, 2, 17, 300, 1009, 2048])
@pytest.mark.parametrize("isa", ISAS)
def test_a_native_step_agrees_with_the_definition(isa: str, vocab: int) -> None:
    logits_RV, shaping = make(60, vocab, seed=vocab)
    logits_RV[7, vocab // 2] = float("nan")
    edits, num_top = edits_of(60, vocab), [None if r % 3 else r % 23 for r in range(60)]
    for rules in (shaping, None):
        expected = reference.draw(logits_RV.clone(), rules, edits, num_top)
        with native.forced_isa(isa):
            same_draws(path.draw(logits_RV.clone(), rules, edits, num_top), expected)
        same_draws(step.draw(cpu, logits_RV.clone(), rules, edits, num_top), expected)


def test_a_native_step_has_the_tokens_of_its_numpy_twin() -> None:
    logits_RV, shaping = make(240, 32_003, seed=3)
    assert path.draw(logits_RV, shaping, [None] * 240, [None] * 240)[0] == cpu.choose(logits_RV, shaping).tolist()
    logits_RV, shaping = make(96, 5000, seed=4)
    for spread in (0.01, 1.0, 30.0):  # from nearly uniform, where every token must be sorted, to nearly certain
        scaled = logits_RV * spread
        assert path.draw(scaled, shaping, [None] * 96, [None] * 96)[0] == cpu.choose(scaled, shaping).tolist()


def test_equal_logits_are_kept_or_dropped_together_natively() -> None:
    logits_RV = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).repeat(200, 1)
    for top_k, top_p in ((1, 1.0), (2, 1.0), (0, 0.2), (3, 0.5)):
        shaping = Shaping(
            temperature_R=np.ones(200), top_k_R=np.full(200, top_k), top_p_R=np.full(200, top_p),
            min_p_R=np.zeros(200), uniform_R=uniforms([1] * 200, list(range(200))),
        )  # fmt: skip
        assert (
            path.draw(logits_RV, shaping, [None] * 200, [None] * 200)[0]
            == reference.choose(logits_RV, shaping).tolist()
        )


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_is_drawn_alike_by_any_thread_in_any_company(isa: str) -> None:
    logits_RV, shaping = make(33, 1500, seed=6)
    edits, num_top = edits_of(33, 1500), [5] * 33

    def results() -> torch.Tensor:
        token_ids, scores = path.draw(logits_RV.clone(), shaping, edits, num_top)
        return torch.tensor(
            [[token, *(value for _, value in found[1])] for token, found in zip(token_ids, scores, strict=True)]
        )

    with native.forced_isa(isa):
        together = same_bits_whoever_computes(results)
        for r in range(33):
            token_ids, scores = path.draw(logits_RV[r : r + 1], pick(shaping, r), [edits[r]], [5])
            assert scores[0] is not None
            assert [token_ids[0], *(value for _, value in scores[0][1])] == together[r].tolist()


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    none = np.zeros(0, np.int64)
    for seen, added in ((np.array([8]), none), (none, np.array([-1]))):
        edits = Edits(
            seen_N=seen, output_counts_N=seen * 0, repetition=1.1, presence=0.0, frequency=0.0, added_A=added,
            addends_A=np.zeros(len(added), np.float32),
        )  # fmt: skip
        with pytest.raises(native.NativeError, match="outside the vocabulary"):
            path.draw(torch.zeros(1, 8), None, [edits], [None])


def test_a_recorded_draw_follows_the_rules_as_they_are_at_each_replay() -> None:
    vocab, most = 300, 8
    logits_RV = torch.zeros(most, vocab)
    sampled = SampledRows(most, vocab)
    with recording(most, most) as recorded:
        sampled.draw(logits_RV)
    for seed, count, num_top in ((1, 5, None), (2, 8, 3), (3, 4, 17), (4, 2, None), (5, 6, vocab + 9)):
        given, shaping = make(count, vocab, seed)
        edits = edits_of(count, vocab)
        logits_RV[:count] = given
        logits_RV[count:] = torch.randn(most - count, vocab)  # rows that nobody samples from
        sampled.clear()
        if seed != 4:
            sampled.shape(shaping)
        for row, edit in enumerate(edits):
            if edit is not None:
                sampled.edit(row, edit)
            if num_top is not None:
                sampled.score(row, num_top)
        before = logits_RV.clone()
        recorded.replay(most, most)
        expected = step.draw(cpu, given, None if seed == 4 else shaping, edits, [num_top] * count)
        same_draws(sampled.found(count), expected)
        assert torch.equal(logits_RV, before)
