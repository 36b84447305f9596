"""Tells the operator how the versions do: a thread, a POST every few seconds. A lost report costs nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable

from slipway_api.run import ReportTarget, RunIdentity
from slipway_api.serving import RouterConfig, ServingReport, VersionStatistics
from slipway_jobs.reporting import HttpTransport, now_text


def start(config: RouterConfig, replica: str, told: Callable[[], list[VersionStatistics]]) -> None:
    """Report from now on, as long as the process lives. Nothing to do without a target."""
    if config.report is None:
        return
    transport = _transport(config, config.report)
    threading.Thread(
        target=_run, args=(transport, config.report.interval_seconds, replica, told), name="report", daemon=True
    ).start()


def _transport(config: RouterConfig, target: ReportTarget) -> HttpTransport:
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


def _run(transport: HttpTransport, interval: float, replica: str, told: Callable[[], list[VersionStatistics]]) -> None:
    last: list[VersionStatistics] | None = None
    complained = ""
    while True:
        time.sleep(interval)
        versions = told()
        if versions == last:
            continue
        report = ServingReport(
            sequence=time.time_ns() // 1_000_000, replica=replica, time=now_text(), versions=versions
        )
        answer = transport.post(json.dumps(report.to_wire()).encode())
        if answer.accepted:
            last, complained = versions, ""
        elif answer.message != complained:
            complained = answer.message
            sys.stderr.write(f"warning: reporting: {answer.status or ''} {answer.message}\n")
