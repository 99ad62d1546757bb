"""What a Gluon kernel's partitions know of each other through shared memory: rooms, barriers, and copies and products on their way.

Each partition counts its acts, and whoever is told of one (by a barrier of its warps, or an mbarrier) knows all before it too: vector
clocks. A room may be read by whoever knows of its latest write, written by whoever knows of its latest reads as well; where what
threads access meets what the matrix units or the copy engine access, a fence must lie between. A copy lands when the order says so, a
product reads until it is waited for. One partition runs at a time; which one goes on where it could be another's turn is the order's
choice, so that what is wrong in some order only can be met. Warps of one partition are taken to be in step.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Semaphore, Thread
from typing import Any

import numpy as np

POISON = {"float32": np.nan, "bfloat16": np.nan, "int32": -(1 << 30), "int64": -(1 << 30)}  # of unwritten rooms
BYTES = {"float32": 4, "bfloat16": 2, "int32": 4, "int64": 8}


class Aborted(BaseException):
    """Another partition failed."""


@dataclass(frozen=True)
class Act:
    who: str
    when: int
    engine: bool = False  # the matrix units' or the copy engine's: through their proxy, not a thread's


class Clock(Counter[str]):
    """How many acts of each are known of."""

    def join(self, other: Clock) -> None:
        for who, when in other.items():
            self[who] = max(self[who], when)

    def has(self, act: Act) -> bool:
        return self[act.who] >= act.when


class Room:
    """Of shared memory. What is indexed or sliced once is rooms of its own from then on, each with its writer and readers."""

    def __init__(self, memory: Memory, dtype: str, values: np.ndarray) -> None:
        self.memory, self.dtype, self.values = memory, dtype, values
        self.cut: tuple[int, int] | None = None  # where, and every how many
        self.parts: list[Room] = []
        self.written: Act | None = None
        self.reads: list[Act] = []
        self.multiplied = 0  # by how many products on their way
        self.barrier: Barrier | None = None

    @classmethod
    def allocated(cls, memory: Memory, dtype: str, shape: Sequence[int]) -> Room:
        return cls(memory, dtype, np.full(shape, POISON[dtype], np.float32 if dtype == "bfloat16" else dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.size * BYTES[self.dtype]

    def leaves(self) -> list[Room]:
        return [leaf for part in self.parts for leaf in part.leaves()] if self.parts else [self]

    def index(self, place: int) -> Room:
        assert 0 <= int(place) < self.shape[0], f"room {int(place)} of {self.shape[0]}"
        return self._divided((0, 0), list(self.values))[int(place)]

    def slice(self, start: int, length: int, dim: int = 0) -> Room:
        num, rest = divmod(self.shape[dim], length)
        assert rest == 0 and start % length == 0, "slices of a room are equal"
        return self._divided((dim, length), np.split(self.values, num, dim))[start // length]

    def _divided(self, cut: tuple[int, int], values: Sequence[np.ndarray]) -> list[Room]:
        if self.cut is None:
            self.cut, self.parts = cut, [Room(self.memory, self.dtype, part) for part in values]
            for part in self.parts:
                part.written, part.reads = self.written, list(self.reads)
        assert self.cut == cut, "a room is divided in one way"
        return self.parts

    def permute(self, order: Sequence[int]) -> View:
        return View(self, lambda x: x.transpose(order))

    def _reinterpret(self, dtype: str, shape: Sequence[int], layout: object) -> Tiles:
        assert dtype == self.dtype and np.prod(shape) == np.prod(self.shape)
        return Tiles(self, shape)

    def load(self, layout: object) -> Any:
        me = self.memory.now
        me.read(self, me.act())
        return self.memory.tensor(self.values.copy())

    def store(self, values: np.ndarray) -> None:
        me = self.memory.now
        me.write(self, me.act())
        self.values[...] = values


@dataclass
class View:
    """A room as a product sees it."""

    room: Room
    of: Callable[[np.ndarray], np.ndarray]

    @property
    def rooms(self) -> list[Room]:
        return [self.room]

    @property
    def values(self) -> np.ndarray:
        return self.of(self.room.values)


BOX = 64  # elements of two bytes that are swizzled together: a row of a box of the copy engine


@dataclass
class Tile(View):
    """Boxes seen as one room: those of the first BOX columns, below each other, then those of the next."""

    boxes: list[Room] = field(default_factory=list)
    columns: int = BOX

    def permute(self, order: Sequence[int]) -> Tile:
        return replace(self, of=lambda x: x.transpose(order))

    @property
    def rooms(self) -> list[Room]:
        return self.boxes

    @property
    def values(self) -> np.ndarray:
        rows = np.stack([box.values.reshape(-1, BOX) for box in self.boxes])
        halves = rows.reshape(self.columns // BOX, -1, BOX)
        return self.of(halves.swapaxes(0, 1).reshape(-1, self.columns))


@dataclass
class Tiles:
    """Rooms for boxes as rooms for tiles of them: rows of whole swizzled widths, so that the bytes lie as the matrix units want them."""

    boxes: Room
    shape: Sequence[int]

    def index(self, place: int) -> Tile:
        num, rows, columns = self.shape
        assert 0 <= int(place) < num, f"tile {int(place)} of {num}"
        box_rows, width = int(np.prod(self.boxes.shape[1:-1])), self.boxes.shape[-1]
        assert width == BOX and box_rows % 8 == 0 and rows % box_rows == 0 and columns % BOX == 0
        each = rows // box_rows * (columns // BOX)
        found = [self.boxes.index(int(place) * each + i) for i in range(each)]
        return Tile(found[0], lambda x: x, found, columns)


class Barrier:
    """An mbarrier: a phase ends when `count` have arrived and the bytes expected have come."""

    def __init__(self, count: int) -> None:
        self.count = self.missing = int(count)
        self.bytes, self.phases = 0, 0
        self.coming, self.known = (Clock(), Clock()), (Clock(), Clock())  # known of, and fenced

    def arrive(self, count: int, known: Clock, fenced: Clock) -> None:
        assert count <= self.missing, f"{count} arrive where {self.missing} are missing"
        for mine, theirs in zip(self.coming, (known, fenced), strict=True):
            mine.join(theirs)
        self.missing -= count
        self._turn()

    def complete(self, nbytes: int, known: Clock) -> None:
        self.coming[0].join(known)
        self.bytes -= nbytes
        self._turn()

    def _turn(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            for mine, theirs in zip(self.known, self.coming, strict=True):
                mine.join(theirs)
            self.missing, self.phases = self.count, self.phases + 1

    def passed(self, phase: int) -> bool:
        """Whether the phase of this parity is over; of a fresh one, that before the first is."""
        return self.phases % 2 != int(phase)


@dataclass(eq=False)
class Copy:
    room: Room
    values: np.ndarray
    act: Act
    barrier: Barrier | None = None  # that the copy engine tells
    landed: bool = False

    def land(self) -> None:
        self.room.values[...], self.landed = self.values, True
        if self.barrier is not None:
            self.barrier.complete(self.room.nbytes, Clock({self.act.who: 1}))


@dataclass(eq=False)
class Product:
    rooms: list[Room]
    act: Act
    done: bool = False


@dataclass(eq=False)
class Partition:
    """Warps of one role. `known` and `fenced` hold for all of them; `own` each knows of its share alone until they meet."""

    place: int
    warps: int
    known: Clock = field(default_factory=Clock)
    fenced: Clock = field(default_factory=Clock)
    own: Clock = field(default_factory=Clock)
    own_fenced: Clock = field(default_factory=Clock)
    acts: Clock = field(default_factory=Clock)
    products: list[Product] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)  # all
    groups: list[list[Copy]] = field(default_factory=lambda: [[]])  # the last is still open
    stores: list[Act] = field(default_factory=list)  # of the copy engine, in order
    ready: Callable[[], bool] = lambda: True
    waits_for: str = ""
    over: bool = False
    turn: Semaphore = field(default_factory=lambda: Semaphore(0))

    @property
    def name(self) -> str:
        return f"partition {self.place}"

    def act(self) -> Act:
        """Of its threads."""
        self.acts[self.name] += 1
        self.own[self.name] = self.acts[self.name]
        return Act(self.name, self.acts[self.name])

    def other(self, what: str, engine: bool) -> Act:
        """Of what it has started, each with a clock of its own: they end in any order."""
        self.acts[what] += 1
        return Act(f"{self.name} {what} {self.acts[what]}", 1, engine)

    def fence(self) -> None:
        self.own_fenced.join(self.own)
        self.fenced.join(self.known)

    def meet(self) -> None:
        """A barrier of its warps."""
        self.known.join(self.own)
        self.fenced.join(self.own_fenced)

    def read(self, room: Room, act: Act) -> None:
        for leaf in room.leaves():
            written = leaf.written
            assert written is not None, f"{self.name} reads what nobody wrote"
            if written.who != self.name or act.engine:
                assert self.known.has(written), f"{self.name} reads what it does not know to be there"
            if act.engine != written.engine:
                assert self.fenced.has(written), (
                    f"{self.name} reads through the other proxy, not fenced since it was written"
                )
            leaf.reads.append(act)

    def write(self, room: Room, act: Act) -> None:
        for leaf in room.leaves():
            for past in [*leaf.reads, *([leaf.written] if leaf.written else [])]:
                if past.who == self.name and not act.engine:
                    continue  # the compiler sees it and lets its warps meet
                known = self.known.has(past)
                assert known or not leaf.multiplied, f"{self.name} writes while the matrix units read it"
                assert known, f"{self.name} writes before it knows that nobody reads or writes there"
                if act.engine and not past.engine:
                    assert self.fenced.has(past), (
                        f"{self.name} has the copy engine write, not fenced since threads were there"
                    )
            leaf.written, leaf.reads = act, []

    def multiply(self, rooms: list[Room]) -> Product:
        act = self.other("product", engine=True)
        for room in rooms:
            self.read(room, act)
        product = Product([leaf for room in rooms for leaf in room.leaves()], act)
        for leaf in product.rooms:
            leaf.multiplied += 1
        self.products.append(product)
        return product

    def finish(self, product: Product) -> None:
        product.done = True
        for room in product.rooms:
            room.multiplied -= 1
        self.own[product.act.who] = 1


Order = Callable[[list[Partition], list[Copy]], Partition | Copy]


def eager(*places: int, late: bool = True) -> Order:
    """The first of these that can goes on. Copies land when nobody can (the last asked first), or else at once."""

    def choose(able: list[Partition], flying: list[Copy]) -> Partition | Copy:
        if flying and (not able or not late):
            return flying[-1] if late else flying[0]
        return min(able, key=lambda p: places.index(p.place) if p.place in places else len(places))

    return choose


def shuffled(seed: int) -> Order:
    generator = random.Random(seed)
    return lambda able, flying: generator.choice([*able, *flying])


class Memory:
    """One program's shared memory, and its partitions' turns."""

    def __init__(self, order: Order, warps: int, tensor: Callable[[np.ndarray], Any]) -> None:
        self.order, self.tensor = order, tensor
        self.now = Partition(0, warps)
        self.partitions = [self.now]
        self.flying: list[Copy] = []
        self.expecting: list[tuple[Barrier, list[Copy], int]] = []  # arrivals that wait for copies
        self.failure: BaseException | None = None

    # ---- copies

    def launch(self, copy: Copy) -> None:
        copy.room.values[...] = POISON[copy.room.dtype]
        self.flying.append(copy)

    def land(self, copy: Copy) -> None:
        copy.land()
        self.flying.remove(copy)
        self.settle()

    def settle(self) -> None:
        """Arrivals for which every copy has come."""
        waiting, self.expecting = self.expecting, []
        for barrier, copies, count in waiting:
            if all(copy.landed for copy in copies):
                barrier.arrive(count, Clock({copy.act.who: 1 for copy in copies}), Clock())
            else:
                self.expecting.append((barrier, copies, count))

    # ---- turns

    def pause(self, ready: Callable[[], bool] = lambda: True, what: str = "") -> None:
        """Let the order choose who goes on; come back when it is this partition's turn again, and `ready`."""
        me = self.now
        me.ready, me.waits_for = ready, what
        following = self._next()
        if following is not me:
            following.turn.release()
            me.turn.acquire()
            if self.failure is not None:
                raise Aborted
        self.now = me

    def _next(self) -> Partition:
        while True:
            able = [p for p in self.partitions if not p.over and p.ready()]
            if not able and not self.flying:
                waiting = (f"{p.name} for {p.waits_for}" for p in self.partitions if not p.over)
                raise AssertionError(f"nobody can go on: {', '.join(waiting)}")
            chosen = self.order(able, self.flying)
            if isinstance(chosen, Partition):
                return chosen
            self.land(chosen)

    def specialise(self, functions: list[tuple[Callable[..., Any], tuple[Any, ...]]], warps: list[int]) -> Any:
        """The first function goes on here, the others in partitions of their own."""
        parent = self.now
        parent.meet()
        workers = [
            Partition(place, num, Clock(parent.known), Clock(parent.fenced)) for place, num in enumerate(warps, len(self.partitions))
        ]  # fmt: skip
        self.partitions += workers
        threads = [
            Thread(target=self._work, args=(worker, *given), daemon=True)
            for worker, given in zip(workers, functions[1:], strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            self.pause()
            function, arguments = functions[0]
            result = function(*arguments)
            parent.meet()
            self.pause(lambda: all(worker.over for worker in workers), "the other partitions")
        except BaseException as error:
            self.failure = self.failure or error
            raise self.failure if isinstance(error, Aborted) else error from None
        finally:
            for worker in workers:
                worker.turn.release()
            for thread in threads:
                thread.join()
        for worker in workers:
            parent.known.join(worker.known)
            parent.fenced.join(worker.fenced)
        self.partitions = [p for p in self.partitions if p not in workers]
        return result

    def _work(self, worker: Partition, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        worker.turn.acquire()
        if self.failure is not None:
            return
        self.now = worker
        try:
            function(*arguments)
            worker.meet()
            worker.over = True
            following = self._next()
        except Aborted:
            return
        except BaseException as error:
            self.failure = error
            following = self.partitions[0]
        following.turn.release()
