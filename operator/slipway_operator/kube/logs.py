"""Structured log lines: one JSON object per line, with the key of the object that the code is working on.

The key travels in a context variable, so that a library's log line inside a reconcile carries it as well. This file
never decides what is worth logging.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

_fields: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("slipway_log_fields")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Adds these fields to every log line of the block, and of the tasks that are started in it."""
    token = _fields.set({**_fields.get({}), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, bound fields, `extra` fields, error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break at its end."""
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields.get({}),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends the root logger to `stream` (default: standard error) as JSON lines, in place of what was there."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
