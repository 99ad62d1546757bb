"""Who holds which KV block. Counts references; never touches bytes, tokens or requests.

Every block is in exactly one of three states:

    held       references > 0: in the table of one or more sequences
    evictable  no references, but its content has a key and may be asked for again; least recently used goes first
    free       no references and no content worth keeping

Invariant (`check`): the three states partition the pool, and a block with a key is never in the free list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ridgepoint.sched.prefix import PrefixIndex


class BlockPool:
    """`num_blocks` blocks, numbered from 0. `index` is where this pool looks up and drops content keys."""

    def __init__(self, num_blocks: int, index: PrefixIndex) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self.index = index
        self._refs = [0] * num_blocks
        self._free = list(
            range(num_blocks - 1, -1, -1)
        )  # a stack: low numbers first, so a light load touches few pages
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out."""
        return len(self._free) + len(self._evictable)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_evictable(self) -> int:
        return len(self._evictable)

    def refs(self, block: int) -> int:
        return self._refs[block]

    def allocate(self) -> int:
        """A block with one reference and no key. The caller has seen that `num_available` is not 0."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            self.index.remove(block)
        self._refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a block found in the index."""
        if self._refs[block] == 0:
            del self._evictable[block]
        self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a table. Its tail is evicted before its head, which more can share."""
        for block in reversed(blocks):
            refs = self._refs[block] - 1
            assert refs >= 0, f"block {block} released more often than held"
            self._refs[block] = refs
            if refs == 0:
                if self.index.key_of(block) is None:
                    self._free.append(block)
                else:
                    self._evictable[block] = None

    def forget_cached(self) -> None:
        """Make every evictable block free: the prefix cache is emptied, what is held stays."""
        for block in self._evictable:
            self.index.remove(block)
            self._free.append(block)
        self._evictable.clear()

    def check(self) -> None:
        """Audit every invariant; raise AssertionError naming the first that fails."""
        self.index.check()
        free = set(self._free)
        assert len(free) == len(self._free), "a block is twice in the free list"
        assert not free & self._evictable.keys(), "a block is both free and evictable"
        for block, refs in enumerate(self._refs):
            keyed = self.index.key_of(block) is not None
            if block in free:
                assert refs == 0 and not keyed, f"free block {block} has {refs} references, keyed: {keyed}"
            elif block in self._evictable:
                assert refs == 0 and keyed, f"evictable block {block} has {refs} references, keyed: {keyed}"
            else:
                assert refs > 0, f"block {block} leaked: no references, not free, not evictable"
