from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_jobs.data.globs import GlobSet

pytestmark = pytest.mark.timed

TABLE = [
    ("**", ["a", "a/b/c"], []),
    ("*.py", ["a.py", ".py"], ["a/b.py", "a.pyc"]),
    ("**/*.py", ["a.py", "x/y/a.py"], ["a.pyc"]),
    ("json/**", ["json/a", "json/b/c"], ["json", "xjson/a", "x/json/a"]),
    ("json/", ["json/a"], ["json"]),
    ("**/test/**", ["test/a", "x/test/b/c"], ["test", "testing/a"]),
    ("a/**/b/**/c.py", ["a/b/c.py", "a/x/b/y/z/c.py", "a/b/b/c.py", "a/c.py/b/c.py"], ["a/c.py", "a/bb/c.py"]),
    ("a*b*c", ["abc", "aXbbc", "abcbc"], ["abcx", "a/b/c"]),
    ("a**b", ["ab", "axxb"], ["a/b"]),
    ("?", ["a"], ["ab", "/"]),
    ("[!a]*.py", ["b.py"], ["a.py", "/.py"]),
    ("[]a]", ["]", "a"], ["b"]),
    ("[a-c][^x]", ["by"], ["bx", "dy"]),
    ("[z-a]x", [], ["zx", "ax"]),
    ("x[", ["x["], ["x"]),
    ("{a}+(b).$", ["{a}+(b).$"], ["aab"]),
]


@pytest.mark.parametrize(("pattern", "taken", "left"), TABLE)
def test_table(pattern: str, taken: list[str], left: list[str]) -> None:
    globs = GlobSet([pattern], [])
    assert [path for path in taken if not globs.accepts(path)] == []
    assert [path for path in left if globs.accepts(path)] == []


def test_exclude_wins_and_cuts_whole_directories() -> None:
    globs = GlobSet(["json/**", "asyncio/*.py"], ["**/tests/**", "json/tool.py"])
    assert globs.accepts("json/decoder.py")
    assert not globs.accepts("json/tool.py")
    assert not globs.accepts("json/tests/x.py")
    assert not globs.accepts("ast.py")
    assert globs.enters("json")
    assert globs.enters("json/x")
    assert globs.enters("asyncio")
    assert not globs.enters("json/tests")
    assert not globs.enters("email")


def test_names_patterns_that_did_nothing() -> None:
    globs = GlobSet(["*.py", "*.pyy"], ["test", "lib/", "none/**"])
    for path in ("a.py", "test/b.py"):
        globs.accepts(path)
    assert not globs.enters("lib")
    assert globs.unused() == ["*.pyy", "test", "none/**"]


@pytest.mark.parametrize("pattern", ["*a" * 120 + "b", "**/a/" * 50 + "b", "**/*a*a*/" * 25 + "b", "?*" * 120 + "b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    globs = GlobSet([pattern], [])
    started = time.perf_counter()
    assert not globs.accepts("a" * 250)
    assert not globs.accepts("/".join(["a"] * 500))
    assert not globs.accepts("/".join(["aaa"] * 300))
    assert time.perf_counter() - started < 0.5


def _slow(pattern: list[str], path: list[str]) -> bool:
    """The definition, by recursion over segments and characters."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return len(path) > 0
        return any(_slow(pattern[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and _slow_segment(pattern[0], path[0]) and _slow(pattern[1:], path[1:])


def _slow_segment(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_slow_segment(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and (pattern[0] in ("?", text[0])) and _slow_segment(pattern[1:], text[1:])


segments = st.text(alphabet="ab*?", min_size=1, max_size=5)
names = st.text(alphabet="ab", min_size=1, max_size=5)


@given(st.lists(segments, min_size=1, max_size=5), st.lists(names, min_size=1, max_size=5))
def test_means_what_the_definition_says(pattern: list[str], path: list[str]) -> None:
    assert GlobSet(["/".join(pattern)], []).accepts("/".join(path)) == _slow(pattern, path)


@given(st.lists(st.lists(segments, min_size=1, max_size=4), min_size=1, max_size=3), st.lists(names, min_size=2))
def test_never_refuses_to_enter_where_something_is_wanted(patterns: list[list[str]], path: list[str]) -> None:
    joined = ["/".join(pattern) for pattern in patterns]
    for globs in (GlobSet(joined, []), GlobSet([], joined)):
        if globs.accepts("/".join(path)):
            assert all(globs.enters("/".join(path[:depth])) for depth in range(1, len(path)))
