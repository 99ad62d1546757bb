"""Content addresses of KV blocks: a block's key is a hash over its tokens and everything before them.

    key(0) = blake2b(root, tokens of block 0),  key(i) = blake2b(key(i - 1), tokens of block i)

The root salts the chain with what the bytes depend on (model, block layout, dtype) and with the tenant. Where tokens are
computed in more than one form, `form_key` salts it again at the first block that holds a token of the next form. So equal
keys mean equal bytes that this tenant may see. Only full blocks have keys. `PrefixIndex` says which block holds a key; it
does not know who uses a block or when one may go: that is `BlockPool`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16


def root_key(*, model: str, layout: str, dtype: str, tenant: bytes) -> bytes:
    """The start of a chain. Parts are length-prefixed, so no two different tuples hash alike."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in (model.encode(), layout.encode(), dtype.encode(), tenant):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the block of `tokens` that follows the block (or root) `parent`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=KEY_BYTES).digest()


def form_key(parent: bytes, run: int, start: int) -> bytes:
    """What stands for `parent` before the first block that holds a token past whole runs of `run` tokens, which end at
    token `start`. The place is part of it: two prompts may end theirs at different tokens of equal blocks."""
    return blake2b(parent + array("q", (run, start)).tobytes(), digest_size=KEY_BYTES, person=b"form").digest()


class PrefixIndex:
    """Key to block and back, one to one."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, key: bytes) -> bool:
        return key in self._block_of

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks of the longest run of `keys`, from the first on, that are all present."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def key_of(self, block: int) -> bytes | None:
        return self._key_of.get(block)

    def insert(self, key: bytes, block: int) -> bool:
        """Record that `block` holds `key`. False, and nothing recorded, when another block already does."""
        assert block not in self._key_of, f"block {block} already has a key"
        if key in self._block_of:
            return False
        self._block_of[key] = block
        self._key_of[block] = key
        return True

    def remove(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]

    def check(self) -> None:
        """Raise AssertionError unless the two maps are inverse."""
        assert len(self._block_of) == len(self._key_of)
        for key, block in self._block_of.items():
            assert self._key_of[block] == key
