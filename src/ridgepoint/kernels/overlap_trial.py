# mypy: disallow-untyped-defs=False
"""Tries on this device whether kernels launched beside the one before them keep their order, launched one by one and in a graph.

A chain of kernels passes numbers to and fro between two buffers, each reading what far-away programs of the one before wrote and
writing over what that one read: a wait that is missing, or an attribute of the launch that a graph loses or refuses, shows in
the sum. A few milliseconds, once. Knows nothing of what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import INTERPRETED, after_previous, launch_in_turn, overlapped

BLOCK = 1024
# Several rounds of programs, so that one kernel's last ones meet the next one's first.
BLOCKS = 4 if INTERPRETED.value else 2048
LINKS = 4 if INTERPRETED.value else 32
ROUNDS = 3
GAP_US = 0.7  # assumed of each kernel, when it waits for the end of the one before
Replay = Callable[[], object]


def settle_overlap(device: torch.device, announce: Callable[[str], None]) -> None:
    """Launch kernels in turn from now on, and say so, where the trial fails."""
    why = overlap_fault(device)
    if why is not None:
        launch_in_turn()
        announce(f"kernels are launched one after the other, about {GAP_US} us slower each: {why}")


def overlap_fault(device: torch.device, capture: Callable[[Replay], Replay] | None = None) -> str | None:
    """Why launches cannot be overlapped here, or None where they can, or never are. `capture` makes a replay of a body (CUDA's
    graphs, unless another is given)."""
    if not overlapped() and not INTERPRETED.value:
        return None
    for how, make in (("launched one by one", lambda body: body), ("in a graph", capture or _captured)):
        try:
            wrong = _num_wrong(device, make)
        except (RuntimeError, triton.runtime.errors.TritonError) as error:
            return f"{how} they fail: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        if wrong:
            return f"{how} they leave {wrong} of {ROUNDS * BLOCKS * BLOCK} numbers wrong"
    return None


def _num_wrong(device: torch.device, make: Callable[[Replay], Replay]) -> int:
    size = BLOCKS * BLOCK
    here, there, aside = (torch.zeros(size, dtype=torch.int32, device=device) for _ in range(3))

    def chain() -> None:
        for link in range(LINKS):
            source, target = (here, there) if link % 2 == 0 else (there, here)
            pass_on[(BLOCKS,)](source, target, size, BLOCK=BLOCK, **overlapped())
            if link == 1:  # the kernel after a copy waits for it as well
                aside.copy_(here)
                here.zero_()
                here.copy_(aside)

    chain()  # compiled before it is captured
    here.zero_()
    replay = make(chain)
    here.zero_()  # a capture of CUDA's runs nothing, another's may
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for round_ in range(1, ROUNDS + 1):
        replay()
        wrong += (here != round_ * LINKS).sum()
    return int(wrong)


def _captured(body: Replay) -> Replay:
    graph = torch.cuda.CUDAGraph()
    # The outer one: a capture that fails would leave its own stream as the current one.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        body()
    return graph.replay


@triton.jit
def pass_on(source, target, size, BLOCK: tl.constexpr):
    """One more than the number at the other end of the buffer."""
    after_previous()
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + (size - 1 - place)) + 1)
