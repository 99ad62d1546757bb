"""How many cycles of a multiprocessor does a tile of latents take, decoded by warps with roles, and what does the order they work in cost?

The schedule of `gluon_seesaw` as events, without a GPU: two groups, the matrix units that take their instructions in turn, shared
memory that both these and what arrives need, and a fetch that may begin when a room is free. A model: its figures foresee, and measure
nothing. Rates are those of `gpu_expected.toml`; instructions of a softmax and of scaling are counted in the kernel's assembly, and
cycles between one warp's telling and another's hearing are the field's usual estimates. `--order` has two more than the kernel's.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from provenance import provenance, save

BLOCK_BYTES = 64 * 64 * 2  # 64 keys by 64 channels
LOGITS = [(32, 4096)] * 4  # over a block of channels: m64n64k16 with both operands in shared memory, (cycles, bytes)
OWN_VALUES = [(128, 8192)] * 4  # over 256 channels, weights in registers
OTHERS_VALUES = [(128, 8192 + 2048)] * 4
ROTARY = 8  # the last block of a tile
ORDERS = {
    "between": "logits of its own half, the other's tile, the rest of the logits",
    "first": "the other's tile, all logits",
    "last": "all logits, the other's tile",
}


@dataclass(frozen=True, kw_only=True)
class Cycles:
    l2_bytes: float = 28.8  # a cycle: 6.65 TB/s over 132 multiprocessors at 1.75 GHz
    shared_bytes: float = 128.0
    latency: float = 1100.0  # from asking to arriving, half of the bytes from memory
    told: float = 60.0  # from an arrival at a barrier to whoever waits for it
    drained: float = 60.0  # from the end of products to what waits for them
    # 32 maxima at half rate, 34 exponentials at an eighth with all else under them, four rounds across lanes, a fence and a barrier.
    weigh: float = 585.0
    scale: float = 120.0  # its results, before its own tile: what is not done under the exponentials
    scale_told: float = 200.0  # 128 products behind a load and an exponential, before the other's tile
    freed: float = 30.0  # the barrier of its warps


SLOW = Cycles(weigh=700.0, scale=200.0, scale_told=300.0, told=120.0)
Process = Generator[float | Hashable, None, None]


class Multiprocessor:
    """Processes that yield cycles to sleep or the name of what they wait for."""

    def __init__(self, cycles: Cycles) -> None:
        self.cycles, self.now = cycles, 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = count()
        self.known: set[Hashable] = set()
        self.waiting: dict[Hashable, list[Process]] = {}
        self.products: tuple[deque, deque] = deque(), deque()
        self.is_multiplying, self.last = False, 1
        self.fetched_to = 0.0
        self.arrivals: deque[tuple[float, float]] = deque(maxlen=64)

    def at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.number), act))

    def run(self, processes: list[Process]) -> float:
        for process in processes:
            self.go(process)
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()
        assert not self.waiting, "somebody waits in vain"
        return self.now

    def go(self, process: Process) -> None:
        for wish in process:
            if isinstance(wish, float):
                self.at(self.now + wish, lambda: self.go(process))
                return
            if wish not in self.known:
                self.waiting.setdefault(wish, []).append(process)
                return

    def tell(self, what: Hashable) -> None:
        self.known.add(what)
        for process in self.waiting.pop(what, []):
            self.at(self.now, lambda p=process: self.go(p))  # type: ignore[misc]

    def fetch(self, num_bytes: int, what: Hashable) -> None:
        first = max(self.now, self.fetched_to)
        self.fetched_to = first + num_bytes / self.cycles.l2_bytes
        arrival = self.fetched_to + self.cycles.latency
        self.arrivals.append((first + self.cycles.latency, arrival))
        self.at(arrival, lambda: self.tell(what))

    def multiply(self, group: int, instructions: list[tuple[int, int]], what: Hashable) -> None:
        self.products[group].append((deque(instructions), what))
        self._next_product()

    def _next_product(self) -> None:
        group = 1 - self.last if self.products[1 - self.last] else self.last
        if self.is_multiplying or not self.products[group]:
            return
        instructions, what = self.products[group][0]
        needed, num_bytes = instructions.popleft()
        arriving = any(first <= self.now < end for first, end in self.arrivals)
        left = self.cycles.shared_bytes - arriving * self.cycles.l2_bytes
        self.is_multiplying, self.last = True, group

        def done() -> None:
            self.is_multiplying = False
            if not instructions:
                self.products[group].popleft()
                self.at(self.now + self.cycles.drained, lambda: self.tell(what))
            self._next_product()

        self.at(self.now + max(needed, num_bytes / left), done)


def parts(group: int) -> list[list[int]]:
    """Blocks of a tile in the order they are fetched, as they are announced: the group's own half, the other and the rotary channels."""
    own, other = 4 * group, 4 - 4 * group
    return [[own, own + 1], [own + 2, own + 3], [other, other + 1], [other + 2, other + 3, ROTARY]]


def fetching(sm: Multiprocessor, tiles: int) -> Process:
    for t in range(tiles):
        group = t % 2
        for place, blocks in enumerate(parts(group)):
            if t >= 2 and place % 2 == 0:
                yield ("freed", t - 2, group if place < 2 else 1 - group)
                yield sm.cycles.told
            sm.fetch(BLOCK_BYTES * len(blocks), ("came", t, place))


def multiplying(sm: Multiprocessor, tiles: int, group: int, order: str) -> Process:
    cycles = sm.cycles

    def logits(t: int, places: range) -> Process:
        for place in places:
            yield ("came", t, place)
            sm.multiply(group, LOGITS * len(parts(group)[place]), ("logits", t, place))

    def others(t: int) -> Process:
        yield ("weighed", t)
        yield cycles.told + cycles.scale_told
        sm.multiply(group, OTHERS_VALUES, ("added", t, group))

    def free(t: int) -> Process:
        yield ("added", t, group)
        yield cycles.freed
        sm.tell(("freed", t, group))

    for t in range(group, tiles, 2):
        before = {"between": 2, "first": 0, "last": 4}[order]
        yield from logits(t, range(before))
        if t > 0:
            yield from others(t - 1)
            yield from logits(t, range(before, min(before + 1, 4)))
            yield from free(t - 1)
        yield from logits(t, range(before + 1 if t > 0 else before, 4))
        yield ("logits", t, 3)
        yield cycles.weigh
        sm.tell(("weighed", t))
        yield cycles.scale
        sm.multiply(group, OWN_VALUES, ("added", t, group))
        yield from free(t)
    if tiles % 2 == group:
        yield from others(tiles - 1)
        yield ("added", tiles - 1, group)


def cycles_of(tiles: int, cycles: Cycles, order: str = "between") -> float:
    sm = Multiprocessor(cycles)
    return sm.run([fetching(sm, tiles), *(multiplying(sm, tiles, group, order) for group in (0, 1))])


def a_tile(tiles: int, cycles: Cycles, order: str = "between") -> float:
    """Of many: what the first and the last cost is left out."""
    return (cycles_of(2 * tiles, cycles, order) - cycles_of(tiles, cycles, order)) / tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few tiles")
    parser.add_argument("--order", choices=ORDERS, default="between", help="default: the kernel's")
    parser.add_argument("--out", type=Path, help="JSON result")
    args = parser.parse_args()
    tiles = 8 if args.smoke else 64
    needed = sum(cycles for cycles, _ in LOGITS * (ROTARY + 1) + OWN_VALUES + OTHERS_VALUES)
    print(f"{ORDERS[args.order]}; matrix units {needed:,} cycles a tile")
    print(f"{'latency':>8} {'B/cycle':>8} {'a tile':>8} {f'of {tiles}':>10} {'slow':>8}")
    rows = []
    for l2_bytes in (24.0, 28.8, 32.0):
        for latency in (700.0, 1100.0, 1500.0):
            given, slow = (replace(c, l2_bytes=l2_bytes, latency=latency) for c in (Cycles(), SLOW))
            row = {
                "latency": latency, "l2_bytes_per_cycle": l2_bytes, "tile_cycles": a_tile(tiles, given, args.order),
                "program_cycles": cycles_of(tiles, given, args.order), "slow_tile_cycles": a_tile(tiles, slow, args.order),
            }  # fmt: skip
            rows.append(row)
            print(f"{latency:8.0f} {l2_bytes:8.1f} {row['tile_cycles']:8.0f} {row['program_cycles']:10.0f} {row['slow_tile_cycles']:8.0f}")  # fmt: skip
    save(args.out, provenance(__doc__) | {"order": args.order, "tiles": tiles, "rows": rows})


if __name__ == "__main__":
    main()
