"""Which processes of a job still occupy the machine."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]

from slipway_local.processes import ProcessRef, marked
from slipway_local.ray_runner.translate import MARK

# Ray starts a shell next to each driver, which kills the driver's group when Ray's supervisor of the job is gone. It
# looks once a second, so it (and its `sleep`) outlives the job by up to that long. It holds nothing, ends by itself.
_WATCHER = "while kill -s 0 "


def occupying(mark: str) -> list[ProcessRef]:
    """The living processes of a job, without Ray's watcher."""
    found = marked(MARK, mark)
    watchers = {ref.pid for ref in found if _command(ref.pid)[-1:] and _command(ref.pid)[-1].startswith(_WATCHER)}
    return [ref for ref in found if ref.pid not in watchers and _parent(ref.pid) not in watchers]


def _command(pid: int) -> list[str]:
    try:
        return [str(word) for word in psutil.Process(pid).cmdline()]
    except psutil.Error:
        return []


def _parent(pid: int) -> int:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return 0
