from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "server"), str(Path(__file__).parent)]

from serving import ServerProcess, echo_server  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("e2e") / "tiny")


@pytest.fixture(scope="session")
def echo(tiny_folder: Path) -> Iterator[ServerProcess]:
    """One server that many tests share; a test that harms its server starts its own."""
    with echo_server(tiny_folder, echo={"step_s": 0.002}, limits={"max_body_bytes": 1 << 20}) as server:
        yield server


@pytest.fixture(scope="session")
def slow_echo(tiny_folder: Path) -> Iterator[ServerProcess]:
    """Its answers take a minute and more, so whoever interrupts one is never too late, however busy the machine."""
    with echo_server(tiny_folder, echo={"step_s": 0.05}) as server:
        yield server


@pytest.fixture
def client(served: ServerProcess) -> openai.OpenAI:
    """Of the server that a module calls `served`."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
