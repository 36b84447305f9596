"""What shares a process, and tests that judge times.

Half of the suite's time is spent waiting, so `make test` runs it in two processes. Tests of a folder share expensive
fixtures (a control plane, a trained model), so a folder stays in one process, and the longest begin first.

A machine may stand still, so a failed deadline counts only when the machine kept time.
A shared machine now and then holds every process up for half a second. A test marked `timed` asserts deadlines of that
order, so when it fails *and* a thread that does nothing but sleep was itself held up meanwhile, it is run again, at
most twice, and says so. A deadline that our own code misses holds up no sleeping thread, so such a failure stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings

# How long an example takes to make or to run is the machine's affair; hypothesis would fail a test for it.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Minutes each. The modules of tests/e2e need nothing of each other but a running control plane, which is soon up.
# tests/compress is first because its libraries change global state of torch, and mind that of others.
_LONGEST_FIRST = ("compress", "e2e/test_kills", "kube", "train/engine", "e2e", "chart", "evaluate/run", "local")

_RUNS = 3
_PERIOD = 0.02
_HELD_UP = 0.1  # seconds late; an interpreter that shares its lock is late by a hundredth of a second


def group_of(nodeid: str) -> str:
    """The group of a test: the longest name of _LONGEST_FIRST that its file is below, else the file's folder."""
    place = nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    listed = [name for name in _LONGEST_FIRST if place == name or place.startswith(f"{name}/")]
    return max(listed, key=len) if listed else place.rpartition("/")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A folder stays in one process. (By marks it could be said too, but xdist 3.8 does not see them in pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - there when this is called

    class FolderScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return FolderScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, the longest groups are first."""
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(_LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


class StallWatch:
    """Measures how late a sleeping thread wakes up."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            time.sleep(_PERIOD)
            self.worst = max(self.worst, time.monotonic() - before - _PERIOD)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a `timed` test, again where its failure proves nothing."""
    if item.get_closest_marker("timed") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for run in range(1, _RUNS + 1):
        if run > 1:
            _make_fresh(item)
        watch = StallWatch()
        with watch.watching():
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if run == _RUNS or watch.worst < _HELD_UP or not any(report.failed for report in reports):
            break
        item.warn(pytest.PytestWarning(f"run again: failed while the machine stood still for {watch.worst:.2f} s"))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _make_fresh(item: Any) -> None:
    """Forget the fixtures of the run before (as pytest does for each new item)."""
    item._initrequest()
