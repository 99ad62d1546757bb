"""Staging, the ladder of sizes and captured steps, with a capture that keeps the body and runs it again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_moe import VOCAB, small_decoder

from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.models.captured import Body, CapturedStep, ladder
from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs
from ridgepoint.models.staging import ALIGN, ORDER, Staging, pad_decode
from ridgepoint.models.step import CapturedOrEager, EagerStep, make_device_step

CPU = torch.device("cpu")
BLOCK = 16
SCRATCH = 12  # the block after twelve real ones


def step_of(contexts: list[int], queries: list[int], seed: int) -> HostInputs:
    """Sequences with blocks `4 b` to `4 b + 3`; every sequence's last row is wanted."""
    tables = np.arange(len(contexts) * 4).reshape(-1, 4)
    position = np.concatenate([np.arange(c - q, c) for c, q in zip(contexts, queries, strict=True)])
    sequence = np.repeat(np.arange(len(contexts)), queries)
    starts = np.array([0, *queries]).cumsum()
    return HostInputs(
        token_ids_T=np.random.default_rng(seed).integers(0, VOCAB, len(position)),
        positions_T=position,
        slots_T=tables[sequence, position // BLOCK] * BLOCK + position % BLOCK,
        query_starts_B1=starts,
        context_lens_B=np.array(contexts),
        block_tables_BN=tables[:, : -(-max(contexts) // BLOCK)],
        logit_rows_R=starts[1:] - 1,
    )


PREFILL = step_of([20, 33, 5], [20, 33, 5], 0)
DECODES = [step_of([21, 34, 6], [1, 1, 1], 1), step_of([22, 35, 7], [1, 1, 1], 2)]
MIXED = step_of([23, 41, 8], [1, 6, 1], 3)


def staging_for(max_tokens: int = 64, max_seqs: int = 5) -> Staging:
    return Staging(max_tokens=max_tokens, max_seqs=max_seqs, max_blocks_per_seq=6, num_columns=2, device=CPU)


class Plain:
    """Ends that add what they were told: ids pass, logits are kept, and each mode leaves its mark."""

    modes = ("one", "two")

    def __init__(self) -> None:
        self.mode = "one"
        self.left: list[tuple[str, torch.Tensor]] = []

    def enter(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        return token_ids_T

    def leave(self, logits_RV: torch.Tensor) -> None:
        self.left.append((self.mode, logits_RV.clone()))


def run_again(body: Body) -> Body:
    """A capture for devices without graphs: the body runs once to warm up, and again at each replay."""
    body()
    return body


def test_the_ladder_wastes_little() -> None:
    assert ladder(1) == (1,)
    assert ladder(6) == (1, 2, 4, 6)
    assert ladder(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    for most in (64, 100, 256, 1000):
        sizes = ladder(most)
        assert sizes[-1] == most and list(sizes) == sorted(set(sizes)) and len(sizes) < 60
        for below, size in itertools.pairwise(sizes):
            assert size - below - 1 < max(8, size / 8)


def test_staged_arrays_arrive_at_places_known_beforehand() -> None:
    staging = staging_for()
    for number, inputs in enumerate((PREFILL, DECODES[0], MIXED)):
        columns = np.full((2, 5), number, dtype=np.int64)
        staged = staging.stage(inputs, columns)
        foreseen = staging.views(len(inputs.token_ids_T), 3, 3, inputs.block_tables_BN.shape[1])
        assert torch.equal(staging.columns, torch.from_numpy(columns))
        for name in ORDER:
            given, place = getattr(staged, name), getattr(foreseen, name)
            assert given.data_ptr() == place.data_ptr() and given.shape == place.shape
            assert torch.equal(given, torch.from_numpy(getattr(inputs, name)))
            assert given.storage_offset() % ALIGN == 0
    with pytest.raises(ValueError, match="58 tokens"):
        staging_for(max_tokens=16, max_seqs=3).stage(PREFILL, np.zeros((2, 3), dtype=np.int64))


def test_a_staged_step_says_what_the_host_knows_of_it_unless_it_is_replayed() -> None:
    staging = Staging(max_tokens=64, max_seqs=4, max_blocks_per_seq=4, num_columns=1, device=CPU)
    columns = np.zeros((1, 4), dtype=np.int64)
    prompts, among = step_of([40, 30], [40, 7], seed=0), step_of([40, 30], [40, 1], seed=0)
    assert staging.stage(prompts, columns).known == Known(least_queries=7, most_cached=23)
    assert staging.stage(among, columns).known == Known(least_queries=1, most_cached=29)
    assert staging.stage(step_of([40, 30], [1, 1], seed=0), columns).known is None


def test_padding_rows_live_in_the_scratch_block() -> None:
    padded = pad_decode(DECODES[0], 5, SCRATCH, BLOCK)
    assert padded.is_decode and len(padded.token_ids_T) == 5
    for name in ("token_ids_T", "positions_T", "slots_T", "context_lens_B", "logit_rows_R"):
        assert np.array_equal(getattr(padded, name)[:3], getattr(DECODES[0], name))
    assert padded.slots_T[3:].tolist() == [SCRATCH * BLOCK] * 2 and padded.context_lens_B[3:].tolist() == [1, 1]
    assert (padded.block_tables_BN[3:] == SCRATCH).all() and padded.query_starts_B1.tolist() == [0, 1, 2, 3, 4, 5]
    for wrong, size in ((PREFILL, 5), (MIXED, 5), (DECODES[0], 2)):
        with pytest.raises(ValueError, match="cannot be padded"):
            pad_decode(wrong, size, SCRATCH, BLOCK)


def logits_by_layers(steps: list[HostInputs]) -> torch.Tensor:
    decoder = small_decoder()
    cache = KVCache(decoder.spec, 12, BLOCK, torch.float64)
    out = []
    for step in steps:
        inputs = step.tensors()
        x_TD = decoder.hidden(inputs.token_ids_T, PagedContext(cache, inputs))
        out.append(decoder.logits(x_TD[inputs.logit_rows_R]).double())
    return torch.stack(out)


def test_captured_and_eager_steps_take_turns_on_one_cache() -> None:
    decoder, ends = small_decoder(), Plain()
    cache, staging = KVCache(decoder.spec, 13, BLOCK, torch.float64), staging_for()
    captured = CapturedStep(
        decoder, cache, staging, ends, sizes=(1, 2, 4, 5), max_blocks_per_seq=6, scratch_block=SCRATCH, capture=run_again
    )  # fmt: skip
    step, steps = CapturedOrEager(captured, EagerStep(decoder, cache, ends)), [PREFILL, *DECODES, MIXED]
    before = [kv[:SCRATCH].clone() for kv in cache.layers]
    assert all(torch.count_nonzero(kv) == 0 for kv in before), "capturing wrote outside the scratch block"
    ends.left.clear()
    made = []
    for host, mode in zip(steps, ("one", "two", "one", "two"), strict=True):
        ends.mode = mode
        staged = staging.stage(step.pad(host), np.zeros((2, 5), dtype=np.int64))
        assert captured.runs(staged) == (host in DECODES) and staged.logit_rows_R.shape[0] == (
            4 if host in DECODES else 3
        )
        logits = step.run(staged)
        made.append(logits[:3].double())
        assert ends.left[-1][0] == mode and torch.equal(ends.left[-1][1][:3].double(), made[-1])
    assert torch.allclose(torch.stack(made), logits_by_layers(steps), rtol=0, atol=1e-5)


def test_inputs_that_were_not_staged_are_copied_to_their_place() -> None:
    decoder, ends = small_decoder(), Plain()
    cache, staging = KVCache(decoder.spec, 13, BLOCK, torch.float64), staging_for()
    captured = CapturedStep(
        decoder, cache, staging, ends, sizes=(3,), max_blocks_per_seq=6, scratch_block=SCRATCH, capture=run_again
    )  # fmt: skip
    EagerStep(decoder, cache).run(PREFILL.tensors())
    made = captured.run(DECODES[0].tensors()).double()
    assert torch.allclose(made, logits_by_layers([PREFILL, DECODES[0]])[1], rtol=0, atol=1e-5)
    longer = DECODES[0].tensors()
    wide = StepInputs(**{**vars(longer), "block_tables_BN": torch.zeros(3, 7, dtype=torch.int64)})
    assert captured.runs(longer) and not captured.runs(wide)


def test_what_needs_the_host_is_not_captured_and_the_reason_is_told() -> None:
    decoder = small_decoder()
    cache = KVCache(decoder.spec, 13, BLOCK, torch.float64)
    step, why = make_device_step(
        decoder, cache, staging_for(), Plain(), max_seqs=4, max_context=64, scratch_block=SCRATCH
    )
    assert isinstance(step, EagerStep) and step.pad(DECODES[0]) is DECODES[0]
    assert why.startswith("step eager: the host must read numbers for") and "paged_attention: cpu" in why
