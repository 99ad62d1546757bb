"""Joules that an NVIDIA GPU has used, by its own counter, and the clock it runs at (NVML, the library beside the driver). Absent is
None, not zero.

The counter is the whole board's, in millijoules since the driver was loaded, and moves some tens of times a second: it
measures runs of many steps, not one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0
MULTIPROCESSORS = 1  # the domain of their clock


def joule_counter(device: torch.device, library: str = LIBRARY) -> Callable[[], float] | None:
    """A function that reads the joules used so far by `device`; None for other devices and where NVML or its counter is
    missing."""
    return open_counter(_uuid(device), library) if device.type == "cuda" else None


def clock_reader(device: torch.device, library: str = LIBRARY) -> Callable[[], float] | None:
    """A function that reads at how many Hz the multiprocessors of `device` run now; None as for `joule_counter`."""
    return open_clock(_uuid(device), library) if device.type == "cuda" else None


def _uuid(device: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _open(uuid: str, library: str, reader: str) -> tuple[ctypes.c_void_p, Callable[..., int]] | None:
    """The board with this NVML identifier, and one of the library's functions on boards."""
    try:
        nvml = ctypes.CDLL(library)
        begin, find, read = nvml.nvmlInit_v2, nvml.nvmlDeviceGetHandleByUUID, getattr(nvml, reader)
    except (OSError, AttributeError):
        return None
    board = ctypes.c_void_p()
    if begin() != SUCCESS or find(uuid.encode(), ctypes.byref(board)) != SUCCESS:
        return None
    return board, read


def open_clock(uuid: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """`clock_reader` of the board with this NVML identifier."""
    return _reader(uuid, library, "nvmlDeviceGetClockInfo", "clock", 1e6, ctypes.c_uint(), MULTIPROCESSORS)


def open_counter(uuid: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """`joule_counter` of the board with this NVML identifier."""
    name = "nvmlDeviceGetTotalEnergyConsumption"
    return _reader(uuid, library, name, "energy counter", 1e-3, ctypes.c_ulonglong())


def _reader(
    uuid: str, library: str, name: str, what: str, unit: float, value: Any, *selectors: int
) -> Callable[[], float] | None:
    """What NVML's function `name` writes into `value`, in SI units; None where the board has none."""
    opened = _open(uuid, library, name)
    if opened is None:
        return None
    board, read = opened

    def reading() -> float:
        status = read(board, *selectors, ctypes.byref(value))
        if status != SUCCESS:
            raise RuntimeError(f"NVML status {status} on reading the {what} of {uuid}")
        return float(value.value * unit)

    return reading if read(board, *selectors, ctypes.byref(value)) == SUCCESS else None
