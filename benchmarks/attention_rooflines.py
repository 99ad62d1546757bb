"""How close is native attention to the roof, by KV format, and how exact?

    python benchmarks/attention_rooflines.py --json benchmarks/results/attention_rooflines.json
    python benchmarks/attention_rooflines.py --formats bfloat16,int8
    python benchmarks/attention_rooflines.py --smoke

Grouped-query attention with 16 query and 4 key-value heads of 64 channels, and latent attention with 16 heads over a
latent of 512 and a rotary part of 64. Each row is replayed from a recording, as a step does it, over caches larger than
the last-level cache. The roof is the larger of the times that the stored bytes and the products need at this machine's
rates, measured around every row. The error is that of up to eight queries against float64 on the
numbers the cache holds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import provenance
from ridgepoint.kernels import mla_attention, native, paged_attention
from ridgepoint.kernels.packed import pack
from ridgepoint.kernels.paged_attention.native import stored
from ridgepoint.kernels.tensor_call import Recording, recording

HEADS, KV_HEADS, HEAD_DIM, LATENT, ROPE, NOPE = 16, 4, 64, 512, 64, 128
BLOCK_TOKENS = 16
BEYOND_CACHE_BYTES = 160e6
SHAPES = [
    (1, 128, 1),
    (16, 512, 1),
    (64, 128, 1),
    (64, 1024, 1),
    (16, 2048, 1),
    (1, 8192, 1),
    (1, 2048, 2048),
    (1, 2048, 512),
]
SMOKE_SHAPES = [(1, 128, 1), (2, 40, 7)]


@dataclass(frozen=True, kw_only=True)
class Row:
    kind: str
    kv_format: str
    seqs: int
    context: int
    queries: int
    relative_error: float
    us: float
    gflop_per_s: float
    gb_per_s: float
    roof: str
    roof_frac: float


class Case:
    """`seqs` sequences of `context` tokens whose last `queries` attend; as many copies of the cache as pass the caches."""

    def __init__(self, seqs: int, context: int, queries: int, dtype: torch.dtype, smoke: bool) -> None:
        self.seqs, self.context, self.queries, self.dtype = seqs, context, queries, dtype
        self.compute = torch.float32 if dtype == torch.float32 else torch.bfloat16
        blocks = -(-context // BLOCK_TOKENS)
        self.tables = torch.randperm(seqs * blocks).view(seqs, blocks)
        position = torch.arange(context)
        self.slots = self.tables[:, position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        self.plan = paged_attention.prepare(
            torch.arange(seqs + 1) * queries, torch.full((seqs,), context), self.tables, BLOCK_TOKENS
        )
        self.pairs = seqs * (queries * context - queries * (queries - 1) / 2)
        self.caches = [self.fill()]
        stored = self.caches[0].numel() * self.caches[0].element_size()
        copies = 1 if smoke else max(1, min(64, int(BEYOND_CACHE_BYTES / stored) + 1))
        self.bytes = float(stored)
        for _ in range(copies - 1):
            self.caches.append(self.allocate())
            self.caches[-1].view(torch.uint8).copy_(self.caches[0].view(torch.uint8))

    def allocate(self) -> torch.Tensor:
        raise NotImplementedError

    def fill(self) -> torch.Tensor:
        raise NotImplementedError

    def attend(self, kv: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @property
    def judged(self) -> slice:
        """The last queries of the first sequence, whose error is taken."""
        return slice(max(0, self.queries - 8), self.queries)

    def hidden(self) -> torch.Tensor:
        positions = torch.arange(self.context - self.queries, self.context)[self.judged]
        return torch.arange(self.context)[None] > positions[:, None]

    def held(self, key_dim: int, v_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the cache holds of the first sequence: keys, values, scales."""
        keys, values, scales = stored(self.caches[0][self.tables[0]], key_dim, v_dim)
        return keys[: self.context].double(), values[: self.context].double(), scales[: self.context].double()


class Gqa(Case):
    kind = "gqa"

    def allocate(self) -> torch.Tensor:
        return paged_attention.allocate(self.tables.numel(), BLOCK_TOKENS, KV_HEADS, HEAD_DIM, self.dtype, "cpu")

    def fill(self) -> torch.Tensor:
        self.flops = 4.0 * HEADS * HEAD_DIM * self.pairs
        self.q = torch.randn(self.seqs * self.queries, HEADS, HEAD_DIM).to(self.compute)
        kv = self.allocate()
        for b in range(self.seqs):
            k, v = (torch.randn(self.context, KV_HEADS, HEAD_DIM).to(self.compute) for _ in "kv")
            paged_attention.write(kv, k, v, self.slots[b])
        return kv

    def attend(self, kv: torch.Tensor) -> torch.Tensor:
        return paged_attention.attend(self.q, kv, self.plan, HEAD_DIM**-0.5, None, None)

    def error(self) -> float:
        keys, values, scales = self.held(HEAD_DIM, HEAD_DIM)
        k, v = (
            (x * scales[..., i : i + 1]).repeat_interleave(HEADS // KV_HEADS, 1) for i, x in enumerate((keys, values))
        )
        logits = torch.einsum("qhp,khp->hqk", self.q[self.judged].double(), k) * HEAD_DIM**-0.5
        truth = torch.einsum("hqk,khp->qhp", logits.masked_fill(self.hidden(), float("-inf")).softmax(-1), v)
        return relative(self.attend(self.caches[0])[self.judged], truth)


class Mla(Case):
    """Absorbed: the products with `w_uk` and `w_uv` are part of the call."""

    kind = "mla"

    def allocate(self) -> torch.Tensor:
        return mla_attention.allocate(self.tables.numel(), BLOCK_TOKENS, LATENT, ROPE, self.dtype, "cpu")

    def fill(self) -> torch.Tensor:
        tokens = self.seqs * self.queries
        self.flops = 2.0 * HEADS * (2 * LATENT + ROPE) * self.pairs + 4.0 * tokens * HEADS * LATENT * NOPE
        q = torch.randn(tokens, HEADS, NOPE + ROPE).to(self.compute)
        self.q_nope, self.q_rope = q[..., :NOPE], q[..., NOPE:].contiguous()
        self.w_uk, self.w_uv = ((torch.randn(HEADS, NOPE, LATENT) / LATENT**0.5).to(self.compute) for _ in "kv")
        self.packed = pack(self.w_uk.transpose(1, 2)), pack(self.w_uv)
        kv = self.allocate()
        for b in range(self.seqs):
            latents, ropes = (torch.randn(self.context, n).to(self.compute) for n in (LATENT, ROPE))
            mla_attention.write(kv, latents, ropes, self.slots[b])
        return kv

    def attend(self, kv: torch.Tensor) -> torch.Tensor:
        return mla_attention.attend(self.q_nope, self.q_rope, kv, *self.packed, self.plan, (NOPE + ROPE) ** -0.5, None)

    def error(self) -> float:
        keys, _, scales = self.held(LATENT + ROPE, 0)
        latents, ropes = (x * scales[:, 0, i : i + 1] for i, x in enumerate(keys[:, 0].split((LATENT, ROPE), -1)))
        q_lat = torch.einsum("qhn,hnc->qhc", self.q_nope[self.judged].double(), self.w_uk.double())
        logits = torch.einsum("qhc,kc->hqk", q_lat, latents)
        logits += torch.einsum("qhr,kr->hqk", self.q_rope[self.judged].double(), ropes)
        weights = (logits * (NOPE + ROPE) ** -0.5).masked_fill(self.hidden(), float("-inf")).softmax(-1)
        truth = torch.einsum("qhc,hvc->qhv", torch.einsum("hqk,kc->qhc", weights, latents), self.w_uv.double())
        return relative(self.attend(self.caches[0])[self.judged], truth)


def relative(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())


def record(case: Case) -> Recording:
    rows = case.seqs * case.queries
    with recording(rows, 1) as recorded:
        for kv in case.caches:
            case.attend(kv)
    return recorded


def median_s(replay: Callable[[], None], copies: int, budget_s: float) -> float:
    replay()
    times: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(times) < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        replay()
        times.append((time.perf_counter() - started) / copies)
    return statistics.median(times)


def measure(case: Gqa | Mla, fmt: str, smoke: bool) -> Row:
    probe_bytes, probe_ms, budget_s = (1 << 24, 5, 0.0) if smoke else (1 << 28, 60, 0.3)
    recorded, rows = record(case), case.seqs * case.queries
    peak = native.measure_peak_flops_per_s("f32" if case.dtype == torch.float32 else "bf16", probe_ms)
    read = native.measure_read_bytes_per_s(probe_bytes, 2)
    seconds = median_s(lambda: recorded.replay(rows, 0), len(case.caches), budget_s)
    read = max(read, native.measure_read_bytes_per_s(probe_bytes, 2))
    by_bytes, by_flops = case.bytes / read, case.flops / peak
    return Row(
        kind=case.kind, kv_format=fmt, seqs=case.seqs, context=case.context, queries=case.queries,
        relative_error=case.error(), us=seconds * 1e6, gflop_per_s=case.flops / seconds / 1e9,
        gb_per_s=case.bytes / seconds / 1e9, roof="bytes" if by_bytes > by_flops else "flops",
        roof_frac=max(by_bytes, by_flops) / seconds,
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    head = f"{'kind':5}{'KV':15}{'shape':28}{'error':>9}{'us':>10}{'GFLOP/s':>9}{'GB/s':>7}  roof   fraction"
    return "\n".join(
        [head]
        + [
            f"{r.kind:5}{r.kv_format:15}{f'{r.seqs} x {r.queries} over {r.context}':28}{r.relative_error:9.1e}{r.us:10.1f}"
            f"{r.gflop_per_s:9.0f}{r.gb_per_s:7.1f}  {r.roof}{r.roof_frac:10.2f}"
            for r in rows
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="bfloat16,float32,int8,float8_e4m3fn", help="of the cache")
    parser.add_argument("--kinds", default="gqa,mla")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--smoke", action="store_true", help="tiny: a check that the benchmark runs")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows: list[Row] = []
    kinds: dict[str, type[Gqa | Mla]] = {"gqa": Gqa, "mla": Mla}
    with torch.inference_mode():
        for kind in options.kinds.split(","):
            for fmt in options.formats.split(","):
                for shape in SMOKE_SHAPES if options.smoke else SHAPES:
                    rows.append(measure(kinds[kind](*shape, getattr(torch, fmt), options.smoke), fmt, options.smoke))
    print(f"{native.isa()}, {native.num_threads()} threads")
    print(table(rows))
    result = provenance.provenance(__doc__)
    provenance.save(options.json, {**result, "isa": native.isa(), "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
