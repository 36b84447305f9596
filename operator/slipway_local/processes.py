"""Processes that outlive the one that started them: how to name them, find them again and be sure that they are gone.

A pid alone names nothing after a crash, because the kernel gives it to somebody else; a pid and a start time do.
Families of processes are found by a variable in the environment that they were started with, which they hand on to
whatever they start themselves. Nothing here signals a process that it cannot tell to be ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

# create_time() is derived from the boot time, which moves a little when the clock is adjusted.
_START_TOLERANCE = 2.0


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process, for ever: `started` is seconds since the epoch."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this pid now, or None."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(int(document["pid"]), float(document["started"]))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= _START_TOLERANCE
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens when the process is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def marked(name: str, value: str | None = None) -> dict[ProcessRef, str]:
    """Our living processes that were started with this environment variable (and this value), and its value in each.

    It reads the environment that a process was started with. Costs about 50 µs per process of the machine.
    """
    found: dict[ProcessRef, str] = {}
    for process, environment in _ours():
        mark = environment.get(name)
        if mark is not None and value in (None, mark):
            with contextlib.suppress(psutil.Error):
                found[ProcessRef(process.pid, process.create_time())] = mark
    return found


def _ours() -> Iterable[tuple[psutil.Process, dict[str, str]]]:
    user = os.getuid()
    for process in psutil.process_iter():
        try:
            if process.uids().real == user and process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()
        except (psutil.Error, OSError):
            continue


def in_session(session: int) -> list[ProcessRef]:
    """The living processes of a session (`setsid`)."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(ProcessRef(process.pid, process.create_time()))
        except (psutil.Error, OSError):
            continue
    return found


async def wait_gone(remaining: Callable[[], Iterable[ProcessRef]], *, seconds: float, poll: float = 0.05) -> bool:
    """Waits until `remaining` finds nothing; False when it still does after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        if not any(ref.alive() for ref in remaining()):
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(poll)


async def stop(remaining: Callable[[], Iterable[ProcessRef]], *, grace: float, kill_timeout: float = 10.0) -> bool:
    """SIGTERM, `grace` seconds, SIGKILL, again and again until `remaining` finds nothing: whether it came to that.

    `remaining` is asked anew each time, so that what a dying process still starts is caught as well. What it has found
    once must be gone too, though `remaining` may no longer see it: some are known only by another that ended before.
    """
    found: set[ProcessRef] = set()

    def left() -> list[ProcessRef]:
        found.update(remaining())
        return [ref for ref in found if ref.alive()]

    if grace > 0:
        for ref in left():
            ref.signal(signal.SIGTERM)
        if await wait_gone(left, seconds=grace):
            return True
    deadline = time.monotonic() + kill_timeout
    while time.monotonic() < deadline:
        for ref in left():
            ref.signal(signal.SIGKILL)
        if await wait_gone(left, seconds=0.5):
            return True
    return False


def read_json(path: Path) -> Any | None:
    """The JSON document in a file, or None when there is no file or it is no JSON (a machine that lost power)."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_json(path: Path, document: Any) -> None:
    """Replaces a file, readable by its owner only, as a whole: a reader sees the old or the new one."""
    write_private(path, json.dumps(document, indent=1).encode() + b"\n")


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that nobody but its owner can read, at no moment of its life."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
