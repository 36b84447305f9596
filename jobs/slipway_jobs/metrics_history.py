"""The metrics of one attempt, kept in storage as `metrics/attempt-0001.jsonl`: what a loss curve is drawn from later.

One JSON object per line, told apart by `kind`:

    {"kind": "start", "attempt": 1, "resumedFromStep": null, "steps": 1000, "everySteps": 1, "time": "..."}
    {"kind": "step", "step": 7, "loss": 5.1, "gradNorm": 0.9, "learningRate": 3e-4, "tokensPerSecond": 8123.4, ...}
    {"kind": "eval", "step": 100, "loss": 4.2, "time": "..."}

Within a file no step stands twice: when the workers of an attempt start again from a checkpoint, what came after that
checkpoint is cut off and a new `start` line says so. Of a long run only every n-th step is kept, so that
a file holds about MAX_STEPS of them at most. Written by rank 0; read by anyone.

Each line is handed to the operating system before the engine goes on (5 microseconds): a checkpoint must never be
safe without the steps that led to it, or the history of a run that is killed has a hole. An object store is some
seconds behind, and there a hole is possible.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import IO, Any

from slipway_jobs.growing_file import GrowingFile
from slipway_jobs.storage import Storage

MAX_STEPS = 20_000


def metrics_path(attempt: int) -> str:
    """Where the metrics of an attempt lie below the job's storage."""
    return f"metrics/attempt-{attempt:04d}.jsonl"


class MetricsHistory:
    """Appends to the file of one attempt. Raises what Storage raises when it cannot be opened, and nothing later.

    `resumed_from_step`: the checkpoint that training continues from, None for a start from nothing.
    `now` gives the time as text.
    """

    def __init__(
        self,
        storage: Storage,
        attempt: int,
        *,
        steps: int,
        resumed_from_step: int | None,
        now: Callable[[], str],
    ) -> None:
        self.every_steps = -(-steps // MAX_STEPS) or 1
        self._steps = steps
        self._now = now
        self._file = GrowingFile(storage, metrics_path(attempt), every_seconds=30.0)
        kept = _until(self._file.path.read_bytes(), resumed_from_step or 0)
        self._stream: IO[str] | None = _replace(self._file, kept)
        self._write(
            {
                "kind": "start",
                "attempt": attempt,
                "resumedFromStep": resumed_from_step,
                "steps": steps,
                "everySteps": self.every_steps,
            }
        )

    def step(self, step: int, **values: float | int | None) -> None:
        """One optimizer step. Costs some microseconds, and nothing where the step is not one that is kept."""
        if step % self.every_steps == 0 or step == self._steps:
            self._write({"kind": "step", "step": step, **values})

    def evaluation(self, step: int, **values: float | int | None) -> None:
        """One held-out measurement."""
        self._write({"kind": "eval", "step": step, **values})

    def close(self) -> None:
        """Send the rest to an object store."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._stream is None:
            return
        # JSON has no word for infinity and not-a-number.
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._stream.write(json.dumps({**line, "time": self._now()}, separators=(",", ":")) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # a full disk costs the rest of the history, never the run


def _until(content: bytes, step: int) -> bytes:
    """The whole lines that are not about a step after this one. A line that was cut by a kill goes too."""
    kept = []
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if isinstance(record, dict) and record.get("step", 0) <= step:
            kept.append(line)
    return b"".join(kept)


def _replace(file: GrowingFile, content: bytes) -> IO[str]:
    """Replace the file at once, so that a reader never sees it empty, and open it for appending."""
    temporary = file.path.with_name(f".{file.path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file.path)  # noqa: PTH105
    return file.path.open("a", encoding="utf-8")
