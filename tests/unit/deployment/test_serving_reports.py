"""What routers say, added up over replicas that come and go."""

from __future__ import annotations

from slipway_api.serving import ServingReport, VersionStatistics
from slipway_operator.controllers.deployment.analysis import Tally
from slipway_operator.controllers.deployment.serving_reports import ServingReports


def report(replica: str, sequence: int, latency: float | None = None, **requests: int) -> ServingReport:
    versions = [
        VersionStatistics(
            name=f"v-{name}",
            requests=count,
            errors=count // 10,
            latency_p99_ms=latency,
            latency_p99_at_least_ms=latency and latency / 2,
            judged=count // 5,
            bad=count // 20,
        )
        for name, count in requests.items()
    ]
    return ServingReport(sequence=sequence, replica=replica, time="2026-01-01T00:00:00Z", versions=versions)


def test_replicas_are_added_up_and_the_slowest_counts() -> None:
    reports = ServingReports()
    assert reports.tallies("uid") == {}
    reports.offer("uid", report("one", 1, 10.0, a=100, b=20))
    reports.offer("uid", report("two", 1, 30.0, a=50))
    assert reports.tallies("uid") == {
        "v-a": Tally(150, 15, 30.0, 15.0, judged=30, bad=7),
        "v-b": Tally(20, 2, 10.0, 5.0, judged=4, bad=1),
    }
    assert reports.tallies("other") == {}


def test_an_older_report_does_not_replace_a_newer_one() -> None:
    reports = ServingReports()
    assert reports.offer("uid", report("one", 5, a=50))
    assert not reports.offer("uid", report("one", 4, a=40))
    assert reports.tallies("uid")["v-a"].requests == 50


def test_a_replica_that_was_replaced_keeps_its_place_in_the_totals() -> None:
    now = [0.0]
    reports = ServingReports(clock=lambda: now[0])
    reports.offer("uid", report("one", 1, 99.0, a=100))
    now[0] = 100.0
    reports.offer("uid", report("two", 1, 5.0, a=7))
    assert reports.tallies("uid") == {"v-a": Tally(107, 10, 5.0, 2.5, judged=21, bad=5)}
    now[0] = 300.0
    assert reports.tallies("uid")["v-a"].requests == 107
    reports.forget("uid")
    assert reports.tallies("uid") == {}
