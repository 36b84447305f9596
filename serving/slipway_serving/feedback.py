"""What people think of answers: joined to their requests by id, and appended to storage by a thread.

A request never waits for storage. What cannot be written after some tries is counted as lost, not kept for ever.
"""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections import OrderedDict
from typing import Any

from slipway_jobs.errors import JobError
from slipway_jobs.storage import Storage
from slipway_serving.openai.errors import ApiError

_REMEMBERED = 10_000  # requests that feedback may still speak of
_WAITING = 10_000
_BATCH = 500


class FeedbackLog:
    """The answers of the last while, and a file of feedback for each writing."""

    def __init__(self, directory: str | None) -> None:
        self._storage = Storage(directory, field="feedback") if directory else None
        self._requests: OrderedDict[str, str] = OrderedDict()  # request id -> version
        self._judged: set[str] = set()  # of these
        self._entries: queue.Queue[dict[str, Any]] = queue.Queue(_WAITING)
        self.lost = 0
        if self._storage is not None:
            threading.Thread(target=self._write, name="feedback", daemon=True).start()

    def remember(self, request_id: str, version: str) -> None:
        """An answer was given."""
        self._requests[request_id] = version
        while len(self._requests) > _REMEMBERED:
            self._judged.discard(self._requests.popitem(last=False)[0])

    def version_of(self, request_id: str) -> str:
        """Which version answered. Raises ApiError 404."""
        try:
            return self._requests[request_id]
        except KeyError:
            raise ApiError(
                404,
                "unknown_request",
                f"no answer with the id {request_id!r} is known here: it is not recent, or another replica's",
                param="request_id",
            ) from None

    def first_verdict(self, request_id: str) -> bool:
        """Whether nobody has judged this answer before; from now on somebody has."""
        if request_id in self._judged:
            return False
        self._judged.add(request_id)
        return True

    def add(self, entry: dict[str, Any]) -> None:
        """Take note; written soon."""
        if self._storage is None:
            return
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self.lost += 1

    def _write(self) -> None:
        assert self._storage is not None
        while True:
            entries = [self._entries.get()]
            while len(entries) < _BATCH and not self._entries.empty():
                entries.append(self._entries.get())
            lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in entries)
            try:
                # A file of its own for each writing: object stores cannot append, and nobody reads half of one.
                self._storage.write_bytes_atomic(f"{entries[0]['time']}-{uuid.uuid4().hex[:8]}.jsonl", lines.encode())
            except (JobError, OSError):
                self.lost += len(entries)
