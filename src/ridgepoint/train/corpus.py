"""The training text: the source of the Python standard library of the interpreter that runs this, split by module.

Decides which files are read, which module each belongs to, and which modules are held out. Knows nothing of tokens.
The invariant: the split depends on module *names* alone (a hash, so nobody can choose it to flatter the model), and a
held-out module takes its own tests with it, wherever they lie.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ridgepoint.errors import ConfigError

Part = Literal["library", "tests", "held_out", "held_out_tests"]
_TEST_FOLDERS = {"test", "tests", "idle_test"}


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file: its path relative to the library's root (posix), its text, and the part it belongs to."""

    path: str
    text: str
    part: Part

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Every file read, in path order, with what identifies the whole: Python version and SHA-256."""

    files: tuple[SourceFile, ...]
    held_out_modules: tuple[str, ...]
    python_version: str
    sha256: str

    def texts(self, part: Part) -> list[str]:
        return [file.text for file in self.files if file.part == part]

    def num_bytes(self, part: Part) -> int:
        return sum(file.num_bytes for file in self.files if file.part == part)


def is_held_out(module: str, one_in: int) -> bool:
    """The fixed rule: the first 8 bytes of SHA-256 of the top-level module's name, as an integer, divide by `one_in`."""
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big") % one_in == 0


def _module_of(relative: Path) -> str:
    return relative.parts[0].removesuffix(".py")


def _tests_module(relative: Path, module: str) -> bool:
    """Whether a test file belongs to `module`: one of its path's names is `test_<module>` or goes on from there without a
    letter or digit (`test_zipfile64.py` and `test_zipfile/` are both zipfile's, `test_iobuffer` would not be io's)."""
    for name in relative.with_suffix("").parts:
        rest = name.removeprefix(f"test_{module}")
        if rest != name and not rest[:1].isalpha():
            return True
    return False


def read_corpus(*, one_in: int, exclude: tuple[str, ...], root: Path | None = None) -> Corpus:
    """Read every `*.py` below `root` (default: this interpreter's standard library) but site-packages and `exclude`
    (path prefixes). Files that are not UTF-8 are part of the library's own encoding tests and are left out, by rule.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise ConfigError(f"no standard library source at {root}", hint="use an interpreter that ships its Lib folder")
    found: list[tuple[Path, str]] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "__pycache__"} & set(relative.parts):
            continue
        if any(relative.as_posix().startswith(prefix) for prefix in exclude):
            continue
        try:
            found.append((relative, path.read_bytes().decode("utf-8")))
        except UnicodeDecodeError:
            continue
    modules = {_module_of(relative) for relative, _ in found} - _TEST_FOLDERS
    held_out = tuple(sorted(module for module in modules if is_held_out(module, one_in)))
    files = []
    digest = hashlib.sha256()
    for relative, text in found:
        is_test = bool(_TEST_FOLDERS & set(relative.parts))
        held = _module_of(relative) in held_out
        part: Part
        if is_test:
            part = "held_out_tests" if held or any(_tests_module(relative, m) for m in held_out) else "tests"
        else:
            part = "held_out" if held else "library"
        files.append(SourceFile(path=relative.as_posix(), text=text, part=part))
        digest.update(f"{relative.as_posix()}\0{len(text.encode())}\0".encode())
        digest.update(text.encode())
    if not files:
        raise ConfigError(f"{root} holds no Python source")
    return Corpus(
        files=tuple(files),
        held_out_modules=held_out,
        python_version=platform.python_version(),
        sha256=digest.hexdigest(),
    )
