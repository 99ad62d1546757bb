"""Energy per step from a counter that never stops, NVML through a stand-in library, and the parts of a start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_decoder, tiny_engine

from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.energy import StepEnergy
from ridgepoint.engine.nvml import clock_reader, joule_counter, open_clock, open_counter
from ridgepoint.engine.protocol import StepReport, Submit
from ridgepoint.engine.startup import PARTS, Startup
from ridgepoint.sched.params import SamplingParams
from ridgepoint.server.metrics import Metrics

NVML = """
static unsigned long long used = 5000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **board) {
    *board = (void *)7;
    return !(uuid[0] == 'G' && uuid[4] == 'a');
}
int nvmlDeviceGetTotalEnergyConsumption(void *board, unsigned long long *mj) {
    *mj = used += 250;
    return board != (void *)7;
}
int nvmlDeviceGetClockInfo(void *board, int domain, unsigned *mhz) {
    *mhz = 1755;
    return board != (void *)7 || domain != 1;
}
"""


def test_idle_time_is_nobodys_energy() -> None:
    counter = iter([10.0, 12.0, 20.0, 26.0, 100.0, 104.0])
    energy = StepEnergy(lambda: next(counter))
    assert energy.per_step(0) is None  # 10 to 12, without a step
    energy.resume()  # 20
    assert energy.per_step(3) == pytest.approx(2.0)  # to 26
    energy.resume()  # 100
    assert energy.per_step(4) == pytest.approx(4.0)
    assert energy.total == pytest.approx(2 + 6 + 4)


def test_nvml_is_read_where_it_is_and_absent_where_it_is_not(tmp_path: Path) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    joules = open_counter("GPU-a", str(library))
    assert joules is not None
    first = joules()
    assert joules() - first == pytest.approx(0.25)
    assert open_counter("GPU-b", str(library)) is None  # no such board
    clock = open_clock("GPU-a", str(library))
    assert clock is not None and clock() == 1.755e9
    assert open_clock("GPU-b", str(library)) is None
    assert open_counter("GPU-a", str(tmp_path / "absent.so")) is None
    source.write_text("int nvmlInit_v2(void) { return 0; }")
    old = tmp_path / "old.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", old, source], check=True)
    assert open_counter("GPU-a", str(old)) is None  # a driver without the counter
    assert joule_counter(torch.device("cpu")) is None and clock_reader(torch.device("cpu")) is None
    assert open_clock("GPU-a", str(old)) is None


def reports(core: EngineCore) -> list[StepReport]:
    core.handle(Submit(request_id="a", prompt_ids=[1, 2], params=SamplingParams(max_tokens=3, ignore_eos=True)))
    found = []
    while not core.idle:
        core.step()
        found += [message for message in core.take_outbox() if isinstance(message, StepReport)]
    return found


class Watched:
    """The part of an engine client that metrics read."""

    def __init__(self, core: EngineCore, stats: StepReport) -> None:
        self.ready, self.stats, self.alive, self.in_flight = core.ready(1.0), stats, True, 0


def scraped(core: EngineCore) -> str:
    metrics = Metrics("m")
    metrics.watch(Watched(core, reports(core)[-1]))  # type: ignore[arg-type]
    return metrics.scrape().decode()


def test_reports_and_metrics_carry_measured_energy_only_where_it_is_measured() -> None:
    core = tiny_engine(tiny_decoder())
    used = iter(range(0, 1000, 3))
    with_counter = EngineCore(
        core.facts, core.scheduler, core.executor, startup=Startup(), joules=lambda: float(next(used))
    )
    last = reports(with_counter)[-1]
    assert last.joules_total is not None and last.joules_total > 0 and last.joules_per_step is not None
    assert "ridgepoint:device_joules_total" in scraped(with_counter)
    assert reports(core)[-1].joules_total is None
    assert "joules" not in scraped(core)


def test_a_start_is_told_by_its_parts() -> None:
    startup = Startup()
    with startup.part("load"):
        pass
    assert set(startup.seconds) == set(PARTS) and startup.seconds["load"] > 0 == startup.seconds["capture"]
    assert startup.line().startswith("start: ") and "tune 0.0 s" in startup.line()
    core = tiny_engine(tiny_decoder())
    assert 'ridgepoint:startup_seconds{model_name="m",part="capture"} 0.0' in scraped(core)
