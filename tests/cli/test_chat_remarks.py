"""What `ridgepoint chat` says beside the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ridgepoint.cli.chat import _Talk
from ridgepoint.server.backends import Ending
from ridgepoint.server.parts import Thought


class Thinker:
    """A backend that tells these parts."""

    model, chats = "thinker", True

    def __init__(self, *pieces: str | Thought) -> None:
        self._pieces = pieces
        self.ending = Ending(finish_reason="length", prompt_tokens=9, completion_tokens=12, reasoning_tokens=8)

    async def stream(self, request: Any) -> AsyncIterator[str | Thought]:
        for piece in self._pieces:
            yield piece


@pytest.mark.parametrize(("pieces", "remarks"), [((), True), (("Hello.",), False)])
def test_reasoning_without_an_answer_is_remarked(
    pieces: tuple[str, ...], remarks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    backend: Any = Thinker(*pieces)
    asyncio.run(_Talk(backend=backend, system=None, options={"max_tokens": 12}).say("hi"))
    said = capsys.readouterr()
    assert said.out == "".join(pieces)
    assert ("8 tokens of reasoning and no answer" in said.err) == remarks


REASONED = (Thought("Is [red] two"), Thought("? Yes"), "It", " is.")


@pytest.mark.parametrize("shows", [True, False])
def test_reasoning_goes_to_stderr_and_not_into_the_conversation(
    shows: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    backend: Any = Thinker(*REASONED)
    talk = _Talk(backend=backend, system=None, options={"max_tokens": 12}, shows_reasoning=shows)
    asyncio.run(talk.say("hi"))
    said = capsys.readouterr()
    assert said.out == "It is."
    assert said.err == ("Is [red] two? Yes\n" if shows else "")
    assert talk.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is."}]
