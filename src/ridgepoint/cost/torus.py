"""Collectives on a torus or ring of point-to-point links (TPU pods): bytes over links in the pocket-calculator form.

Switched domains (NVLink) are in `links`. Each axis of a torus with wraparound sends both ways at once; an all-gather of V bytes
moves V over the bandwidth of its axes, whatever the number of chips, and an all-reduce twice that.
"""

from __future__ import annotations

from ridgepoint.errors import ConfigError


def all_gather_s(
    total_bytes: float,
    link_oneway_bytes_per_s: float,
    *,
    axes: int = 1,
    wraparound: bool = True,
    hop_s: float = 0.0,
    hops: int = 0,
) -> float:
    """Seconds until every chip holds all `total_bytes`; below `hops` x `hop_s` it is latency that binds."""
    if axes < 1 or link_oneway_bytes_per_s <= 0:
        raise ConfigError(
            f"axes must be at least 1 and the bandwidth positive, got {axes} and {link_oneway_bytes_per_s:g}"
        )
    rate = link_oneway_bytes_per_s * axes * (2 if wraparound else 1)
    return max(total_bytes / rate, hop_s * hops)


def all_reduce_s(
    total_bytes: float, link_oneway_bytes_per_s: float, *, axes: int = 1, wraparound: bool = True
) -> float:
    return 2.0 * all_gather_s(total_bytes, link_oneway_bytes_per_s, axes=axes, wraparound=wraparound)


def send_s(payload_bytes: float, link_oneway_bytes_per_s: float, *, ports: int, hops: int, hop_s: float) -> float:
    """One chip to another through `ports` of its links over `hops` steps."""
    return payload_bytes / (link_oneway_bytes_per_s * ports) + hops * hop_s
