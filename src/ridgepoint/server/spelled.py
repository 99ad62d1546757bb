"""Text that spells special tokens stays text: what strangers write into a conversation cannot frame its messages.

A sign that nobody wrote is put inside each spelled token before the template is rendered. Where the rendered text is parted at
the sign, no tokenizer finds the token in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ridgepoint.errors import RequestError

_SIGNS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode's noncharacters, for use inside programs


def names_of(tokens: list[bytes]) -> re.Pattern[str]:
    """A pattern of the texts that spell these tokens."""
    names = sorted(
        (token.decode("utf-8", errors="replace") for token in tokens if len(token) > 1), key=len, reverse=True
    )
    return re.compile("|".join(map(re.escape, names)) if names else "(?!)")


def sign_for(values: Any) -> str:
    """One that no text in `values` has."""
    written = {sign for text in _texts(values) for sign in _SIGNS if sign in text}
    for sign in _SIGNS:
        if sign not in written:
            return sign
    raise RequestError("these messages hold every Unicode noncharacter from U+FDD0 to U+FDEF", param="messages")


def with_signs(value: Any, names: re.Pattern[str], sign: str) -> Any:
    """The same value with `sign` behind the first character of each spelled token."""
    match value:
        case str():
            return names.sub(lambda found: found[0][0] + sign + found[0][1:], value)
        case dict():
            return {with_signs(key, names, sign): with_signs(one, names, sign) for key, one in value.items()}
        case list():
            return [with_signs(one, names, sign) for one in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, one in value.items():
                yield from _texts(key)
                yield from _texts(one)
        case list():
            for one in value:
                yield from _texts(one)
