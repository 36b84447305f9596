"""From tokens to text as it grows: never half a character, never a part of a stop text.

A token may end in the middle of a UTF-8 character, and what it reads as may depend on the token before it. So text is
decoded from a point where it was whole, two positions back, and given out only as far as it cannot change any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4  # tokens that one character may take; what is still broken then stays so

Decode = Callable[[Sequence[int]], str]


class GrowingText:
    """The text of an answer. `push` takes a token and returns what has become certain."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._tokens: list[int] = []
        self._start = 0  # first token of the window that is decoded
        self._done = 0  # tokens whose text has been taken over
        self._held = ""  # certain, but perhaps the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; after a stop text, `stopped` is set and nothing more comes."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._done])
        after = self._decode(self._tokens[self._start :])
        if after.endswith(_BROKEN) and len(self._tokens) - self._done < _LONGEST_CHARACTER:
            return ""
        self._start, self._done = self._done, len(self._tokens)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What was held back, when no token follows."""
        before = self._decode(self._tokens[self._start : self._done])
        rest = self._decode(self._tokens[self._start :])[len(before) :]
        self._done = len(self._tokens)
        released = self._release(rest) if not self.stopped else ""
        held, self._held = self._held, ""
        return released + ("" if self.stopped else held)

    def _release(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
