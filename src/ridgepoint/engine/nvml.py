"""Joules that an NVIDIA GPU has used, by its own counter (NVML, the library beside the driver). Absent is None, not zero.

The counter is the whole board's, in millijoules since the driver was loaded, and moves some tens of times a second: it
measures runs of many steps, not one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0


def joule_counter(device: torch.device, library: str = LIBRARY) -> Callable[[], float] | None:
    """A function that reads the joules used so far by `device`; None for other devices and where NVML or its counter is
    missing."""
    if device.type != "cuda":
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return open_counter(uuid, library)


def open_counter(uuid: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """`joule_counter` of the board with this NVML identifier."""
    try:
        nvml = ctypes.CDLL(library)
        begin, find, read = (
            nvml.nvmlInit_v2,
            nvml.nvmlDeviceGetHandleByUUID,
            nvml.nvmlDeviceGetTotalEnergyConsumption,
        )
    except (OSError, AttributeError):
        return None
    board, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if begin() != SUCCESS or find(uuid.encode(), ctypes.byref(board)) != SUCCESS:
        return None

    def joules() -> float:
        status = read(board, ctypes.byref(millijoules))
        if status != SUCCESS:
            raise RuntimeError(f"NVML status {status} on reading the energy counter of {uuid}")
        return millijoules.value / 1e3

    return joules if read(board, ctypes.byref(millijoules)) == SUCCESS else None
