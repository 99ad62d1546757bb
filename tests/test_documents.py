"""README.md and docs/ say what the code says: generated blocks are current, the picture is the stored result's, and
every command shown exists."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_blocks_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, f"run `python docs/generate.py`: {done.stdout}{done.stderr}"


def test_the_picture_shows_the_stored_result() -> None:
    picture = _load(ROOT / "docs" / "picture.py")
    assert picture.PICTURE.read_text() == picture.draw(json.loads(picture.RESULT.read_text()))


def test_the_readme_installs_what_the_package_offers() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"\.\[([a-z,]+)\]", (ROOT / "README.md").read_text()))
    assert named and all(extra in extras for group in named for extra in group.split(","))


def _commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return sorted({line.split()[1] for line in lines if line.startswith("ridgepoint ") and line.split()[1:]})


@pytest.mark.parametrize("command", _commands())
def test_every_command_shown_exists(command: str) -> None:
    from ridgepoint.cli.main import build

    app = build()
    names = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback is not None}
    names |= {group.name for group in app.registered_groups}
    assert command in {str(name).replace("_", "-") for name in names} | {"--version"}


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / "README.md").read_text()))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
