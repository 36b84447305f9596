"""Ends the local control plane: who writes first, then what runs, then what is written to. By pid, and verified."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from slipway_local.layout import Layout
from slipway_local.parts import API_SERVER, OPERATOR, RAY_RUNNER, SUPERVISED
from slipway_local.processes import ProcessRef, in_session, marked, read_json, stop, wait_gone
from slipway_local.ray_runner.head import HEAD_MARK, HeadOptions, RayHead
from slipway_local.ray_runner.rundir import driver

_PART_GRACE = 8.0
_DRIVER_GRACE = 4.0  # a run that hears SIGTERM may still save what it has


class StillRunning(Exception):  # noqa: N818
    """Something survives SIGKILL, or is not ours to signal."""


async def stop_everything(layout: Layout, *, but: ProcessRef | None = None) -> None:
    """Ends operator, Ray runner, jobs, Ray and API server, in this order. Raises StillRunning.

    `but` is the caller, if it is one of them.
    """
    for name in (OPERATOR, RAY_RUNNER):
        await _stop_part(layout, name)
    await _stop_jobs(layout)
    await RayHead(layout.state_dir, HeadOptions(cpus=1)).stop()
    await _stop_part(layout, API_SERVER)

    def rest() -> list[ProcessRef]:
        return [ref for ref in marked(SUPERVISED, str(layout.state_dir)) if ref.pid != os.getpid() and ref != but]

    if not await stop(rest, grace=1.0):
        raise StillRunning(f"cannot be ended: {', '.join(str(ref.pid) for ref in rest())}")
    layout.children.unlink(missing_ok=True)


async def _stop_part(layout: Layout, name: str) -> None:
    record = read_json(layout.children)
    try:
        ref = ProcessRef.from_json(record[name])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return
    await stop(lambda: [ref] if ref.alive() else [], grace=_PART_GRACE)


async def _stop_jobs(layout: Layout) -> None:
    """SIGTERM to the drivers while Ray still serves them; whoever is left after the grace goes with Ray."""
    runs = layout.state_dir / "runs"
    drivers = [ref for path in _folders(runs) if (ref := driver(path)) is not None and ref.alive()]
    if not drivers:
        return
    ours = set(marked(HEAD_MARK))

    def living() -> list[ProcessRef]:
        return [ref for one in drivers for ref in in_session(one.pid) if ref in ours and ref.alive()]

    for ref in living():
        ref.signal(signal.SIGTERM)
    await wait_gone(living, seconds=_DRIVER_GRACE)


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [one for one in path.iterdir() if one.is_dir()]
    return []
