"""What routers say of the versions that they serve, kept in memory and added up.

A router counts since it began, so its numbers fall when it is replaced. What each replica said last is kept; one that
has been silent for a while has been replaced, and what it said moves into a sum for good. So totals never fall while
the operator lives. After a restart of the operator they begin with what the replicas then say: a canary step counts
its requests from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from slipway_api.drift import DriftStatus
from slipway_api.serving import ServingReport, VersionStatistics
from slipway_operator.controllers.deployment.analysis import Tally

_SILENT_SECONDS = 60.0


@dataclass
class _Endpoint:
    replicas: dict[str, tuple[float, ServingReport]] = field(default_factory=dict)  # replica -> (heard at, report)
    gone: dict[str, Tally] = field(default_factory=dict)  # version -> counts of replaced replicas
    drift: tuple[int, DriftStatus] | None = None  # (sequence, report) of the watcher


class ServingReports:
    """The newest report of each router replica, by the UID of its Deployment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._endpoints: dict[str, _Endpoint] = {}

    def offer(self, uid: str, report: ServingReport) -> bool:
        """Keep a report unless a newer one of the same replica is known; whether it was kept."""
        endpoint = self._endpoints.setdefault(uid, _Endpoint())
        if report.drift is not None:  # one watcher at a time: of two, the newer report is the newer one's
            if endpoint.drift is not None and endpoint.drift[0] >= report.sequence:
                return False
            endpoint.drift = (report.sequence, report.drift)
            return True
        self._bury(endpoint)
        _, known = endpoint.replicas.get(report.replica, (0.0, None))
        if known is not None and known.sequence >= report.sequence:
            return False
        endpoint.replicas[report.replica] = (self._clock(), report)
        return True

    def drift(self, uid: str) -> DriftStatus | None:
        """What the watcher said last; None before it has said anything."""
        endpoint = self._endpoints.get(uid)
        return endpoint.drift[1] if endpoint is not None and endpoint.drift is not None else None

    def forget(self, uid: str) -> None:
        """The Deployment is gone."""
        self._endpoints.pop(uid, None)

    def tallies(self, uid: str) -> dict[str, Tally]:
        """Version -> its counts over all replicas, and the highest 99th percentile of those that live."""
        endpoint = self._endpoints.get(uid)
        if endpoint is None:
            return {}
        self._bury(endpoint)
        sums = dict(endpoint.gone)
        for _, report in endpoint.replicas.values():
            for statistics in report.versions:
                sums[statistics.name] = _add(sums.get(statistics.name, Tally()), statistics)
        return sums

    def _bury(self, endpoint: _Endpoint) -> None:
        silent = [name for name, (heard, _) in endpoint.replicas.items() if heard < self._clock() - _SILENT_SECONDS]
        for name in silent:
            _, report = endpoint.replicas.pop(name)
            for one in report.versions:
                counts = _add(endpoint.gone.get(one.name, Tally()), one)
                endpoint.gone[one.name] = replace(
                    counts, latency_p99_ms=None, latency_p99_at_least_ms=None, cold_start_seconds=None
                )


def _add(tally: Tally, one: VersionStatistics) -> Tally:
    return Tally(
        requests=tally.requests + one.requests,
        errors=tally.errors + one.errors,
        latency_p99_ms=_highest(tally.latency_p99_ms, one.latency_p99_ms),
        latency_p99_at_least_ms=_highest(tally.latency_p99_at_least_ms, one.latency_p99_at_least_ms),
        cold_start_seconds=_highest(tally.cold_start_seconds, one.cold_start_seconds),
        judged=tally.judged + one.judged,
        bad=tally.bad + one.bad,
    )


def _highest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)
