"""Tables of configurations: read, preferred, refused, written; the tuner that makes them, with a clock of the test's own; and
what a start makes of both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tune_kernels
from ridgepoint.engine.startup import Startup
from ridgepoint.engine.tune import tuned_at_start
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import FORMATS, unfilled_for_device
from ridgepoint.kernels.tuning import AttentionTile, Choice, Config, ExpertTiles, LinearTiles, Tile, table
from ridgepoint.kernels.tuning import tuner as tuner_module
from ridgepoint.kernels.tuning.physics import HOPPER, Demand, estimate_s, fits, worth_timing
from ridgepoint.kernels.tuning.tuner import Call, Problem, best_of, buckets, tune

HERE = torch.device("cpu")
HARDWARE = "NVIDIA H200"
TILE = Tile(kernel="weights", block_n=64, block_k=128, group=8, num_warps=4, num_stages=3, per_processor=2)
FEW, MANY = AttentionTile(16, 32, warps=4, stages=3), AttentionTile(16, 64, warps=4, stages=5, per_sm=2, split_keys=512)
MEASURED = [
    Choice(op="experts", kind="bf16", up_to=8.0, config=ExpertTiles(block_m=32, first=TILE, second=TILE, unit=16), shape=(2048, 1536),
           figure="measure_s 1e-5"),
    Choice(op="linear", kind="int4", up_to=16.0, config=LinearTiles(block_m=16, first=replace(TILE, num_stages=6)), shape=(64, 64)),
    Choice(op="paged_decode", kind="fp8", up_to=64.0, config=MANY, shape=(32, 4, 128, 0), figure="measure_s 2e-5"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def measured_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table is one of the test's; what was read is forgotten before and after."""
    path = tmp_path / "kept" / "tuned.toml"
    monkeypatch.setenv("RIDGEPOINT_TUNED", str(path))
    tuning.forget()
    yield path
    tuning.forget()


def problem(
    times: dict[Config, float], *, op: str = "paged_decode", size: int = 1, up_to: float = 4.0, result: float = 1.0
) -> Problem:
    """The configurations of `times`, the first one being the estimate. A call returns ones."""

    def call() -> torch.Tensor:
        return torch.full((4,), result)

    first, *_ = times
    return Problem(
        op=op, kind="bf16", shape=(32, 4, 128, 0), size=size, up_to=up_to, estimate=first, rounds=(lambda best: list(times),),
        calls=lambda: [call, call],
    )  # fmt: skip


class Stopwatch:
    """Says that a configuration takes what `times` says, and counts; its `now` moves on by a second a measurement."""

    def __init__(self, op: str, times: dict[Config, float]) -> None:
        self.op, self.times, self.asked = op, times, 0

    def measure(self, calls: Sequence[Call]) -> float:
        self.asked += 1
        return self.times[tuning.choose(self.op, "bf16", 1, (32, 4, 128, 0), HERE)]

    def now(self) -> float:
        return float(self.asked)


# ---------------------------------------------------------------- tables


def test_the_shipped_table_serves_every_format_at_every_size() -> None:
    for kind in {"bf16", *(unfilled_for_device(fmt, 1, 128, 128, device="meta").product for fmt in FORMATS)}:
        for rows in (0.06, 1, 8, 9, 100, 2048, 1e6):
            for op in ("experts", "linear"):
                choice = tuning.find(op, kind, rows, (2048, 1536), HARDWARE)
                assert choice is not None and rows <= choice.up_to and choice.figure.startswith("estimate_")
                assert isinstance(choice.config, ExpertTiles | LinearTiles)
                assert kind == "bf16" or choice.config.first.block_k == 128, "codes come in blocks of 128"
    assert tuning.choose("experts", "bf16", 0.5, (1, 1), HERE).block_m == 16
    with pytest.raises(ConfigError, match="no configuration for experts of int3 at size 1"):
        tuning.choose("experts", "int3", 1, (1, 1), HERE)


def test_a_table_reads_back_and_is_preferred_for_its_shape(measured_table: Path) -> None:
    tuning.write_table(measured_table, HARDWARE, MEASURED)
    assert tuning.read_table(measured_table) == MEASURED
    assert tuning.choose("experts", "bf16", 3, (2048, 1536), HERE) == MEASURED[0].config
    assert tuning.choose("experts", "bf16", 3, (4096, 1536), HERE) != MEASURED[0].config, "another shape"
    assert tuning.load_tables(HARDWARE).measured == tuple(MEASURED) and tuning.load_tables(HARDWARE).note is None


def test_sizes_fall_into_buckets(measured_table: Path) -> None:
    rungs = [
        replace(MEASURED[2], up_to=up_to, config=replace(MANY, stages=place + 1))
        for place, up_to in enumerate((1.0, 4.0, 64.0))
    ]
    tuning.write_table(measured_table, HARDWARE, rungs)

    def stages(size: float, heads: int = 32) -> int:
        return tuning.choose("paged_decode", "fp8", size, (heads, 4, 128, 0), HERE, lambda: FEW).stages

    assert [stages(size) for size in (1, 2, 4, 5, 64)] == [1, 2, 2, 3, 3]
    assert stages(65) == stages(1, heads=64) == FEW.stages, "beyond the last bucket, and for other heads, the estimate"
    assert buckets((1, 4, 16), 10) == [(1, 1.0), (4, 4.0), (10, float(1 << 30))]
    assert buckets((1, 4), 4) == [(1, 1.0), (4, float(1 << 30))]


@pytest.mark.parametrize("head", ["hardware", "triton", "ridgepoint", "source"])
def test_a_table_made_with_something_else_is_passed_over_and_told(measured_table: Path, head: str) -> None:
    tuning.write_table(measured_table, HARDWARE, MEASURED)
    text = measured_table.read_text()
    line = next(line for line in text.splitlines() if line.startswith(head))
    measured_table.write_text(text.replace(line, f'{head} = "older"'))
    loaded = tuning.load_tables(HARDWARE)
    assert loaded.measured == () and "is not used and is made again" in str(loaded.note)
    assert ("kernels have changed" if head == "source" else f"made with {head} older") in str(loaded.note)
    assert "\n" not in str(loaded.note)
    assert tuning.choose("paged_decode", "fp8", 3, (32, 4, 128, 0), HERE, lambda: FEW) == FEW


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 1", "unknown keys speed"),
        ("[tile.a]\nblock_m = 3", "unknown keys of a Tile: block_m"),
        ("[tile.a]\nblock_n = 3", "missing"),
        ("tile.a = 3", "a Tile is a table, got 3"),
        ('[[choice]]\nop = "linear"\nfirst = "b"', "tile 'b' is not defined"),
        ('[[choice]]\nop = "magic"', "op 'magic' is unknown"),
        ('[[choice]]\nop = "mla_decode"\nkind = "bf16"\nup_to = 1\nrows = 16\nkeys = 3\nwarps = 4\nstages = 2', "powers of two"),
        ('[[choice]]\nop = "mla_decode"\nrows = 16\nkeys = 16\nwarps = 4\nstages = 2', "missing"),
        ("choice = [", "t.toml: "),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        tuning.read_table(tmp_path / "t.toml")


def test_configurations_are_checked() -> None:
    for wrong in ({"kernel": "magic"}, {"block_n": 48}, {"num_stages": 0}):
        with pytest.raises(ConfigError):
            replace(TILE, **wrong)
    for wrong in ({"rows": 12}, {"stages": 0}, {"split_keys": 100}):
        with pytest.raises(ConfigError):
            replace(FEW, **wrong)


def test_the_fingerprint_covers_every_kernel() -> None:
    covered = {path for pattern in table._SOURCES for path in table._KERNELS.glob(pattern)}
    jitted = {
        path
        for path in table._KERNELS.rglob("*.py")
        if "@triton.jit" in path.read_text() or "@gluon.jit" in path.read_text()
    }
    assert jitted <= covered | {table._KERNELS / "overlap_trial.py"}, "the trial has nothing to choose"


# ---------------------------------------------------------------- physics


def demand(**changes: object) -> Demand:
    return Demand(
        **({"warps": 4, "per_processor": 2, "shared_bytes": 60_000, "accumulators": 64 * 64, "items": 528, "item_bytes": 1e6,
            "item_flops": 1.0, "in_flight_bytes": 48_000} | changes)  # type: ignore[arg-type]
    )  # fmt: skip


def test_what_does_not_fit_is_not_tried() -> None:
    assert fits(demand(), HOPPER)
    for wrong in ({"shared_bytes": 120_000}, {"accumulators": 256 * 128}, {"per_processor": 17, "shared_bytes": 0}):
        assert not fits(demand(**wrong), HOPPER)
    assert worth_timing([1, 2, 4], lambda n: demand(per_processor=n), HOPPER, most=5) == [2, 1]


def test_estimates_know_waves_latency_and_both_roofs() -> None:
    whole = estimate_s(demand(), HOPPER)
    assert estimate_s(demand(items=529), HOPPER) > 1.4 * whole, "one item more is another round"
    assert estimate_s(demand(in_flight_bytes=4_000), HOPPER) > 2 * whole
    assert estimate_s(demand(item_flops=1e9), HOPPER) == pytest.approx(528 * 1e9 / HOPPER.flops_per_s)
    assert estimate_s(demand(more_bytes=4.3e9), HOPPER) == pytest.approx(whole + 1e-3)
    few = demand(items=64, per_processor=1)
    assert estimate_s(replace(few, per_processor=2), HOPPER) == estimate_s(few, HOPPER), "a second program has no item"


def test_the_estimate_leads_and_the_hopeless_are_dropped() -> None:
    slow = {1: 1.0, 2: 1.2, 3: 9.0, 4: 1.1}
    kept = worth_timing(list(slow), lambda n: demand(item_bytes=slow[n] * 1e6), HOPPER, most=3, first=2)
    assert kept == [2, 1, 4]


# ---------------------------------------------------------------- the tuner


def test_the_fastest_is_kept_and_of_equals_the_first() -> None:
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0, replace(MANY, stages=3): 1.0}
    choice = best_of(problem(times), Stopwatch("paged_decode", times).measure, print)
    assert choice is not None and choice.config == MANY
    assert (
        choice.key == ("paged_decode", "bf16", 4.0, (32, 4, 128, 0))
        and choice.figure == "measure_s 1.000e+00 at 1, of 3"
    )


def test_a_later_round_starts_from_the_best_and_tries_nothing_twice() -> None:
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0, replace(MANY, keys=128): 0.5}
    seen: list[Config] = []

    def second(best: Config) -> list[Config]:
        seen.append(best)
        assert isinstance(best, AttentionTile)
        return [best, replace(best, keys=128)]

    two = replace(problem(times), rounds=(lambda best: [best, MANY], second))
    watch = Stopwatch("paged_decode", times)
    choice = best_of(two, watch.measure, print)
    assert choice is not None and choice.config == replace(MANY, keys=128)
    assert seen == [MANY] and watch.asked == 3


@pytest.mark.parametrize(
    "said, kept",
    [
        ("", MANY),
        ("1", replace(MANY, roles=True)),
        ("experts", MANY),
        ("experts,paged_decode", replace(MANY, roles=True)),
    ],
)
def test_warps_with_roles_are_tried_where_the_environment_says_so(
    said: str, kept: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIDGEPOINT_TRY_ROLES", said)
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0, replace(MANY, roles=True): 0.5}
    choice = best_of(problem(times), Stopwatch("paged_decode", times).measure, print)
    assert choice is not None and choice.config == kept


def test_what_the_gpu_refuses_and_what_is_wrong_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, refused = replace(MANY, stages=2), replace(MANY, stages=4)
    times: dict[Config, float] = {FEW: 2.0, wrong: 0.1, refused: 0.1, MANY: 1.0}

    def call() -> torch.Tensor:
        config = tuning.choose("paged_decode", "bf16", 1, (32, 4, 128, 0), HERE)
        if config == refused:
            raise tuner_module.triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        return torch.full((4,), 1.5 if config == wrong else 1.0)

    told: list[str] = []
    choice = best_of(
        replace(problem(times), calls=lambda: [call]), Stopwatch("paged_decode", times).measure, told.append
    )
    assert choice is not None and choice.config == MANY
    assert len(told) == 2 and "differs from the first candidate's by 5.0e-01" in told[0] and "OutOfResources" in told[1]
    assert all("paged_decode bf16 32x4x128x0 at 1" in line for line in told)


def test_the_budget_ends_between_problems() -> None:
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0}
    watch = Stopwatch("paged_decode", times)
    several = [problem(times, size=size, up_to=float(size)) for size in (1, 4, 16)]
    outcome = tune(several, measure=watch.measure, clock=watch.now, budget_s=3.0)
    assert (len(outcome.choices), outcome.num_left, outcome.seconds) == (2, 1, 4.0)
    assert tune(several, measure=watch.measure, clock=watch.now, budget_s=0.0).num_left == 3


def test_every_kind_of_kernel_is_tuned_by_the_one_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measured_table: Path
) -> None:
    """Real kernels on tiny operands, two candidates each: that candidates reach the launches, and agree."""
    ran: list[str] = []

    def two(candidates: Sequence, demand_of: Callable, processor: object, most: int, first: object = None) -> list:
        ran.append(type(candidates[0]).__name__)
        return [first or candidates[0], next(c for c in candidates if c != first)]

    for module in ("moe_experts", "linear", "paged_attention", "mla_attention"):
        monkeypatch.setattr(f"ridgepoint.kernels.{module}.tunable.worth_timing", two)
    monkeypatch.setattr(sys, "argv", ["tune_kernels.py", "--smoke"])
    tune_kernels.main()
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told] == [
        "experts", "linear", "paged_decode", "paged_prompt", "mla_decode", "mla_prompt",
    ]  # fmt: skip
    assert ran.count("ExpertTiles") >= 2 and ran.count("AttentionTile") == 4
    assert not any("left out" in line for line in told) and not measured_table.exists()


# ---------------------------------------------------------------- a start


def started(problems: Sequence[Problem], watch: Stopwatch, budget_s: float = 100.0) -> tuple[dict[str, int], list[str]]:
    startup, told = Startup(), []
    tuned_at_start(
        problems, HERE, budget_s=budget_s, announce=told.append, startup=startup, measure=watch.measure, clock=watch.now
    )
    return startup.configurations, told


def test_what_one_start_tunes_the_next_loads(measured_table: Path) -> None:
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0}
    several = [problem(times, size=size, up_to=float(size)) for size in (1, 4, 16)]
    watch = Stopwatch("paged_decode", times)
    assert started(several, watch, budget_s=3.0)[0] == {"loaded": 0, "tuned": 2, "left": 1}
    assert tuning.choose("paged_decode", "bf16", 3, (32, 4, 128, 0), HERE, lambda: FEW) == MANY
    assert tuning.choose("paged_decode", "bf16", 5, (32, 4, 128, 0), HERE, lambda: FEW) == FEW
    assert started(several, watch)[0] == {"loaded": 2, "tuned": 1, "left": 0}
    before = watch.asked
    counts, told = started(several, watch)
    assert (counts, told, watch.asked) == ({"loaded": 3, "tuned": 0, "left": 0}, [], before)
    assert len(tuning.read_table(measured_table)) == 3


@pytest.mark.parametrize("damage", ["stale", "broken"])
def test_a_table_that_does_not_hold_is_told_in_one_line_and_made_again(measured_table: Path, damage: str) -> None:
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0}
    watch = Stopwatch("paged_decode", times)
    started([problem(times)], watch)
    text = measured_table.read_text()
    measured_table.write_text(
        text.replace(tuning.source_hash(), "0" * 16) if damage == "stale" else text[:-40] + "\0[["
    )
    tuning.forget()
    counts, told = started([problem(times)], watch)
    assert counts == {"loaded": 0, "tuned": 1, "left": 0}
    assert str(measured_table) in told[0] and "made again" in told[0] and len(told) == 2
    assert started([problem(times)], watch) == ({"loaded": 1, "tuned": 0, "left": 0}, [])


def test_a_table_that_cannot_be_written_is_told(measured_table: Path) -> None:
    measured_table.parent.write_text("a file where the folder should be")
    times: dict[Config, float] = {FEW: 2.0, MANY: 1.0}
    counts, told = started([problem(times)], Stopwatch("paged_decode", times))
    assert counts["tuned"] == 1 and "cannot be written, so the next start tunes again" in told[-1]


def test_the_report_of_a_start_counts_configurations() -> None:
    startup = Startup()
    assert "kernel choices" not in startup.line()
    startup.configurations = {"loaded": 3, "tuned": 2, "left": 0}
    assert startup.line().endswith("; kernel choices 3 loaded, 2 tuned, 0 left")
