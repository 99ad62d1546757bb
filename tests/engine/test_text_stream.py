"""Incremental detokenisation: pieces of bytes to text, stop strings across tokens, nothing shown that may be taken back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.engine.text import Released, TextRules, TextStream, TokenBytes

BYTES = TokenBytes(pieces=tuple(bytes([byte]) for byte in range(256)), special_ids=frozenset())


def table(*pieces: str | bytes, special: tuple[int, ...] = ()) -> TokenBytes:
    encoded = tuple(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    return TokenBytes(pieces=encoded, special_ids=frozenset(special))


def run(tokens: TokenBytes, ids: list[int], **options: object) -> tuple[list[str], str | None, list[int]]:
    """(text after each token and after the end, the stop string, offsets of the released tokens)"""
    stream = TextStream(tokens, TextRules(**options))  # type: ignore[arg-type]
    texts: list[str] = []
    starts: list[int] = []

    def take(released: Released) -> str | None:
        texts.append(released.text)
        starts.extend(released.token_starts)
        return released.stop

    for token_id in ids:
        if (stop := take(stream.push(token_id))) is not None:
            return texts, stop, starts
    return texts, take(stream.finish()), starts


def test_a_character_split_across_tokens_is_held_until_whole() -> None:
    texts, _, starts = run(BYTES, list("a🦊é".encode()))
    assert texts == ["a", "", "", "", "🦊", "", "é", ""]
    assert starts == [0, 1, 1, 1, 1, 2, 2]


def test_malformed_bytes_become_a_replacement_only_when_certain() -> None:
    # E2 82 may become the euro sign; the following "x" makes it certain that it does not.
    assert run(BYTES, [0xE2, 0x82, ord("x")])[0] == ["", "", "�x", ""]
    assert run(BYTES, [0xE2, 0x82, 0xAC])[0] == ["", "", "€", ""]
    assert run(BYTES, [0xFF, ord("x")])[0] == ["�", "x", ""]  # FF can begin nothing
    assert run(BYTES, [0xF0, 0x9F])[0] == ["", "", "�"]  # the end makes it certain


def test_a_stop_string_across_tokens_is_cut_before_it() -> None:
    tokens = table("hello ", "wo", "rld", "!", " and")
    assert run(tokens, [0, 1, 2, 3], stops=["world"])[:2] == (["hello ", "", ""], "world")
    assert run(tokens, [0, 1, 2, 3], stops=["world"], include_stop=True)[0] == ["hello ", "", "world"]
    assert run(tokens, [0, 1, 3, 4], stops=["world"])[:2] == (["hello ", "", "wo!", " and", ""], None)


def test_a_stop_string_inside_one_token() -> None:
    texts, stop, starts = run(table("abcSTOPdef", "x"), [1, 0, 1], stops=["STOP"])
    assert ("".join(texts), stop, starts) == ("xabc", "STOP", [0, 1])


def test_the_stop_string_completed_first_wins_and_ties_go_to_the_longer() -> None:
    assert run(BYTES, list(b"xabc"), stops=["abc", "b"])[:2] == (["x", "", "a"], "b")
    assert run(table("xabc"), [0], stops=["abc", "b"])[:2] == (["xa"], "b")  # however it is grouped
    assert run(BYTES, list(b"xab"), stops=["b", "ab"])[:2] == (["x", "", ""], "ab")


def test_stop_strings_within_min_tokens_are_text() -> None:
    assert run(BYTES, list(b"a.b.c"), stops=["."], min_tokens=2)[:2] == (["a", ".", "b", ""], ".")
    # one that began within them but is completed after them counts
    assert run(BYTES, list(b"<end>"), stops=["end>"], min_tokens=2)[:2] == (["<", "", "", "", ""], "end>")


def test_text_held_for_a_stop_string_appears_at_the_end() -> None:
    assert run(BYTES, list(b"a<en"), stops=["<end>"])[:2] == (["a", "", "", "", "<en"], None)


def test_a_stop_string_may_hold_a_replacement_character() -> None:
    assert run(BYTES, [ord("a"), 0xF0], stops=["�"])[:2] == (["a", "", ""], "�")


def test_special_tokens_are_left_out_unless_wanted() -> None:
    tokens = table("<s>", "hi", special=(0,))
    assert run(tokens, [0, 1])[0] == ["", "hi", ""]
    assert run(tokens, [0, 1], skip_special=False)[0] == ["<s>", "hi", ""]
    assert tokens.text([0, 1, 7]) == "hi"  # 7 is past the vocabulary: no bytes


def test_tokens_behind_the_cut_are_not_released() -> None:
    texts, _, starts = run(table("a", "b", "c"), [0, 1, 2], stops=["bc"])
    assert ("".join(texts), starts) == ("a", [0])


BYTE_RUNS = st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=3).map(str.encode)), max_size=12)


@settings(max_examples=300, deadline=None)
@given(BYTE_RUNS)
def test_the_pieces_join_to_the_text_of_the_whole(runs: list[bytes]) -> None:
    texts, _, starts = run(TokenBytes(pieces=tuple(runs), special_ids=frozenset()), list(range(len(runs))))
    assert "".join(texts) == b"".join(runs).decode("utf-8", errors="replace")
    assert len(starts) == len(runs)
    assert starts == sorted(starts)


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab€", max_size=24),
    st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_stop_strings_do_not_depend_on_the_grouping(text: str, stops: list[str], include: bool, random) -> None:
    raw = text.encode()
    cuts = sorted(random.sample(range(1, len(raw)), k=random.randrange(len(raw)))) if len(raw) > 1 else []
    pieces = tuple(raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    grouped, stop, _ = run(
        TokenBytes(pieces=pieces, special_ids=frozenset()), list(range(len(pieces))), stops=stops, include_stop=include
    )
    # the definition: walk the characters, end at the first prefix that ends with a stop string
    expected, expected_stop = text, None
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            expected_stop = max(matches, key=len)
            expected = text[:end] if include else text[: end - len(expected_stop)]
            break
    assert ("".join(grouped), stop) == (expected, expected_stop)


@pytest.mark.parametrize("stops", [["ab"], ["b", "abb"]])
def test_nothing_shown_is_ever_taken_back(stops: list[str]) -> None:
    """Every prefix of what was shown is a prefix of the final text."""
    texts, _, _ = run(BYTES, list(b"aababb"), stops=stops)
    final = "".join(run(BYTES, list(b"aababb"), stops=stops)[0])
    shown = ""
    for text in texts:
        shown += text
        assert final.startswith(shown)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TextRules(stops=("a", ""))
