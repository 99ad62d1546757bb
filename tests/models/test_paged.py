"""The paged context as a whole: mixed batches, reused blocks, blocks as bytes, and other people's NaNs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import parity
from ridgepoint.kernels.dispatch import forced
from ridgepoint.models.checkpoint import load
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs, block_bytes
from ridgepoint.nn.context import CausalContext

SIZE = 4


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss", "deepseek_v3"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder: Path = tmp_path_factory.mktemp("model")
    parity.make_checkpoint(next(case for case in parity.CASES if case.name == request.param), folder)
    return load(folder, torch.float32)


def prompt(seed: int, length: int) -> torch.Tensor:
    return torch.randint(0, 128, (length,), generator=torch.Generator().manual_seed(seed))


def step(decoder: Decoder, cache: KVCache, work: list[tuple[torch.Tensor, int, list[int]]]) -> list[torch.Tensor]:
    """Logits of (new ids, tokens already cached, blocks) for each sequence, all in one step."""
    positions = [torch.arange(done, done + len(ids)) for ids, done, _ in work]
    tables = torch.zeros(len(work), max(len(blocks) for _, _, blocks in work), dtype=torch.long)
    for b, (_, _, blocks) in enumerate(work):
        tables[b, : len(blocks)] = torch.tensor(blocks)
    lengths = torch.tensor([len(ids) for ids, _, _ in work])
    inputs = StepInputs(
        token_ids_T=torch.cat([ids for ids, _, _ in work]),
        positions_T=torch.cat(positions),
        slots_T=torch.cat([tables[b][p // SIZE] * SIZE + p % SIZE for b, p in enumerate(positions)]),
        query_starts_B1=torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0))),
        context_lens_B=torch.tensor([done + len(ids) for ids, done, _ in work]),
        block_tables_BN=tables,
        logit_rows_R=torch.arange(int(lengths.sum())),
    )
    with torch.inference_mode():
        logits = decoder.logits(decoder.hidden(inputs.token_ids_T, PagedContext(cache, inputs)))
    return list(logits.split(lengths.tolist()))


def whole(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """The slow twin: no cache, every op by its definition."""
    with torch.inference_mode(), forced("reference"):
        return decoder(ids, CausalContext(1, len(ids)))


def test_a_mixed_step_gives_each_sequence_its_own_logits(decoder: Decoder) -> None:
    """Decodes of unlike length, a fresh prompt and a continued one, in one step."""
    cache = KVCache(decoder.spec, 40, SIZE, torch.float32)
    ids = [prompt(0, 30), prompt(1, 9), prompt(2, 14), prompt(3, 21), prompt(4, 2)]
    blocks = [list(range(8 * i, 8 * i + 8)) for i in range(5)]
    done = [29, 8, 0, 10, 1]
    for i in range(5):
        if done[i]:
            step(decoder, cache, [(ids[i][: done[i]], 0, blocks[i])])
    got = step(decoder, cache, [(ids[i][done[i] :], done[i], blocks[i]) for i in range(5)])
    for i in range(5):
        want = whole(decoder, ids[i])[done[i] :]
        assert torch.allclose(got[i], want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_a_block_travels_as_bytes(decoder: Decoder) -> None:
    """Export a prefix, import it under other numbers into another cache, go on from there."""
    ids = prompt(5, 11)
    first, second = (KVCache(decoder.spec, 6, SIZE, torch.float32) for _ in range(2))
    want = step(decoder, first, [(ids, 0, [4, 1, 3])])[0]
    for source, target in ((4, 0), (1, 5)):
        data = first.export_block(source)
        assert data.dtype == torch.uint8 and data.numel() == first.block_bytes
        assert first.block_bytes == block_bytes(decoder.spec, SIZE, torch.float32)
        second.import_block(target, data)
    got = step(decoder, second, [(ids[8:], 8, [0, 5, 2])])[0]
    assert torch.allclose(got, want[8:], rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    with pytest.raises(ValueError, match="a block is"):
        second.import_block(0, data[:-1])


def test_a_new_owner_inherits_nothing(decoder: Decoder) -> None:
    """Blocks full of NaN from their last owner, in a padded batch beside a longer sequence."""
    ids = [prompt(6, 6), prompt(7, 20)]
    clean, dirty = (KVCache(decoder.spec, 16, SIZE, torch.float32) for _ in range(2))
    for kv in dirty.layers:
        kv.fill_(float("nan"))
    results = []
    for cache in (clean, dirty):
        work = [(ids[0][:-1], 0, [1, 2]), (ids[1][:-1], 0, [3, 4, 5, 6, 7])]
        prefill = step(decoder, cache, work)
        decode = step(decoder, cache, [(ids[0][-1:], 5, [1, 2]), (ids[1][-1:], 19, [3, 4, 5, 6, 7])])
        results.append(prefill + decode)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
