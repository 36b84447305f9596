"""What a waiting user sees of a run: one view, drawn as a bar on a terminal and as lines everywhere else.

`ProgressView` and `PlainCadence` are pure; the two displays at the end only draw. A display never reads the API.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from slipway_api import conditions as c
from slipway_cli import jobs
from slipway_cli.durations import short_duration
from slipway_cli.terminal import one_line

Json = dict[str, Any]

PLAIN_SECONDS = 10.0  # between two lines about the same stage
_QUIET_STAGES = frozenset({"Training", "Evaluating"})  # their reason's message says no more than the numbers do


@dataclass(frozen=True)
class ProgressView:
    """Where one of our objects is, as people want to see it."""

    name: str
    stage: str
    step: int = 0
    steps: int = 0
    unit: str = "step"  # what is counted
    suite: str = ""
    rate: str = ""
    loss: str = ""
    eval_loss: str = ""
    tokens_per_second: int | None = None
    eta_seconds: int | None = None
    attempt: int = 0
    note: str = ""  # what it waits for, where the numbers do not tell

    @classmethod
    def of(cls, obj: Json) -> ProgressView:
        """The view of a run or a Deployment; missing fields are left out."""
        if jobs.is_ours(obj, "Deployment"):
            return cls(name=jobs.name_of(obj), stage=one_line(jobs.stage(obj)), note=one_line(_rollout_note(obj)))
        progress = jobs.status_of(obj).get("progress") or {}
        stage = jobs.stage(obj)
        live = stage in _QUIET_STAGES
        if jobs.is_ours(obj, "EvalJob"):
            return cls(
                name=jobs.name_of(obj),
                stage=one_line(stage),
                unit="example",
                step=int(progress.get("done") or 0),
                steps=int(progress.get("total") or 0),
                suite=one_line(str(progress.get("suite") or "")) if live else "",
                rate=one_line(str(progress.get("examplesPerSecond") or "")) if live else "",
                eta_seconds=progress.get("etaSeconds") if live else None,
                attempt=jobs.attempt_of(obj),
                note=_note_of(obj, stage),
            )
        return cls(
            name=jobs.name_of(obj),
            stage=one_line(stage),
            step=int(progress.get("step") or 0),
            steps=int(progress.get("steps") or 0),
            loss=one_line(str(progress.get("loss") or "")),
            eval_loss=one_line(str(progress.get("evalLoss") or "")),
            # An ETA from before a pause would be a lie.
            tokens_per_second=progress.get("tokensPerSecond") if live else None,
            eta_seconds=progress.get("etaSeconds") if live else None,
            attempt=jobs.attempt_of(obj),
            note=_note_of(obj, stage),
        )

    def numbers(self) -> str:
        """Loss, speed and time left, those that are known."""
        parts = [
            f"suite {self.suite}" if self.suite else "",
            f"{self.rate} examples/s" if self.rate else "",
            f"loss {self.loss}" if self.loss else "",
            f"held-out loss {self.eval_loss}" if self.eval_loss else "",
            f"{self.tokens_per_second:,} tokens/s" if self.tokens_per_second is not None else "",
            f"ETA {short_duration(self.eta_seconds)}" if self.eta_seconds is not None else "",
            f"attempt {self.attempt}" if self.attempt > 1 else "",
        ]
        return ", ".join(part for part in parts if part)

    def line(self) -> str:
        """The view as one line of plain text."""
        step = f"{self.unit} {self.step}/{self.steps}" if self.steps else ""
        text = ", ".join(part for part in (step, self.numbers()) if part)
        shown = " - ".join(part for part in (text, self.note) if part)
        return f"{self.name}: {self.stage}" + (f": {shown}" if shown else "")


def _rollout_note(obj: Json) -> str:
    """What keeps a Deployment from answering; while it answers, how its rollout goes."""
    found = jobs.conditions_of(obj)
    available, progressing = (c.find_condition(found, type_) for type_ in (c.AVAILABLE, c.PROGRESSING))
    if available is None:
        return "the operator has not looked at it yet"
    shown = progressing if available.get("status") == "True" and progressing else available
    weights = jobs.status_of(obj).get("weights") or ""
    return f"{shown.get('message', '')}" + (f" (weights {weights})" if "/" in weights else "")


def _note_of(obj: Json, stage: str) -> str:
    """The note, where the numbers do not say everything; of an EvalJob that has ended, its verdict."""
    if jobs.finished(obj):
        passed = c.find_condition(jobs.conditions_of(obj), c.PASSED)
        return one_line(f"Passed is {passed['status']}: {passed['message']}") if passed else ""
    return "" if stage in _QUIET_STAGES else one_line(_note(obj, stage))


def _note(obj: Json, stage: str) -> str:
    """What the job waits for; between two attempts also how the last one ended, which is what the user must know."""
    note = jobs.why(obj).partition(": ")[2]
    records = jobs.attempt_records(obj)
    if stage == "BackingOff" and records and records[-1].get("outcome"):
        last = records[-1]
        end = f"attempt {last.get('number')} ended: {last['outcome']}: {last.get('message', '')}"
        return note if note.startswith("attempt ") else f"{end}; {note}"
    return note


class PlainCadence:
    """Decides which views are worth a line: a new stage or note at once, numbers every `seconds`."""

    def __init__(self, seconds: float = PLAIN_SECONDS) -> None:
        self._seconds = seconds
        self._shown: ProgressView | None = None
        self._at = float("-inf")

    def wants(self, view: ProgressView, now: float) -> bool:
        """Whether to print this view now (`now` in seconds of any clock); a yes counts as printed."""
        last = self._shown
        if view == last:
            return False
        news = last is None or (view.stage, view.note, view.attempt) != (last.stage, last.note, last.attempt)
        if not news and now - self._at < self._seconds:
            return False
        self._shown, self._at = view, now
        return True


class Display(Protocol):
    """Shows views while it is entered."""

    def __enter__(self) -> Self:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Gives it back."""

    def show(self, view: ProgressView) -> None:
        """The newest view."""


class PlainDisplay:
    """Lines, for logs and pipes."""

    def __init__(
        self, stream: TextIO, *, cadence: PlainCadence | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._cadence = cadence or PlainCadence()
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, view: ProgressView) -> None:
        """Prints the view if it is time for it."""
        if self._cadence.wants(view, self._clock()):
            print(view.line(), file=self._stream, flush=True)


class BarDisplay:
    """A bar that redraws itself in place, with the numbers on a line of their own; drawn by rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console, Group  # noqa: PLC0415 - 0.1 s, and only a terminal needs it
        from rich.live import Live  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]}", style="bold", markup=False),
            TextColumn("{task.fields[stage]}", style="cyan", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}", markup=False),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("", total=None, name="", stage="", steps="")
        self._numbers = Text("", no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._progress, self._numbers), console=Console(file=stream))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: ProgressView) -> None:
        """Redraws."""
        steps = f"{view.step}/{view.steps}" if view.steps else ""
        self._progress.update(
            self._task, total=view.steps or None, completed=view.step, name=view.name, stage=view.stage, steps=steps
        )
        self._numbers.plain = "  " + " - ".join(part for part in (view.numbers(), view.note) if part)
        self._live.refresh()


def display_for(stream: TextIO) -> Display:
    """A bar on a terminal, lines anywhere else (and where rich is not installed, as in the operator's image)."""
    if stream.isatty():
        try:
            return BarDisplay(stream)
        except ModuleNotFoundError:
            pass
    return PlainDisplay(stream)
