"""The log of one attempt, kept in storage as `logs/attempt-0001.log` long after its Ray cluster is gone.

Everything that the driver's process puts on file descriptors 1 and 2 goes there and to where it went before: print,
logging, what Ray forwards from the workers, native code, subprocesses. The copying is done by a process of its own
(run_log_copier.py), so that a driver that is killed, aborts or holds the interpreter's lock loses no line: what it
wrote is in the pipe, and the copier drains the pipe before it ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from slipway_jobs.growing_file import GrowingFile
from slipway_jobs.storage import Storage

_COPIER = Path(__file__).with_name("run_log_copier.py")


def log_path(attempt: int) -> str:
    """Where the log of an attempt lies below the job's storage."""
    return f"logs/attempt-{attempt:04d}.log"


class RunLog:
    """From construction to `close`, fds 1 and 2 of this process are copied into the attempt's log.

    A second run of the same attempt appends. Raises what Storage raises when the log cannot be opened.
    """

    def __init__(self, storage: Storage, attempt: int, *, every_seconds: float = 5.0) -> None:
        self._file = GrowingFile(storage, log_path(attempt), every_seconds=every_seconds)
        _flush()
        self._before = (os.dup(1), os.dup(2))
        reader, writer = os.pipe()
        # -I -S: neither site-packages nor environment, so it is up in some ten milliseconds. A session of its own: a
        # signal to the driver's process group must not take the one process that keeps the last words.
        self._copier = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_COPIER), str(self._file.path)],
            stdin=reader,
            stdout=self._before[0],
            stderr=self._before[1],
            start_new_session=True,
        )
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):  # a test may have put something else in its place
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def close(self, patience_seconds: float = 3.0) -> None:
        """Give fds 1 and 2 back, wait until every line is in the file, send the file. Safe to call again.

        A subprocess that still holds the pipe keeps the copier busy; it is left to it after `patience_seconds`.
        """
        if self._before == (-1, -1):
            return
        _flush()
        out, err = self._before
        self._before = (-1, -1)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._copier.wait(timeout=patience_seconds)
        self._file.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
