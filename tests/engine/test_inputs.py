"""Steps written in place against steps made from nothing, over traffic in which sequences come, grow, lose their blocks and go."""

from __future__ import annotations

import random

import pytest

from ridgepoint.engine.inputs import InputBuilder, ScoredRows
from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import Batch, StepResult

SIZE = 4


def from_nothing(batch: Batch) -> tuple[dict[str, list[int]], list[list[int]], list[int]]:
    """The arrays of a step by their definition, its block tables, and the tokens that its last logit rows score."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, rows, scored_rows, scored = [0], list[int](), list[int](), list[int]()
    tables: list[list[int]] = []
    for segment in batch.segments:
        request = segment.request
        stop = segment.start + segment.num_tokens
        for position in range(segment.start, stop):
            tokens.append(request.tokens[position])
            positions.append(position)
            slots.append(request.blocks[position // SIZE] * SIZE + position % SIZE)
            if request.num_scored <= position + 1 < request.num_prompt:
                scored_rows.append(len(tokens) - 1)
                scored.append(request.tokens[position + 1])
        starts.append(len(tokens))
        tables.append(request.blocks[: -(-stop // SIZE)])
        if segment.wants_sample:
            rows.append(len(tokens) - 1)
    arrays = {
        "token_ids_T": tokens, "positions_T": positions, "slots_T": slots, "query_starts_B1": starts,
        "context_lens_B": [segment.start + segment.num_tokens for segment in batch.segments],
        "logit_rows_R": rows + scored_rows,
    }  # fmt: skip
    return arrays, tables, scored


def check(batch: Batch, builder: InputBuilder) -> list[ScoredRows]:
    sizes, scored = builder.build(batch)
    inputs = builder.room.first(sizes)
    arrays, tables, tokens = from_nothing(batch)
    for name, expected in arrays.items():
        assert getattr(inputs, name).tolist() == expected, name
    for row, blocks in zip(inputs.block_tables_BN.tolist(), tables, strict=True):
        assert row[: len(blocks)] == blocks
    assert sizes.num_table_columns == max(map(len, tables))
    assert [token for rows in scored for token in rows.token_ids] == tokens
    return scored


@pytest.mark.parametrize("seed", range(6))
def test_a_step_in_place_is_the_step_made_from_nothing(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(
        Limits(
            num_blocks=30, block_tokens=SIZE, max_num_seqs=6, max_step_tokens=24, max_context=60, max_waiting=50,
            prefix_cache=seed % 2 == 0,
        )
    )  # fmt: skip
    builder = InputBuilder(HostInputs.room(24, 6, 15), SIZE)
    for i in range(40):
        params = SamplingParams(max_tokens=rng.randrange(1, 25), prompt_logprobs=1 if i % 7 == 0 else None)
        scheduler.add(Request(str(i), [rng.randrange(9) for _ in range(rng.randrange(1, 34))], params, seed=i))
    steps = 0
    while (batch := scheduler.next_batch(0.0)) is not None:
        scored = check(batch, builder)
        steps += 1
        entries = {rows.place: [None] * len(rows.token_ids) for rows in scored}
        scheduler.commit(batch, StepResult([rng.randrange(9) for _ in batch.sampled], 0.0, prompt_logprobs=entries))
        if rng.random() < 0.1 and scheduler.running:
            scheduler.cancel(rng.choice(scheduler.running).id)
    assert steps > 40 and scheduler.preemptions_total > 0
