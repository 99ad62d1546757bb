"""The corpus: what is read, what is held out, and that text survives the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recipe import write_library

from ridgepoint.errors import ConfigError
from ridgepoint.train.corpus import is_held_out, read_corpus
from ridgepoint.train.tokens import Mixture, Source, encode_documents
from ridgepoint.train.vocabulary import END_OF_TEXT, end_id, tokenizer_config, train_tokenizer


def test_the_split_follows_names_and_takes_tests_along(tmp_path: Path) -> None:
    corpus = read_corpus(one_in=3, exclude=("skipped/",), root=write_library(tmp_path))
    parts = {file.path: file.part for file in corpus.files}
    assert set(parts) & {"skipped/table.py", "site-packages/other.py", "test/latin.py"} == set()
    for name in ("abc", "ast", "bisect", "calendar", "csv", "enum", "glob", "heapq", "io"):
        assert parts[f"{name}.py"] == ("held_out" if is_held_out(name, 3) else "library")
    for name in ("calendar", "csv", "heapq"):
        assert parts[f"test/test_{name}.py"] == ("held_out_tests" if is_held_out(name, 3) else "tests")
    assert set(parts.values()) == {"library", "tests", "held_out", "held_out_tests"}


def test_the_shipped_split_is_the_documented_list() -> None:
    """The held-out modules of recipes/stdlib.toml, for the modules every supported Python has."""
    documented = [
        "calendar",
        "ctypes",
        "dataclasses",
        "fnmatch",
        "glob",
        "importlib",
        "io",
        "mailbox",
        "textwrap",
        "tracemalloc",
        "zipfile",
    ]
    assert all(is_held_out(name, 24) for name in documented)
    assert not any(is_held_out(name, 24) for name in ("json", "os", "asyncio", "typing", "test", "email", "argparse"))


def test_the_hash_changes_with_any_byte(tmp_path: Path) -> None:
    root = write_library(tmp_path)
    before = read_corpus(one_in=3, exclude=(), root=root).sha256
    (root / "abc.py").write_text((root / "abc.py").read_text() + "#")
    assert read_corpus(one_in=3, exclude=(), root=root).sha256 != before


def test_an_empty_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no Python source"):
        read_corpus(one_in=3, exclude=(), root=tmp_path)


TOKENIZER = train_tokenizer(
    ["def read(self, path):\n    with open(path) as file:\n        return file.read()\n\n\nclass A:\n    pass\n"] * 3,
    320,
)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    if END_OF_TEXT not in text:
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_a_line_break_and_its_indentation_are_one_token() -> None:
    assert TOKENIZER.encode("x:\n        return").tokens[-2] == "ĊĠĠĠĠĠĠĠĠ"
    assert end_id(TOKENIZER) == 0


def test_cutting_documents_changes_tokens_but_not_text() -> None:
    text = "def read(self, path):\n    return path\n" * 20
    whole, cut = (encode_documents(TOKENIZER, [text], cut_every_chars=n, seed=1)[0] for n in (0, 10))
    assert whole[-1] == cut[-1] == 0
    assert len(cut) > len(whole)
    assert TOKENIZER.decode(cut[:-1].tolist()) == TOKENIZER.decode(whole[:-1].tolist()) == text


def test_the_chat_template_hands_messages_over_verbatim() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = str(tokenizer_config(64)["chat_template"])
    messages = [{"role": "system", "content": "import json\n"}, {"role": "user", "content": "def read_json(path):"}]
    rendered = (
        ImmutableSandboxedEnvironment().from_string(template).render(messages=messages, bos_token="<|endoftext|>")
    )
    assert rendered == "<|endoftext|>import json\ndef read_json(path):"
    rendered = (
        ImmutableSandboxedEnvironment().from_string(template).render(messages=[{"content": "a"}, {"content": "b"}])
    )
    assert rendered == "a\nb"


def _source(name: str, first: int, count: int = 200) -> Source:
    return Source(name, [np.arange(first, first + count), np.arange(first + count, first + 2 * count)], [1, first])


def test_every_window_of_an_epoch_is_seen_once_and_windows_run_on() -> None:
    source = _source("library", 0)
    windows = source.take(12, 32)  # 400 tokens: 12 windows whatever the phase
    assert source.cursor.epoch == 1
    starts = [tuple(window[:-1]) for window in windows]
    assert len({token for start in starts for token in start}) == 12 * 32
    source.take(1, 32)
    assert source.cursor.epoch == 2


def test_a_restored_mixture_gives_the_same_batches() -> None:
    one, two = (Mixture(_source("library", 0), _source("tests", 1000)) for _ in range(2))
    for _ in range(3):
        one.batch(4, 32, 0.3)
    two.restore(one.state())
    for seq_len in (32, 32, 64):
        assert np.array_equal(one.batch(4, seq_len, 0.3), two.batch(4, seq_len, 0.3))


def test_the_mixture_keeps_its_proportion() -> None:
    mixture = Mixture(_source("library", 0), _source("tests", 1000))
    from_tests = sum(int((mixture.batch(4, 16, 0.3)[:, 0] >= 1000).sum()) for _ in range(25))
    assert from_tests in (29, 30)  # what is owed is kept as a float
