"""Tells the operator how the versions do: a thread, a POST every few seconds. A lost report costs nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from slipway_api.drift import DriftStatus
from slipway_api.run import ReportTarget, RunIdentity
from slipway_api.serving import RouterConfig, ServingReport, VersionStatistics, WatcherConfig
from slipway_jobs.reporting import HttpTransport, now_text


def start(config: RouterConfig, replica: str, told: Callable[[], list[VersionStatistics]]) -> None:
    """Report from now on, as long as the process lives. Nothing to do without a target."""
    _start(config, lambda: _report(replica, versions=told()))


def start_watching(config: WatcherConfig, told: Callable[[], DriftStatus]) -> None:
    """The same for a watcher. Its name is that of its version: there is one at a time."""
    _start(config, lambda: _report(f"watcher/{config.version}", drift=told()))


def _report(replica: str, **content: Any) -> ServingReport:
    return ServingReport(sequence=time.time_ns() // 1_000_000, replica=replica, time=now_text(), **content)


def _start(config: RouterConfig | WatcherConfig, said: Callable[[], ServingReport]) -> None:
    if config.report is None:
        return
    transport = _transport(config, config.report)
    threading.Thread(
        target=_run, args=(transport, config.report.interval_seconds, said), name="report", daemon=True
    ).start()


def _transport(config: RouterConfig | WatcherConfig, target: ReportTarget) -> HttpTransport:
    who = RunIdentity(
        kind="deployments",
        namespace=config.namespace,
        name=config.name,
        uid=config.uid,
        attempt=0,
        storage="",
        cache="",
    )
    return HttpTransport(target, who)


def _run(transport: HttpTransport, interval: float, said: Callable[[], ServingReport]) -> None:
    last: tuple[Any, Any] | None = None
    complained = ""
    while True:
        time.sleep(interval)
        report = said()
        content = (report.versions, report.drift)
        if content == last:
            continue
        answer = transport.post(json.dumps(report.to_wire()).encode())
        if answer.accepted:
            last, complained = content, ""
        elif answer.message != complained:
            complained = answer.message
            sys.stderr.write(f"warning: reporting: {answer.status or ''} {answer.message}\n")
