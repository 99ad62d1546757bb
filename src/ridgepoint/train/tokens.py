"""Texts to token streams to batches. Decides the order in which windows of text are seen; knows nothing of models.

Invariant: a batch is a pure function of (streams, seed, cursor). The cursor is three small numbers per source and is all
that a checkpoint must keep; no generator's state runs along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ridgepoint.train.vocabulary import end_id

Ids = npt.NDArray[np.int64]


def _cut(text: str, every_chars: int, draw: np.random.Generator) -> list[str]:
    """`text` in pieces, cut at random characters `every_chars` apart on average (0: not at all)."""
    if every_chars == 0:
        return [text]
    places = np.flatnonzero(draw.random(len(text)) < 1 / every_chars).tolist()
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True) if begin < end]


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], *, cut_every_chars: int, seed: int) -> list[Ids]:
    """One array of ids per text, each ending with the end-of-text token."""
    draw = np.random.default_rng([seed, 1])
    end = end_id(tokenizer)
    documents = []
    for text in texts:
        pieces = tokenizer.encode_batch(_cut(text, cut_every_chars, draw), add_special_tokens=False)
        documents.append(np.array([*(i for piece in pieces for i in piece.ids), end], dtype=np.int64))
    return documents


@dataclass
class Cursor:
    """Where a source stands: `window` of `seq_len` tokens in the `epoch`-th shuffle."""

    epoch: int = 0
    window: int = 0
    seq_len: int = 0


class Source:
    """One set of documents, shuffled anew in every epoch, concatenated and cut into windows that are shuffled too."""

    def __init__(self, name: str, documents: Sequence[Ids], seed: Sequence[int]) -> None:
        self.name = name
        self.documents = list(documents)
        self.num_tokens = sum(len(document) for document in documents)
        self.cursor = Cursor()
        self._seed = list(seed)
        self._shuffled: tuple[int, int, Ids, Ids] | None = None

    def _windows(self) -> tuple[Ids, Ids]:
        """(stream, order of window starts) of the cursor's epoch and length."""
        epoch, length = self.cursor.epoch, self.cursor.seq_len
        if self._shuffled is None or self._shuffled[:2] != (epoch, length):
            draw = np.random.default_rng([*self._seed, epoch, length])
            stream = np.concatenate([self.documents[i] for i in draw.permutation(len(self.documents))])
            phase = int(draw.integers(length))
            starts = np.arange(phase, len(stream) - length, length)
            self._shuffled = (epoch, length, stream, draw.permutation(starts))
        return self._shuffled[2], self._shuffled[3]

    def take(self, count: int, seq_len: int) -> list[Ids]:
        """The next `count` windows of `seq_len + 1` ids. Another `seq_len` than before starts a new epoch."""
        if seq_len != self.cursor.seq_len:
            self.cursor = Cursor(epoch=self.cursor.epoch + 1, window=0, seq_len=seq_len)
        taken: list[Ids] = []
        while len(taken) < count:
            stream, starts = self._windows()
            if self.cursor.window >= len(starts):
                self.cursor = Cursor(epoch=self.cursor.epoch + 1, window=0, seq_len=seq_len)
                continue
            start = int(starts[self.cursor.window])
            taken.append(stream[start : start + seq_len + 1])
            self.cursor.window += 1
        return taken


class Mixture:
    """Two sources in a given proportion, exact in the long run: the fraction left over is carried to the next batch."""

    def __init__(self, library: Source, tests: Source) -> None:
        self.library, self.tests = library, tests
        self.owed_tests = 0.0

    def batch(self, num_windows: int, seq_len: int, tests_frac: float) -> Ids:
        """[num_windows, seq_len + 1] ids."""
        self.owed_tests += num_windows * tests_frac
        from_tests = min(num_windows, int(self.owed_tests))
        self.owed_tests -= from_tests
        windows = self.tests.take(from_tests, seq_len) if from_tests else []
        windows += self.library.take(num_windows - from_tests, seq_len) if num_windows > from_tests else []
        return np.stack(windows)

    def state(self) -> dict[str, Any]:
        return {
            "owed_tests": self.owed_tests,
            **{source.name: vars(source.cursor).copy() for source in (self.library, self.tests)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.owed_tests = state["owed_tests"]
        for source in (self.library, self.tests):
            source.cursor = Cursor(**state[source.name])
