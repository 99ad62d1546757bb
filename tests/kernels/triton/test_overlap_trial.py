"""The trial of overlapped launches: it passes where order holds, tells numbers that come out wrong and captures that fail, and from
then on nothing is overlapped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ridgepoint.kernels import overlap_trial, triton_call
from ridgepoint.kernels.triton_call import DEVICE_TYPE

DEVICE = torch.device(DEVICE_TYPE)
GRAPHS: dict[str, Any] = {} if DEVICE.type == "cuda" else {"capture": lambda body: body}


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches would be overlapped, were they not interpreted."""
    monkeypatch.setattr(triton_call, "has_dependent_launch", lambda: True)
    monkeypatch.setattr(triton_call, "_always_in_turn", False)


def test_launches_that_keep_their_order_pass() -> None:
    assert overlap_trial.overlap_fault(DEVICE, **GRAPHS) is None


def test_a_graph_that_loses_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    links = overlap_trial.LINKS

    def half_of_it(body: Callable[[], object]) -> Callable[[], object]:
        def replay() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(overlap_trial, "LINKS", links // 2)
                body()

        return replay

    why = overlap_trial.overlap_fault(DEVICE, capture=half_of_it)
    assert why is not None and why.startswith("in a graph they leave") and "numbers wrong" in why


@pytest.mark.usefixtures("on_hopper")
def test_a_capture_that_fails_is_told_once_and_launches_are_in_turn_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert triton_call.overlapped() == {"launch_pdl": True}

    def refused(body: Callable[[], object]) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    monkeypatch.setattr(overlap_trial, "overlapped", dict)  # the interpreter knows no such option
    monkeypatch.setattr(overlap_trial, "_captured", refused)
    told: list[str] = []
    overlap_trial.settle_overlap(DEVICE, told.append)
    assert len(told) == 1 and "in a graph they fail: operation not permitted when stream is capturing" in told[0]
    assert "us slower each" in told[0] and triton_call.overlapped() == {}


def test_the_environment_can_ask_for_launches_in_turn() -> None:
    code = "from ridgepoint.kernels.triton_call import overlapped; print(overlapped())"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "RIDGEPOINT_IN_TURN": "1",
        "PYTHONPATH": str(Path(triton_call.__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "{}", done.stderr
