"""The API server's audit log as a judge: which replica wrote when, and whether it held the lease at that moment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

_WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True)
class Write:
    """One request that changes something, as the audit log has it."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    at: float
    """When the API server had received it, in seconds since the epoch."""

    @classmethod
    def parse(cls, line: str) -> Write | None:
        """None for a line that is no completed write."""
        event: dict[str, Any] = json.loads(line)
        if event["verb"] not in _WRITES or event["stage"] != "ResponseComplete":
            return None
        reference = event.get("objectRef") or {}
        return cls(
            user=event["user"]["username"],
            verb=event["verb"],
            resource=reference.get("resource", ""),
            namespace=reference.get("namespace", ""),
            name=reference.get("name", ""),
            code=int((event.get("responseStatus") or {}).get("code", 0)),
            at=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        )


def read_writes(path: Path, users: Iterable[str]) -> list[Write]:
    """The writes of these users, in the order in which the API server received them."""
    wanted = set(users)
    lines = path.read_text().splitlines(keepends=True)
    found = [write for line in lines if line.endswith("\n") and (write := Write.parse(line)) is not None]
    return sorted((write for write in found if write.user in wanted), key=lambda write: write.at)


def takes_lease(write: Write, lease: str) -> bool:
    """Whether it is a successful write of that lease; only who holds it or may take it can do that."""
    return write.resource == "leases" and write.name == lease and 200 <= write.code < 300


def without_lease(writes: list[Write], lease: str, duration: float) -> list[Write]:
    """The writes of other objects by somebody who did not hold the lease at that moment, tried or done.

    Whoever wrote the lease last holds it, for `duration` seconds from then on.
    """
    late, holder, until = [], "", 0.0
    for write in writes:
        if write.resource == "leases" and write.name == lease:
            if takes_lease(write, lease):
                holder, until = write.user, write.at + duration
        elif write.user != holder or write.at > until:
            late.append(write)
    return late
