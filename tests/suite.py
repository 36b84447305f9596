"""Runs the suite; a test that fails in company gets one more run, with nothing beside it.

    python tests/suite.py [arguments of pytest]

Two processes share the machine, and the tests start real clusters: now and then one of thousands fails because a
neighbour took the CPU for seconds. Such a test passes when it has the machine to itself. What fails alone has failed,
and so has everything if more than a few fail. That it was needed is the last thing that is printed: such a test is to
be mended. Its whole file is run, since in some files each test goes on from what the one before has left.

Not so the tests that judge whether anything is lost when something dies. There a failure once in a hundred runs is
exactly what they look for, so each counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FEW = 3
EACH_COUNTS = ("tests/e2e/test_kills.py", "tests/kube/test_faults.py", "tests/kube/test_leader_election.py")
_FAILED = 1  # pytest's exit code: all tests were run, and some failed
_CACHE = Path(".pytest_cache")


def once_more(code: int, failed: list[str]) -> bool:
    """Whether these failures deserve another run: `code` is pytest's exit code, `failed` the tests' names."""
    return code == _FAILED and 0 < len(failed) <= FEW and not any(name.startswith(EACH_COUNTS) for name in failed)


def failed_tests(cache: Path) -> list[str]:
    """The tests that failed in the run before, as pytest keeps them; an unreadable file is none."""
    try:
        found = json.loads((cache / "v" / "cache" / "lastfailed").read_text())
    except (OSError, ValueError):
        return []
    return sorted(found)


def files_of(failed: list[str]) -> list[str]:
    """The files of these tests."""
    return sorted({name.partition("::")[0] for name in failed})


def main(arguments: list[str]) -> int:
    """Exit code of the suite."""
    run = [sys.executable, "-m", "pytest"]
    code = subprocess.run([*run, "--cache-clear", *arguments], check=False).returncode
    failed = failed_tests(_CACHE)
    if not once_more(code, failed):
        return code
    print("\nFailed in company of others. Once more, their files alone:", *failed, sep="\n  ", flush=True)
    code = subprocess.run([*run, *files_of(failed)], check=False).returncode
    if code == 0:
        print("\nPassed alone, failed in company: TO BE MENDED", *failed, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
