"""Follows one running job: copies its output, and wakes the control loop when its driver begins and when it ends.

Looking at a file's size and at one process is cheap, so it is done five to ten times a second; asking Ray costs it
several processes' time, so that happens only when there is something to learn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from slipway_local.ray_runner.logs import JobLog, source_of
from slipway_local.ray_runner.rundir import driver

log = logging.getLogger(__name__)

_RUNNING = 0.1  # seconds between looks at the log and the driver
_ASKING = 0.15  # between questions to Ray, when an answer is expected any moment
_EXPECTED_WITHIN = 10.0  # afterwards it is asked less often
_PATIENT = 1.0


class Follower:
    """Runs from its making until `close`."""

    def __init__(
        self, *, run_dir: Path, log: Path, session_dir: Path, job_id: str, owner: str, wake: Callable[[], None]
    ) -> None:
        self._run_dir = run_dir
        self._log = JobLog(log, source_of(session_dir, job_id), owner=owner, run=job_id)
        self._wake = wake
        self._task = asyncio.create_task(self._follow(), name=f"follow {job_id}")

    def pump(self) -> None:
        """Copies what the job has written so far."""
        try:
            self._log.pump()
        except OSError as error:  # a full disk must not keep a job's end from being told
            log.warning("the log of a job cannot be copied: %s", error)

    def close(self) -> None:
        """Stops following, with a last copy."""
        self.pump()
        self._task.cancel()

    async def _follow(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asking = _Pace()
            while (started := driver(self._run_dir)) is None:
                self.pump()
                self._wake()
                await asking.wait()
            self._wake()
            while started.alive():
                self.pump()
                await asyncio.sleep(_RUNNING)
            asking = _Pace()
            while True:
                self.pump()
                self._wake()
                await asking.wait()


class _Pace:
    """Waits for short at first, for longer when what is waited for does not come."""

    def __init__(self) -> None:
        self._patient_from = asyncio.get_running_loop().time() + _EXPECTED_WITHIN

    async def wait(self) -> None:
        """One pause."""
        late = asyncio.get_running_loop().time() >= self._patient_from
        await asyncio.sleep(_PATIENT if late else _ASKING)
