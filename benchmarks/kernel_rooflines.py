"""How close is each native operator to the roof, and how exact?

    python benchmarks/kernel_rooflines.py --json benchmarks/results/kernel_rooflines.json
    python benchmarks/kernel_rooflines.py --smoke

For each operator, format and shape: the error against float64 on the same inputs (and how it compares to an unfused bf16
computation), microseconds, GFLOP/s, GB/s, and the fraction of the roof, which is the larger of the two times that the
bytes and the products of the call need at this machine's rates. Bandwidth is measured around every row (on shared machines
it changes by the minute) and the better of the two counts; peaks are the best seen in the run. Weights are larger than the last-level
cache and visited in turn, so they come from memory as they do in a model. Formats that end in `-a8` are held against
their own definition: float64 on activations rounded to 8 bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import torch

import provenance
from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import native, paged_attention
from ridgepoint.kernels.linear import linear
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.packed import A8, Packed, pack, round_activations
from ridgepoint.kernels.roofs import Roofs, measure_roofs

D, WIDTH, EXPERTS, TOP_K, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 1024, 384, 64, 8, 16, 4, 64, 32000


@dataclass
class Case:
    """One measured call. `run(i)` does the i-th of several equal calls on different weights."""

    op: str
    format: str
    shape: str
    flops: float
    bytes: float
    run: Callable[[int], object]
    copies: int
    error: float
    unfused_error: float
    weight: Packed | None = None


@dataclass
class Row:
    op: str
    format: str
    shape: str
    relative_error: float
    unfused_bf16_error: float
    us: float
    gflop_per_s: float
    gb_per_s: float
    roof_us: float
    roof: str
    measure_read_gb_per_s: float
    roof_frac: float


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def relative(got: torch.Tensor, truth: torch.Tensor) -> float:
    return rms(got.double() - truth) / rms(truth)


def copies_beyond_cache(num_bytes: float, smoke: bool) -> int:
    return 1 if smoke else max(1, min(64, int(160e6 / num_bytes) + 1))


def linear_case(fmt: str, rows: int, outputs: int, smoke: bool) -> Case:
    w, x = torch.randn(outputs, D).bfloat16() / D**0.5, torch.randn(rows, D).bfloat16()
    first = pack(w, fmt)
    count = copies_beyond_cache(first.nbytes, smoke)
    weights = [first, *(pack(w, fmt) for _ in range(count - 1))]
    dense = first.dense()[0]
    seen = round_activations(x, fmt)
    truth = seen.double() @ dense.double().T
    unfused = (seen @ dense.T).bfloat16()
    return Case(
        "linear", fmt, f"{rows}x{D}->{outputs}", 2.0 * rows * D * outputs, first.nbytes + 2 * rows * (D + outputs),
        lambda i: linear(x, weights[i % count]), count, relative(linear(x, first), truth), relative(unfused, truth),
        first,
    )  # fmt: skip


def expert_weights(fmt: str, smoke: bool) -> tuple[list[tuple[Packed, Packed]], torch.Tensor, torch.Tensor]:
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, D).bfloat16() / D**0.5
    down = torch.randn(EXPERTS, D, WIDTH).bfloat16() / WIDTH**0.5
    layers = [(pack(gate_up, fmt, glu=True), pack(down, fmt)) for _ in range(1 if smoke else 2)]
    return layers, layers[0][0].dense(), layers[0][1].dense()


def moe_cases(fmt: str, token_counts: list[int], smoke: bool) -> list[Case]:
    layers, gate_up, down = expert_weights(fmt, smoke)
    cases = []
    for tokens in token_counts:
        x, weights = torch.randn(tokens, D).bfloat16(), torch.rand(tokens, TOP_K)
        routes = [torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(tokens)]) for _ in range(8)]
        hit = statistics.mean(len(r.unique()) for r in routes)
        few = min(tokens, 8)
        got = moe_experts(x[:few], weights[:few], routes[0][:few], *layers[0], SwiGlu())
        truth, unfused = experts_reference(x[:few], weights, routes[0], gate_up, down, fmt)
        per_expert = (layers[0][0].nbytes + layers[0][1].nbytes) / EXPERTS

        def run(i: int, x: torch.Tensor = x, w: torch.Tensor = weights, routes: list[torch.Tensor] = routes) -> object:
            return moe_experts(x, w, routes[i % 8], *layers[i % len(layers)], SwiGlu())

        cases.append(
            Case(
                "moe_experts", fmt, f"{tokens} tokens", 6.0 * tokens * TOP_K * D * WIDTH, hit * per_expert + 4 * tokens * D,
                run, 8, relative(got, truth), relative(unfused, truth),
                layers[0][0],
            )
        )  # fmt: skip
    return cases


def experts_reference(
    x: torch.Tensor, weights: torch.Tensor, routes: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, fmt: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 and unfused bf16 results with the activations `fmt` multiplies (between the products too)."""
    truth, unfused = torch.zeros(len(x), D, dtype=torch.float64), torch.zeros(len(x), D).bfloat16()
    seen = round_activations(x, fmt)
    for t in range(len(x)):
        for k, e in enumerate(routes[t].tolist()):
            g = gate_up[e].double() @ seen[t].double()
            h = torch.nn.functional.silu(g[:WIDTH]) * g[WIDTH:]
            if fmt.endswith(A8):
                h = round_activations(h.bfloat16()[None], fmt)[0]
            truth[t] += weights[t, k].double() * (down[e].double() @ h.double())
            g = (gate_up[e] @ seen[t]).bfloat16()
            h = round_activations((torch.nn.functional.silu(g[:WIDTH]) * g[WIDTH:])[None], fmt)[0]
            unfused[t] += weights[t, k].bfloat16() * (down[e] @ h).bfloat16()
    return truth, unfused


def attention_case(seqs: int, context: int, queries: int, smoke: bool) -> Case:
    block, blocks = 16, -(-context // 16)
    kv_bytes = seqs * context * 2 * KV_HEADS * HEAD_DIM * 2
    count = copies_beyond_cache(kv_bytes, smoke)
    caches = [
        paged_attention.allocate(seqs * blocks, block, KV_HEADS, HEAD_DIM, torch.bfloat16, "cpu") for _ in range(count)
    ]
    tables = torch.randperm(seqs * blocks).view(seqs, blocks)
    k, v = (torch.randn(seqs, context, KV_HEADS, HEAD_DIM).bfloat16() for _ in "kv")
    position = torch.arange(context)
    for kv in caches:
        for b in range(seqs):
            paged_attention.write(kv, k[b], v[b], tables[b][position // block] * block + position % block)
    q = torch.randn(seqs * queries, HEADS, HEAD_DIM).bfloat16()
    plan = paged_attention.prepare(torch.arange(seqs + 1) * queries, torch.full((seqs,), context), tables, block)
    scale = HEAD_DIM**-0.5
    keys, values = (t[0].repeat_interleave(HEADS // KV_HEADS, 1).double() for t in (k, v))
    logits = torch.einsum("qhp,khp->hqk", q[:queries].double(), keys) * scale
    logits = logits.masked_fill(position[None] > torch.arange(context - queries, context)[:, None], float("-inf"))
    soft = logits.softmax(-1)
    truth = torch.einsum("hqk,khp->qhp", soft, values)
    unfused = torch.einsum("hqk,khp->qhp", soft.bfloat16().double(), values).bfloat16()
    got = paged_attention.attend(q, caches[0], plan, scale, None, None)[:queries]
    pairs = seqs * (queries * context - queries * (queries - 1) / 2)
    return Case(
        "paged_attention", "bf16", f"{seqs} x {queries} queries over {context}", 4.0 * HEADS * HEAD_DIM * pairs,
        kv_bytes + 4 * q.numel(), lambda i: paged_attention.attend(q, caches[i % count], plan, scale, None, None), count,
        relative(got, truth), relative(unfused, truth),
    )  # fmt: skip


def measure(case: Case, budget_s: float) -> float:
    """Median seconds of a call, over rounds that visit every copy."""
    case.run(0)
    times: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(times) < 5 or (time.perf_counter() < deadline and len(times) < 400):
        for i in range(case.copies):
            started = time.perf_counter()
            case.run(i)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def row_of(case: Case, seconds: float, roofs: Roofs) -> Row:
    peak = roofs.flops_per_s(case.weight.struct) if case.weight else roofs.bf16_flops_per_s
    by_flops, by_bytes = case.flops / peak, case.bytes / roofs.read_bytes_per_s
    roof_s, name = (by_flops, "flops") if by_flops > by_bytes else (by_bytes, "bytes")
    return Row(
        case.op, case.format, case.shape, case.error, case.unfused_error, seconds * 1e6, case.flops / seconds / 1e9,
        case.bytes / seconds / 1e9, roof_s * 1e6, name, roofs.read_bytes_per_s / 1e9, roof_s / seconds,
    )  # fmt: skip


def cases_of(fmt: str, smoke: bool) -> list[Case]:
    cases = [linear_case(fmt, rows, 1536, smoke) for rows in ([1, 8] if smoke else [1, 4, 16, 64, 512])]
    if not smoke:
        cases += [linear_case(fmt, rows, VOCAB, False) for rows in (1, 64)]
    return cases + moe_cases(fmt, [1] if smoke else [1, 4, 16, 32, 64, 512, 2048], smoke)


def attention_cases(smoke: bool) -> list[Case]:
    shapes = [(1, 128, 1)] if smoke else [(1, 128, 1), (64, 128, 1), (16, 2048, 1), (1, 8192, 1), (1, 2048, 2048)]
    return [attention_case(*shape, smoke) for shape in shapes]


def measure_all(formats: list[str], smoke: bool) -> tuple[list[Row], Roofs]:
    """A row a case, and the best roofs of the run."""
    probe_bytes, milliseconds, budget_s = (64 << 20, 20, 0.0) if smoke else (1 << 28, 100, 0.5)
    peaks = measure_roofs(probe_bytes, milliseconds)
    measured: list[tuple[Case, float, float]] = []
    for fmt in [*formats, ""]:
        for case in cases_of(fmt, smoke) if fmt else attention_cases(smoke):
            before = native.measure_read_bytes_per_s(probe_bytes, 2)
            seconds = measure(case, budget_s)
            measured.append((case, seconds, max(before, native.measure_read_bytes_per_s(probe_bytes, 2))))
        peaks = peaks.best(measure_roofs(probe_bytes, milliseconds))
    return [row_of(case, s, replace(peaks, read_bytes_per_s=read)) for case, s, read in measured], peaks


def table(result: dict[str, Any]) -> str:
    """Error and speed of each operator, format and shape, and the share of its roof."""
    roofs = result["measure_roofs"]
    lines = [
        f"{result['isa']}, {result['threads']} threads; roofs: read {roofs['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        + ", ".join(f"{name} {roofs[f'{name}_flops_per_s'] / 1e9:.0f} G/s" for name in ("f32", "bf16", "int8")),
        f"{'op':16}{'format':13}{'shape':30}{'error':>10}{'unfused':>10}{'us':>10}{'GFLOP/s':>9}{'GB/s':>7}{'roof us':>10}  roof   fraction",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['op']:16}{row['format']:13}{row['shape']:30}{row['relative_error']:10.1e}{row['unfused_bf16_error']:10.1e}"
            f"{row['us']:10.0f}{row['gflop_per_s']:9.0f}{row['gb_per_s']:7.1f}{row['roof_us']:10.0f}  {row['roof']}  {row['roof_frac']:8.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="bf16,bf16-12,int8,int8-a8,int4-32,int4-32-a8,mxfp4,mxfp4-a8,fp8")
    parser.add_argument("--isa", help="force one ISA (default: the best this processor runs)")
    parser.add_argument("--threads", type=int, default=native.usable_cores())
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--smoke", action="store_true", help="tiny: a check that the benchmark runs")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    native.set_num_threads(options.threads)
    with torch.inference_mode(), native.forced_isa(options.isa or native.isa()):
        formats = "bf16,int8-a8" if options.smoke else options.formats
        rows, roofs = measure_all(formats.split(","), options.smoke)
        result = {
            "schema": "ridgepoint.benchmark.kernel_rooflines/1", **provenance.provenance(__doc__), "isa": native.isa(),
            "threads": native.num_threads(), "torch": torch.__version__, "measure_roofs": asdict(roofs),
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
    provenance.save(options.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
