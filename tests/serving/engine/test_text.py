"""Growing text: what is given out never changes, and together it is the whole."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from slipway_serving.engine.text import GrowingText


def decode(tokens: Sequence[int]) -> str:
    """Each token is one byte."""
    return bytes(tokens).decode("utf-8", "replace")


def grow(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    growing = GrowingText(decode, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(growing.push(byte))
        if growing.stopped:
            return pieces, True
    pieces.append(growing.finish())
    return pieces, growing.stopped


@given(st.text(max_size=60))
def test_the_pieces_are_the_text(text: str) -> None:
    pieces, stopped = grow(text)
    assert "".join(pieces) == text
    assert not stopped
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


@given(st.text(alphabet="abé€", max_size=40), st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=3))
def test_it_ends_before_the_first_stop_text(text: str, stops: list[str]) -> None:
    pieces, stopped = grow(text, tuple(stops))
    found = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(found)
    if found:
        # The stop text that is complete first ends it; of those that begin within it, the earliest counts.
        end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        begin = min(place for place in (text[:end].find(stop) for stop in stops) if place >= 0)
        assert "".join(pieces) == text[:begin]
    else:
        assert "".join(pieces) == text


def test_what_may_become_a_stop_text_is_held_back() -> None:
    growing = GrowingText(decode, ("END",))
    assert [growing.push(byte) for byte in b"aEN"] == ["a", "", ""]
    assert growing.push(ord("x")) == "ENx"


def test_a_broken_character_does_not_hold_it_for_ever() -> None:
    growing = GrowingText(decode)
    pieces = [growing.push(byte) for byte in (0xE2, 0x41, 0x42, 0x43, 0x44)]
    assert "".join(pieces) + growing.finish() == "\ufffdABCD"
