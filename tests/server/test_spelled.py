"""Text that spells special tokens, kept apart from them."""

from __future__ import annotations

from typing import Any

import pytest

from ridgepoint.errors import RequestError
from ridgepoint.server.spelled import names_of, sign_for, with_signs

NAMES = names_of([b"<|a|>", b"<|a|>b", b"x"])


def test_signs_part_spelled_tokens_and_can_be_taken_out_again() -> None:
    value: Any = {"<|a|>": ["<|a|>b", 1, None, True, "plain <|a|"], "x": {"y": "<|a|><|a|>"}}
    signed = with_signs(value, NAMES, "#")
    assert signed == {"<#|a|>": ["<#|a|>b", 1, None, True, "plain <|a|"], "x": {"y": "<#|a|><#|a|>"}}
    assert with_signs("<|a|>", names_of([]), "#") == "<|a|>"


def test_a_sign_is_one_that_nobody_wrote() -> None:
    assert sign_for([]) == "\ufdd0"
    assert sign_for([{"\ufdd0": ["\ufdd1"]}]) == "\ufdd2"
    with pytest.raises(RequestError, match="noncharacter"):
        sign_for("".join(chr(code) for code in range(0xFDD0, 0xFDF0)))
