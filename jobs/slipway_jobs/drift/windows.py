"""Windows over traffic: panes that close by count or by time, and windows made of the last few of them.

A window of `size` records that moves by `stride` is the sum of its last size / stride panes (Li et al. 2005); with
stride equal to size windows tumble. A pane that took longer than `max_seconds` closes with what it has, so that thin
traffic is judged too. Only the monotonic clock decides; the wall clock is written down for people and may jump as it
likes.

Memory is that of size / stride + 1 summaries. Late or missing records change nothing: panes are numbered in the order
in which they close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slipway_jobs.drift.errors import StateError
from slipway_jobs.drift.features import Features
from slipway_jobs.drift.summary import Summary


@dataclass(frozen=True)
class WindowRule:
    """`size` and `stride` in records, `max_seconds` per pane. Raises ValueError unless stride divides size."""

    size: int = 500
    stride: int = 500
    max_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if self.stride < 1 or self.size % self.stride or not self.max_seconds > 0:
            raise ValueError("size must be a multiple of stride, both at least 1, and max_seconds above 0")

    @property
    def panes(self) -> int:
        """Panes in a window."""
        return self.size // self.stride


@dataclass(frozen=True)
class Window:
    """A full window: the number of its last pane, its wall-clock ends (seconds since 1970), and its content."""

    index: int
    start: float
    end: float
    summary: Summary


class Windows:
    """Takes records, gives windows. `clock`: monotonic seconds; `wall`: seconds since 1970."""

    def __init__(
        self,
        rule: WindowRule,
        empty: Callable[[], Summary],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.rule, self._empty, self._clock, self._wall = rule, empty, clock, wall
        self._closed: deque[tuple[float, float, Summary]] = deque(maxlen=rule.panes)
        self._count = 0  # panes closed so far
        self._open()

    def _open(self) -> None:
        self._pane = self._empty()
        self._opened, self._start = self._clock(), self._wall()

    def add(self, identity: str, record: Features) -> Window | None:
        """Count one record; the window that it completes, if it does."""
        self._pane.add(identity, record)
        return self._close() if self._pane.records >= self.rule.stride else None

    def tick(self) -> Window | None:
        """Close a pane that has been open for too long; call it now and then. An empty one just starts anew."""
        if self._clock() - self._opened < self.rule.max_seconds:
            return None
        if self._pane.records == 0:
            self._open()
            return None
        return self._close()

    def _close(self) -> Window | None:
        self._closed.append((self._start, self._wall(), self._pane))
        self._count += 1
        self._open()
        if len(self._closed) < self.rule.panes:
            return None
        start, end, summary = self._closed[0]
        for _, pane_end, pane in list(self._closed)[1:]:
            end, summary = pane_end, summary.merged(pane)
        return Window(self._count - 1, start, end, summary)

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON, the open pane included."""
        panes = [{"start": start, "end": end, **pane.state()} for start, end, pane in self._closed]
        return {
            "rule": [self.rule.size, self.rule.stride],
            "count": self._count,
            "panes": panes,
            "open": {"start": self._start, **self._pane.state()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one stopped; the open pane's time starts anew. Raises StateError for another rule."""
        if state["rule"] != [self.rule.size, self.rule.stride]:
            raise StateError(f"the saved windows have size and stride {state['rule']}.", "Start with empty windows.")
        self._closed.clear()
        for pane in state["panes"]:
            self._closed.append((float(pane["start"]), float(pane["end"]), Summary.of_state(pane)))
        self._count = int(state["count"])
        self._open()
        self._start = float(state["open"]["start"])
        self._pane = Summary.of_state(state["open"])
