"""What outlives the watcher's process. One document holds everything that belongs together and is replaced as a whole.

<storage>/<version>/state.json          judges, windows that are open, alarms, history, counts, examples: one commit
<storage>/<version>/windows/<n>.parquet a window's sketches, for whoever looks with other tools
<storage>/<version>/report.html
<storage>/snapshots/<id>/               examples of a moment, never changed
"""

from __future__ import annotations

import gzip
import json
from typing import Any

from slipway_jobs.errors import JobError
from slipway_jobs.storage import Storage

_STATE = "state.json.gz"


class Store:
    """Files of one watched version. Writing never raises: it says whether it was done, and `failure` says why not."""

    def __init__(self, uri: str, version: str) -> None:
        self.root = Storage(uri, field="storage")
        self._own = self.root.join(version)
        self.failure = ""

    def load(self) -> dict[str, Any] | None:
        """The state of the watcher before, None for the first. Raises JobError where storage fails.

        A document that cannot be read counts as none: it was written by another Slipway, or is damaged.
        """
        try:
            state = json.loads(gzip.decompress(self._own.read_bytes(_STATE)))
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, OSError) as error:
            self.failure = f"the saved state is damaged and was left: {error}"
            return None
        return state if isinstance(state, dict) else None

    def save(self, state: dict[str, Any]) -> bool:
        """Replace the state."""
        return self.write(_STATE, gzip.compress(json.dumps(state).encode(), compresslevel=3, mtime=0))

    def write(self, name: str, data: bytes) -> bool:
        """Replace a file."""
        try:
            self._own.write_bytes_atomic(name, data)
        except (JobError, OSError) as error:
            self.failure = str(error)
            return False
        self.failure = ""
        return True

    def uri_of(self, name: str) -> str:
        """Where a file is."""
        return self._own.join(name).uri
