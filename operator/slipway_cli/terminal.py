"""What may reach the terminal: messages in a status come from runs and servers, and must not steer it. Pure."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def printable(text: str) -> str:
    """The text with a blank in place of every control character but tab and newline."""
    return _CONTROL.sub(" ", text)


def one_line(text: str) -> str:
    """The same on a single line."""
    return printable(text).replace("\n", " ").replace("\t", " ")
