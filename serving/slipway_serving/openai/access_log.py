"""A line for each request, once its answer is complete: JSON, without anything of what was asked or answered.

The lines of a tenth of a second are one record of the logger: for Serve's handler a record is more work than the
shortest answers are (it asks the file system twice, and formats twice, to know whether the file is full).
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import time
from typing import Any

from starlette.responses import Response

from slipway_serving.openai.hang_up import EventStream

_log = logging.getLogger("slipway.access")


_HELD_SECONDS = 0.1
_HELD_LINES = 1000


class _Lines:
    """Lines on their way to the logger, of one event loop."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # that will write them

    def add(self, line: str) -> None:
        self._lines.append(line)
        loop = asyncio.get_running_loop()
        if len(self._lines) >= _HELD_LINES:
            self.write()
        elif self._loop is not loop:
            self._loop = loop
            loop.call_later(_HELD_SECONDS, self.write)

    def write(self) -> None:
        """All that are held: the first behind what the logger's format begins with, the others as they are."""
        lines, self._lines, self._loop = self._lines, [], None
        if lines:
            _log.info("%s", "\n".join(lines))


_lines = _Lines()


def write_to(logger: logging.Logger) -> None:
    """The handlers of this logger get the lines, whichever they are at the time."""
    _log.parent = logger
    _log.setLevel(logging.INFO)


class Entry:
    """One request, from its arrival."""

    def __init__(self, request_id: str, method: str, path: str) -> None:
        self._started = time.monotonic()
        came = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._line: dict[str, Any] = {
            "time": came,
            "request": request_id,
            "client": "",
            "method": method,
            "path": path[:256],
        }

    def came_from(self, client: str) -> None:
        """A digest of the API key."""
        self._line["client"] = client

    def answered(self, answer: Response) -> None:
        """Write the line, of a stream when it has ended."""
        self._line["status"] = answer.status_code
        version = answer.headers.get("x-slipway-version")
        if version is not None:
            self._line["version"] = version
        if isinstance(answer, EventStream):
            answer.ended = self._streamed
        else:
            self._write()

    def _streamed(self, complete: bool) -> None:
        self._line["complete"] = complete  # false: the client hung up
        self._write()

    def _write(self) -> None:
        self._line["seconds"] = round(time.monotonic() - self._started, 4)
        _lines.add(json.dumps(self._line))
