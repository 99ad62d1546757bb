"""Output files: whole or absent, and what is no file is written to as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgepoint.cli.output_file import write_output
from ridgepoint.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    file = tmp_path / "plan.html"
    write_output(file, "before")
    code = f"""
import resource, signal
from pathlib import Path
from ridgepoint.cli.output_file import write_output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_output(Path({str(file)!r}), "after" * 100)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert f"{file} cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "before"


def test_links_and_pipes_are_written_through(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(file)
    write_output(link, "text")
    assert link.is_symlink() and file.read_text() == "text"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert sorted(tmp_path.iterdir()) == [file, link, pipe]


def test_no_folder_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_output(tmp_path / "none" / "file", "")
