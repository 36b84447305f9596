"""What the operator makes of the watcher's reports: the application, status, the condition, one Event an alarm."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipway_api.drift import DriftAlarm, DriftStatus, Snapshot
from slipway_api.serving import ServingReport, WatcherConfig
from slipway_operator.controllers.deployment.serving_reports import ServingReports

from .world import World

DRIFT = {"capture": {"content": "examples"}, "drift": {"windowRequests": 100}}


def alarm(number: int, signal: str = "input.tokens") -> DriftAlarm:
    return DriftAlarm(
        id=f"a{number}",
        kind="data",
        signal=signal,
        test="kolmogorovSmirnov",
        statistic="0.4",
        effect="0.41",
        threshold="0.1",
        p_value="1e-9",
        window=number,
        start="2026-01-01T00:00:00Z",
        end=f"2026-01-01T00:{number:02d}:00Z",
    )


def said(world: World, **changes: Any) -> DriftStatus:
    assert world.status is not None
    return DriftStatus(version=world.status["stable"]["version"], windows=3, requests=300).model_copy(update=changes)


@pytest.fixture
def world() -> World:
    made = World.of(**DRIFT)
    made.step()
    return made


def applications(world: World) -> dict[str, Any]:
    assert world.ray_service is not None
    config = json.loads(world.ray_service["spec"]["serveConfigV2"])
    return {application["name"]: application for application in config["applications"]}


def drifted(world: World) -> tuple[str, str, str]:
    assert world.status is not None
    found = next(one for one in world.status["conditions"] if one["type"] == "Drifted")
    return found["status"], found["reason"], found["message"]


def test_what_is_kept_is_what_was_asked_for(world: World) -> None:
    world.change(capture={"content": "examples", "redact": False, "maxExamples": 7})
    world.step()
    config = WatcherConfig.model_validate(applications(world)["watcher"]["args"])
    assert (config.redact, config.max_examples) == (False, 7)


def test_the_watcher_is_an_application_of_its_own(world: World) -> None:
    told = applications(world)
    config = WatcherConfig.model_validate(told["watcher"]["args"])
    assert world.status is not None
    assert config.version == world.status["stable"]["version"]
    assert config.storage.endswith("/team/deployment/chat/uid-0/drift")
    assert (config.content, config.window_requests) == ("examples", 100)
    assert (config.redact, config.max_examples) == (True, 5000)
    assert told["router"]["deployments"][0]["user_config"]["capture"] == "watcher"
    before = told["router"]["args"]
    world.change(drift=None, capture={"content": "features"})
    world.step()
    told = applications(world)
    assert "watcher" not in told
    assert told["router"]["args"] == before  # the router is not restarted
    assert told["router"]["deployments"][0]["user_config"]["capture"] == ""
    assert all(one["type"] != "Drifted" for one in world.status["conditions"])


def test_unknown_until_it_can_be_judged(world: World) -> None:
    assert drifted(world)[:2] == ("Unknown", "WatcherStarting")
    world.drift = said(world, problem="no reference profile: Name documents in spec.drift.reference.sources.")
    world.step()
    assert drifted(world) == ("Unknown", "NotWatched", world.drift.problem)
    world.drift = said(world, windows=0, requests=12)
    world.step()
    assert drifted(world)[1] == "TooFewRequests"
    assert "12 requests captured; 100 make" in drifted(world)[2]
    world.drift = said(world)
    world.step()
    assert drifted(world)[:2] == ("False", "NoDrift")


def test_an_alarm_is_told_once_also_by_an_operator_that_was_restarted(world: World) -> None:
    world.drift = said(world, alarms=[alarm(4)], active=["input.tokens"])
    world.step()
    words = (
        "input.tokens (data drift): kolmogorovSmirnov 0.4, p 1e-9, effect 0.41 above 0.1, in window 4 "
        "(2026-01-01T00:00:00Z to 2026-01-01T00:04:00Z)"
    )
    assert drifted(world) == ("True", "DriftFound", f"{words}; drifted now: input.tokens")
    world.step()
    world.drift = None  # the operator was restarted and has heard nothing yet
    world.step()
    assert drifted(world)[0] == "True"
    world.drift = said(world, alarms=[alarm(5, "input.digits"), alarm(4)], active=["input.digits", "input.tokens"])
    world.step()
    world.drift = said(world, alarms=[])  # a watcher that lost its state
    world.step()
    assert [event for event in world.events if event.startswith("DriftFound")] == [
        f"DriftFound: {words}",
        f"DriftFound: {words.replace('input.tokens', 'input.digits').replace('4 (', '5 (').replace('00:04', '00:05')}",
    ]
    assert world.status is not None
    assert [one["id"] for one in world.status["drift"]["alarms"]] == ["a5", "a4"]
    assert drifted(world)[0] == "False"


def test_the_newest_snapshot_stays_and_another_version_says_nothing(world: World) -> None:
    taken = Snapshot(uri="/data/s", digest="sha256:1", examples=8, held_out=2, time="2026-01-01T00:00:00Z")
    world.drift = said(world, snapshot=taken)
    world.step()
    world.drift = said(world, snapshot=None)
    world.step()
    assert world.status is not None
    assert world.status["drift"]["snapshot"]["uri"] == "/data/s"
    world.drift = said(world, version="v-other", alarms=[alarm(9)])
    world.step()
    assert world.status["drift"]["alarms"] == []


def test_suspended_nothing_is_watched_and_what_was_found_stays(world: World) -> None:
    world.drift = said(world, alarms=[alarm(1)], active=["input.tokens:kolmogorovSmirnov"])
    world.run()
    assert drifted(world)[:2] == ("True", "DriftFound")
    world.change(suspend=True)
    world.run()
    assert drifted(world) == ("Unknown", "SuspendedByUser", "spec.suspend is true; nothing is watched")
    assert world.status is not None
    assert [one["id"] for one in world.status["drift"]["alarms"]] == ["a1"]
    world.change(drift=None)
    world.run()
    assert world.status["conditions"]
    assert not [one for one in world.status["conditions"] if one["type"] == "Drifted"]


def test_a_watcher_that_cannot_start_is_told_and_serving_goes_on(world: World) -> None:
    world.states = {"watcher": ("DEPLOY_FAILED", "no module")}
    world.step()
    assert drifted(world)[1:] == (
        "WatcherStarting",
        f"the watcher of version {(world.status or {})['stable']['version']} is DEPLOY_FAILED: no module",
    )
    conditions = {one["type"]: one["status"] for one in (world.status or {})["conditions"]}
    assert conditions["Available"] == "True"


def test_of_two_watchers_the_newer_report_counts() -> None:
    reports = ServingReports()

    def report(sequence: int, windows: int) -> ServingReport:
        drift = DriftStatus(windows=windows)
        return ServingReport(sequence=sequence, replica="watcher/v-1", time="2026-01-01T00:00:00Z", drift=drift)

    assert reports.drift("uid") is None
    assert reports.offer("uid", report(5, 50))
    assert not reports.offer("uid", report(4, 40))
    assert not reports.offer("uid", report(5, 40))
    drift = reports.drift("uid")
    assert drift is not None
    assert drift.windows == 50
    assert reports.tallies("uid") == {}
