"""Reads and follows what runs printed: from the job's storage, or, on this machine, from the Ray runner's own copy.

The run writes `<status.storage>/logs/attempt-000N.log` as it goes; that file is still there when its Ray cluster is
long gone. Until it is there (Ray starts, or the run died before it could begin its log), the local Ray runner's copy
`<state>/logs/<namespace>/<rayjob>.log` stands in. Nothing here talks to the API server: the caller supplies the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from slipway_cli import jobs
from slipway_cli.errors import LogError
from slipway_jobs.errors import JobError
from slipway_jobs.run_log import log_path
from slipway_jobs.storage import Storage
from slipway_local.layout import Layout
from slipway_operator.kube.resource import Json

_BLOCK = 64 * 1024


class LogFile(Protocol):
    """One place where a log may be."""

    def open(self) -> IO[bytes] | None:
        """The file at its beginning; None while it is not there. Raises LogError when it cannot be read from here."""


@dataclass(frozen=True)
class StoredLog:
    """An attempt's log in the job's storage."""

    storage: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.storage.rstrip('/')}/{log_path(self.attempt)}"

    def open(self) -> IO[bytes] | None:
        """The file; see LogFile."""
        try:
            return Storage(self.storage, field="status.storage").open(log_path(self.attempt))
        except FileNotFoundError:
            return None
        except JobError as error:
            raise LogError(
                f"the log {self} cannot be read from this machine: {error.message}",
                hint="run this where that storage is reachable, with its credentials",
            ) from error


@dataclass(frozen=True)
class RunnerLog:
    """The local Ray runner's copy of what a RayJob printed."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> IO[bytes] | None:
        """The file; None while it is not there or has nothing in it yet."""
        with contextlib.suppress(FileNotFoundError):
            stream = self.path.open("rb")
            if stream.read(1):
                stream.seek(0)
                return stream
            stream.close()
        return None


def log_files(job: Json, attempt: int, local_state: Path | None) -> list[LogFile]:
    """Where the log of an attempt may be, the best place first."""
    files: list[LogFile] = []
    storage = jobs.status_of(job).get("storage")
    if storage:
        files.append(StoredLog(str(storage), attempt))
    metadata = job["metadata"]
    if local_state is not None:
        name = f"{metadata['name']}-{attempt}.log"
        files.append(RunnerLog(Layout(local_state).logs / str(metadata.get("namespace") or "default") / name))
    return files


def last_lines(stream: IO[bytes], count: int) -> int:
    """The offset at which the last `count` lines begin; an unfinished last line counts as one."""
    end = stream.seek(0, 2)
    if count == 0:
        return end
    position, tail = end, b""
    while position > 0:
        step = min(_BLOCK, position)
        position -= step
        stream.seek(position)
        tail = stream.read(step) + tail
        body = tail[:-1] if tail.endswith(b"\n") else tail
        if body.count(b"\n") >= count:
            for _ in range(count):
                body = body[: body.rindex(b"\n")]
            return position + len(body) + 1
    return 0


class Follower:
    """Reads one attempt's log as it grows. It settles on the first place that has it, so no line comes twice."""

    def __init__(self, tail: int | None = None) -> None:
        """`tail`: begin with only that many lines of what is there at first."""
        self._tail = tail
        self._file: LogFile | None = None
        self._offset = 0
        self.unreadable: LogError | None = None

    @property
    def place(self) -> str:
        """The file that it reads; "" while there is none."""
        return str(self._file) if self._file is not None else ""

    def read(self, files: list[LogFile]) -> Iterator[bytes]:
        """What is new since the last call, in pieces. `files` are the places to look, the best first."""
        stream = self._stream(files)
        if stream is None:
            return
        with stream:
            if self._tail is not None:
                self._offset, self._tail = last_lines(stream, self._tail), None
            if stream.seek(0, 2) < self._offset:
                self._offset = 0  # a local copy that was begun anew: what follows was not shown yet
            stream.seek(self._offset)
            while piece := stream.read(_BLOCK):
                self._offset += len(piece)
                yield piece

    def _stream(self, files: list[LogFile]) -> IO[bytes] | None:
        if self._file is not None:
            return self._file.open()
        self.unreadable = None
        for file in files:
            try:
                stream = file.open()
            except LogError as error:
                self.unreadable = error
                continue
            if stream is not None:
                self._file = file
                return stream
        return None
