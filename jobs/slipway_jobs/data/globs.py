"""Glob patterns over relative paths, in time that no pattern can blow up.

`*` and `?` stay within one path segment, `[abc]` and `[!abc]` match one character, and a whole segment `**` crosses
any number of directories, none included. A pattern is anchored at the directory that it is relative to: `*.py` takes
the files at the top, `**/*.py` those at any depth, `json/**` (or `json/`) everything below json. Letters' case
counts.

The patterns come from a manifest and the paths from a disk that others may write to, so a match must not backtrack:
each literal run after a wildcard is matched at its leftmost place and kept (an atomic group), which is sound because
a later wildcard can absorb whatever a later match of that run would have skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANY_FOLDERS = r"(?:[^/]+/)*"
_WILDCARDS = frozenset("*?[")


class GlobSet:
    """Include and exclude patterns together. No include pattern means: everything."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [(pattern, _compile(pattern)) for pattern in include]
        self._exclude = [(pattern, _compile(pattern)) for pattern in exclude]
        self._roots = [_literal_folders(pattern) for pattern in include]
        # "test/**" needs no look into test: a directory that such a prefix matches is left out as a whole.
        self._cut = [(pattern, _compile(pattern[:-3])) for pattern in map(_normal, exclude) if pattern.endswith("/**")]
        self._used: set[str] = set()

    def accepts(self, path: str) -> bool:
        """Whether the file at this relative path is wanted."""
        for pattern, regex in self._exclude:
            if regex.fullmatch(path):
                self._used.add(_normal(pattern))
                return False
        if not self._include:
            return True
        hits = [pattern for pattern, regex in self._include if regex.fullmatch(path)]
        self._used.update(map(_normal, hits))
        return bool(hits)

    def enters(self, folder: str) -> bool:
        """Whether anything below this relative directory could be wanted. May say yes in vain, never no."""
        for pattern, regex in self._cut:
            if regex.fullmatch(folder):
                self._used.add(pattern)
                return False
        if not self._include:
            return True
        parts = tuple(folder.split("/"))
        return any(parts[: len(root)] == root[: len(parts)] for root in self._roots)

    def unused(self) -> list[str]:
        """Patterns that have decided nothing so far, in the order written: most likely a slip of the pen."""
        patterns = [pattern for pattern, _ in (*self._include, *self._exclude)]
        return [pattern for pattern in patterns if _normal(pattern) not in self._used]


def _normal(pattern: str) -> str:
    return pattern + "**" if pattern.endswith("/") else pattern


def _literal_folders(pattern: str) -> tuple[str, ...]:
    """The directories that a pattern names before its first wildcard."""
    folders: list[str] = []
    for segment in _normal(pattern).split("/")[:-1]:
        if _WILDCARDS & set(segment):
            break
        folders.append(segment)
    return tuple(folders)


def _compile(pattern: str) -> re.Pattern[str]:
    """The regular expression that fully matches the paths that the pattern takes."""
    runs: list[list[str]] = [[]]  # segments between one ** and the next
    for segment in _normal(pattern).split("/"):
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(segment)
    if len(runs) == 1:
        return re.compile("/".join(map(_segment, runs[0])), re.DOTALL)
    first, *middle, last = runs
    expression = "".join(_segment(segment) + "/" for segment in first)
    for run in middle:
        if run:
            expression += f"(?>{_ANY_FOLDERS}?{''.join(_segment(segment) + '/' for segment in run)})"
    expression += _ANY_FOLDERS + "/".join(map(_segment, last)) if last else ".+"
    return re.compile(expression, re.DOTALL)


def _segment(segment: str) -> str:
    """The expression for one path segment."""
    chunks: list[str] = [""]  # fixed-length pieces between one * and the next
    position = 0
    while position < len(segment):
        character = segment[position]
        position += 1
        if character == "*":
            if chunks[-1] or len(chunks) == 1:
                chunks.append("")
        elif character == "?":
            chunks[-1] += "[^/]"
        elif character == "[":
            end = _class_end(segment, position)
            chunks[-1] += _character_class(segment[position:end]) if end else re.escape("[")
            position = end + 1 if end else position
        else:
            chunks[-1] += re.escape(character)
    if len(chunks) == 1:
        return chunks[0]
    first, *middle, last = chunks
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle) + "[^/]*" + last


def _class_end(segment: str, start: int) -> int:
    """Where the class that opened before `start` is closed; 0 where it never is, and the bracket stands for itself."""
    position = start
    if segment[position : position + 1] in ("!", "^"):
        position += 1
    return max(segment.find("]", position + 1), 0)  # a bracket right at the start is a member, as in a shell


def _character_class(body: str) -> str:
    negated = body[0] in "!^"
    members = body[1:] if negated else body
    # A range that runs backwards matches nothing in a shell; re would refuse it.
    escaped = re.sub(r"([\\\[\]&~|^])", r"\\\1", members)
    expression = f"[{'^' if negated else ''}{escaped}]"
    try:
        re.compile(expression)
    except re.error:
        return "(?!)" if not negated else "[^/]"
    return f"(?!/){expression}"
