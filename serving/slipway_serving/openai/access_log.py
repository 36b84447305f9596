"""A line for each request, once its answer is complete: JSON, without anything of what was asked or answered."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from fastapi.responses import Response

from slipway_serving.openai.hang_up import EventStream

_log = logging.getLogger("slipway.access")


def write_to(logger: logging.Logger) -> None:
    """The handlers of this logger get the lines, whichever they are at the time."""
    _log.parent = logger
    _log.setLevel(logging.INFO)


class Entry:
    """One request, from its arrival."""

    def __init__(self, request_id: str, method: str, path: str) -> None:
        self._started = time.monotonic()
        self._line: dict[str, Any] = {"request": request_id, "client": "", "method": method, "path": path[:256]}

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
        _log.info(json.dumps(self._line))
