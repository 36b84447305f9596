"""What a run says to the people who read its log: one line per event, progress at a human cadence.

Programs read reports and the metrics history instead. It only formats and prints; the driver decides what is true.
Each kind of run adds what it has to show.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from slipway_api.run import Outcome, RunEnd

# How long to wait for the next progress line: often at first, when people look, and rarely in a long run.
_CADENCE = ((60.0, 2.0), (600.0, 10.0), (float("inf"), 60.0))


class RunConsole:
    """Prints lines that begin with the seconds since `started` (Unix time). Threads may share it."""

    hints: dict[Outcome, str] = {}  # noqa: RUF012 - what comes next, by how the run ended; each kind of run has its own

    def __init__(
        self, started: float, *, now: Callable[[], float] = time.time, write: Callable[[str], None] | None = None
    ) -> None:
        self._started = started
        self._now = now
        self._write = write or (lambda text: print(text, flush=True))  # noqa: T201 - this is the log
        self._said: set[str] = set()
        self._next_progress = 0.0

    def line(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self._write(f"[{self._now() - self._started:8.1f}s] {text}")

    def once(self, text: str) -> None:
        """A line that is not worth repeating."""
        if text not in self._said:
            self._said.add(text)
            self.line(text)

    def end(self, end: RunEnd) -> None:
        """The last line: what happened and what to do."""
        if end.outcome is Outcome.SUCCEEDED:
            self.line(f"Succeeded: {end.message}{self._quality(end)}")
        else:
            self.line(f"{end.outcome.value} ({end.reason}): {end.message} [{self.hints[end.outcome]}]")

    def _quality(self, end: RunEnd) -> str:
        """What a successful end says besides its message."""
        return ""

    def _due(self, *, last: bool) -> bool:
        """Whether it is time for a progress line; the last one always is."""
        now = self._now()
        if now < self._next_progress and not last:
            return False
        self._next_progress = now + next(pause for until, pause in _CADENCE if now - self._started < until)
        return True


def duration(seconds: float) -> str:
    """`duration(3725) == "1h02m"`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
