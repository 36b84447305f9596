"""A file in storage that grows while the run goes on: its log, its metrics history.

On a local (or mounted) file system it is appended to where it is, so what was written is there even if the writer is
killed the next moment. An object store cannot append: there the file grows in a spool directory and the whole of it is
sent again every few seconds, less often when sending is slow, so that a long file never costs more than a small part
of one core and of the network.

Never raises after it is open: a run does not fail because its log cannot be kept. It says so once, on stderr.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from slipway_jobs.errors import JobError
from slipway_jobs.storage import Storage

_DUTY = 20  # a send that took t seconds is followed by 20 t of rest at least


class GrowingFile:
    """`path` is the local file to append to; `relative` is where a reader of the storage finds it.

    `every_seconds`: pause between two sends to an object store. Raises what Storage raises when the file cannot be
    opened for appending, or when what an object store already holds of it cannot be read.
    """

    def __init__(
        self,
        storage: Storage,
        relative: str,
        *,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self.relative = relative
        self._every = every_seconds
        self._clock = clock
        self._stop = threading.Event()
        self._lock = threading.Lock()  # one send at a time: the last one must win
        self._sent = -1
        self._complained = False
        self._thread: threading.Thread | None = None
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        if storage.local_path is not None:
            # One empty write through the seam makes the directories and finds out about permissions.
            if not storage.exists(relative):
                storage.write_bytes_atomic(relative, b"")
            self.path = storage.local_path / relative
            return
        self._spool = tempfile.TemporaryDirectory(prefix="slipway-spool-", ignore_cleanup_errors=True)
        self.path = Path(self._spool.name) / Path(relative).name
        with contextlib.suppress(FileNotFoundError):  # a restarted writer goes on where the last one stopped
            self.path.write_bytes(storage.read_bytes(relative))
        self.path.touch()
        self._thread = threading.Thread(target=self._send_often, name=f"send-{relative}", daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Send what is new to the object store. Nothing to do on a local file system."""
        if self._spool is None:
            return
        with self._lock:
            try:
                size = self.path.stat().st_size
                if size == self._sent:
                    return
                self._storage.write_bytes_atomic(self.relative, self.path.read_bytes())
                self._sent = size
            except (JobError, OSError) as error:
                if not self._complained:
                    self._complained = True
                    sys.stderr.write(f"warning: {self.relative} cannot be kept in storage for now: {error}\n")

    def close(self) -> None:
        """Send the rest and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self.send()
        if self._spool is not None:
            self._spool.cleanup()
            self._spool = None

    def _send_often(self) -> None:
        pause = self._every
        while not self._stop.wait(pause):
            began = self._clock()
            self.send()
            pause = max(self._every, _DUTY * (self._clock() - began))
