"""How a load settles on whole instances: how many there must be, and how many sequences are then in flight on each.

Users who always have a request in flight are simply divided. A given rate, or users who pause, settle where the requests that
arrive at an instance in a residence time are the sequences it holds (Little's law): found on the curve of what an instance
carries at each batch. Knows no hardware.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ridgepoint.plan.workload import Workload

Array = NDArray[np.float64]


def settle(workload: Workload, batch: Array, residence_s: Callable[[Array], Array]) -> tuple[Array, Array]:
    """(instances, sequences on each) for instances that may hold up to `batch` [layouts, batches, ...]; `residence_s(batch)` is
    how long a request then stays. Never more sequences than `batch` allows."""
    if workload.is_open:
        return np.ones_like(batch), batch
    if workload.users is not None and workload.think_time_s == 0:
        instances = np.ceil(workload.users / batch - 1e-9)
        return instances, workload.users / instances
    stay = np.asarray(residence_s(batch))
    full = np.broadcast_to(batch, stay.shape)
    if workload.users is not None:
        carried, wanted = full * (stay + workload.think_time_s) / stay, float(workload.users)
    else:
        carried, wanted = full / stay, float(workload.requests_per_s or 0.0)
    instances = np.maximum(np.ceil(wanted / carried - 1e-9), 1.0)  # however few come, one must stand there
    return instances, _where_curve_reaches(wanted / instances, carried, full)


def _where_curve_reaches(target: Array, carried: Array, batch: Array) -> Array:
    """For every row along axis 1, the batch at which the rising curve `carried(batch)` reaches each target."""
    rising = np.maximum.accumulate(carried, axis=1)
    flat = [np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]) for array in (target, rising, batch)]
    found = np.stack([np.interp(want, curve, at) for want, curve, at in zip(*flat, strict=True)])
    return np.moveaxis(found.reshape(np.moveaxis(target, 1, -1).shape), -1, 1)


def carries(
    workload: Workload, instances: Array, batch: Array, residence_s: Array, *, within: float = 0.05
) -> NDArray[np.bool_]:
    """Whether a settled row carries its load: on a timetable the residence jumps from one departure to the next, and a load may
    land on no batch at all."""
    if workload.requests_per_s is not None:
        return np.abs(instances * batch / residence_s / workload.requests_per_s - 1.0) <= within
    if workload.users is not None and workload.think_time_s > 0:
        users = instances * batch * (residence_s + workload.think_time_s) / residence_s
        return np.abs(users / workload.users - 1.0) <= within
    return np.ones(np.broadcast_shapes(instances.shape, batch.shape, residence_s.shape), dtype=bool)


def requests_per_s(workload: Workload, instances: Array, batch: Array, residence_s: Array) -> Array:
    """Of all instances together."""
    if workload.requests_per_s is not None:
        return np.full(np.broadcast_shapes(batch.shape, residence_s.shape), workload.requests_per_s)
    return instances * batch / residence_s
