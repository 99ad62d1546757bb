"""Compile what the GPU suite will launch, on the cores that would otherwise watch it compile.

A GPU's time is dearer than a core's: every kernel is compiled from tensors that have shapes and no memory, by as many processes as
there are cores to spare, through Triton's own path up to the launch, so that a launch on the device finds it in Triton's cache.
The first of the list are those that run first. Prints how many there were and how long they took. Touches no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

import gpu_checks
import gpu_compile
from gpu_compile import TARGET, Launch, compiled_as, recorded
from gpu_launches import BLOCK, Model, as_on_a_gpu
from gpu_suite import TUNED
from ridgepoint.catalog.models import catalog_model
from ridgepoint.engine.device_sampler import DeviceSampler
from ridgepoint.kernels import device_weight, dispatch
from ridgepoint.models.captured import ladder
from tune_kernels import SHAPES
from tuned_candidates import candidates_of

SPARE_CORES = 2  # for who measures meanwhile


class _NoDevice:
    """What Triton asks of a driver until it launches."""

    @staticmethod
    def get_current_target() -> object:
        return TARGET

    @staticmethod
    def get_current_device() -> int:
        return 0

    @staticmethod
    def get_current_stream(device: int) -> int:
        return 0


def work(smoke: bool) -> Iterator[tuple[str, Callable[[], list[Launch]]]]:
    """What launches kernels, in the order of the suite."""
    if smoke:
        yield "experts", partial(_launched, gpu_compile.cases(True)["experts bf16 x4"])
        return
    for small in (True, False):
        for op, name, case, _ in gpu_checks.cases(small, lambda op: True):
            yield f"check of {op} {name}", partial(_launched, partial(_check, case))
    for name, run in gpu_compile.cases(False).items():
        yield name, partial(_launched, run)
    for model, max_seqs, modes in (
        ("qwen3-30b-a3b", 256, DeviceSampler.modes),
        ("gpt-oss-120b", 64, DeviceSampler.modes[:1]),
    ):
        made = Model(catalog_model(model).spec, 2, max_seqs)
        for size in ladder(max_seqs):
            for mode in modes:
                yield f"{model} decode {size} {mode}", lambda m=made, n=size, mode=mode: m.decode(n, mode)[1]
        for length in (BLOCK, 512, 2048, 8192):
            yield f"{model} prompt {length}", lambda m=made, n=length: m.prompt(n)[1]
    for name, fmt, tokens in TUNED:
        for candidate in candidates_of(name, SHAPES[name], fmt, tokens):
            yield candidate.name, partial(_launched, candidate.run)


def _launched(run: Callable[[], object]) -> list[Launch]:
    with recorded() as found, as_on_a_gpu(), torch.inference_mode():
        run()
    return found


def _check(case: gpu_checks.Case) -> None:
    with dispatch.forced("triton"):
        case(lambda tensor: tensor.to("meta"))


def launches(smoke: bool) -> list[Launch]:
    """Every launch that is compiled by itself, once."""
    found: dict[str, Launch] = {}
    pack = device_weight.pack_for_device
    device_weight.pack_for_device = _packed_without_memory
    try:
        for name, run in work(smoke):
            try:
                for launch in run():
                    found.setdefault(compiled_as(launch), launch)
            except (RuntimeError, NotImplementedError) as error:  # asks for numbers: it will be compiled when it runs
                print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    finally:
        device_weight.pack_for_device = pack
    return list(found.values())


def _packed_without_memory(weight: torch.Tensor, fmt: str, *, glu: bool = False) -> device_weight.DeviceWeight:
    shape = weight.shape if weight.dim() == 3 else (1, *weight.shape)
    return device_weight.unfilled_for_device(fmt, *shape, glu=glu, stacked=weight.dim() == 3, device="meta")


_launches: list[Launch] = []  # of the processes, which are forks


def compile_one(place: int) -> str | None:
    """Into Triton's cache, and the function that will launch it; or why not."""
    launch = _launches[place]
    driver.set_active(_NoDevice())
    try:
        kernel = launch.kernel.run(
            grid=launch.grid, warmup=True, **launch.arguments, **launch.options
        )  # and nothing is launched
        if _has_driver():
            nvidia.CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:  # told, and met again where it is launched
        return f"{launch.kernel.__name__}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _has_driver() -> bool:
    """Whether a launching function can be linked here."""
    try:
        return bool(nvidia.library_dirs())
    except (AssertionError, OSError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=max(1, len(os.sched_getaffinity(0)) - SPARE_CORES))
    parser.add_argument("--smoke", action="store_true", help="one layer")
    args = parser.parse_args()
    os.nice(10)
    started_s = time.perf_counter()
    torch.set_num_threads(1)
    _launches.extend(launches(args.smoke))
    listed_s = time.perf_counter() - started_s
    with ProcessPoolExecutor(args.processes, mp_context=get_context("fork")) as pool:
        failures = [why for why in pool.map(compile_one, range(len(_launches))) if why is not None]
    for why in failures:
        print(why)
    seconds = time.perf_counter() - started_s
    print(f"{len(_launches)} kernels compiled by {args.processes} processes in {seconds:.1f} s (listed in {listed_s:.1f} s), "
          f"{len(failures)} failed")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
