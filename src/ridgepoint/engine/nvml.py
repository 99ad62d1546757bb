"""Joules that an NVIDIA GPU has used, by its own counter, and the clock it runs at (NVML, the library beside the driver). Absent is
None, not zero.

The counter is the whole board's, in millijoules since the driver was loaded, and moves some tens of times a second: it
measures runs of many steps, not one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

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
    opened = _open(uuid, library, "nvmlDeviceGetClockInfo")
    if opened is None:
        return None
    board, read = opened
    megahertz = ctypes.c_uint()

    def hertz() -> float:
        status = read(board, MULTIPROCESSORS, ctypes.byref(megahertz))
        if status != SUCCESS:
            raise RuntimeError(f"NVML status {status} on reading the clock of {uuid}")
        return megahertz.value * 1e6

    return hertz if read(board, MULTIPROCESSORS, ctypes.byref(megahertz)) == SUCCESS else None


def open_counter(uuid: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """`joule_counter` of the board with this NVML identifier."""
    opened = _open(uuid, library, "nvmlDeviceGetTotalEnergyConsumption")
    if opened is None:
        return None
    board, read = opened
    millijoules = ctypes.c_ulonglong()

    def joules() -> float:
        status = read(board, ctypes.byref(millijoules))
        if status != SUCCESS:
            raise RuntimeError(f"NVML status {status} on reading the energy counter of {uuid}")
        return millijoules.value / 1e3

    return joules if read(board, ctypes.byref(millijoules)) == SUCCESS else None
