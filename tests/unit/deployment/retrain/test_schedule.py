"""Retrains by the clock: cron, times that were missed, and clocks that jump."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_api import conditions as c
from slipway_api.cron import Cron, CronError
from slipway_cli.manifests import Manifest
from slipway_cli.validation import check

from .world import SNAPSHOT, RetrainWorld


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 3 * * 0", "2026-01-01 00:00", "2026-01-04 03:00"),
        ("0 3 * * 7", "2026-01-01 00:00", "2026-01-04 03:00"),
        ("*/15 * * * *", "2026-01-01 00:14", "2026-01-01 00:15"),
        ("*/15 * * * *", "2026-01-01 00:45", "2026-01-01 01:00"),
        ("5 4 1 * *", "2026-01-01 04:05", "2026-02-01 04:05"),
        ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
        ("0 0 29 2 *", "2096-03-01 00:00", "2104-02-29 00:00"),  # 2100 is no leap year
        ("30 6-18/6 * * 1-5", "2026-01-02 18:30", "2026-01-05 06:30"),
        ("0 12 1,15 * 5", "2026-01-01 12:00", "2026-01-02 12:00"),  # either day, where both are restricted
        ("0 12 */2 * 5", "2026-01-01 12:00", "2026-01-09 12:00"),  # a star is no restriction: both must match
        ("59 23 31 12 *", "2026-12-31 23:59", "2027-12-31 23:59"),
        ("10/20 0 * * *", "2026-01-01 00:10", "2026-01-01 00:30"),
    ],
)
def test_the_next_time(expression: str, after: str, expected: str) -> None:
    assert Cron.parse(expression).next_after(at(after)) == at(expected)


def test_a_day_that_never_is() -> None:
    assert Cron.parse("0 0 31 2 *").next_after(at("2026-01-01 00:00")) is None
    with pytest.raises(CronError, match="hour: the range 5-1 runs backwards"):
        Cron.parse("0 5-1 * * *")


BAD = ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8"]
BAD += ["@daily", "a * * * *", "*/0 * * * *", "1- * * * *", "1,, * * * *", "* * * JAN *", " * * * * *"]


def applied(schedule: str) -> list[str]:
    """What the API server's own admission says of a Deployment with it."""
    retrain = {"trainJob": {"name": "base"}, "schedule": schedule}
    spec = {"model": {"uri": "/m/a"}, "drift": {"retrain": retrain}}
    head = {"apiVersion": "slipway.dev/v1alpha1", "kind": "Deployment", "metadata": {"name": "chat"}}
    return [str(problem) for problem in check([Manifest(head | {"spec": spec}, "test")])]


@pytest.mark.parametrize("text", BAD)
def test_the_schema_refuses_it_at_apply(text: str) -> None:
    assert any("spec.drift.retrain.schedule" in problem for problem in applied(text))
    with pytest.raises(CronError):
        Cron.parse(text)


def test_the_schema_takes_what_is_right() -> None:
    for text in ("0 3 * * 0", "*/15 0-6/2,23 1,15 1-12 1-5", "59 23 31 12 7"):
        assert applied(text) == []


FIELDS = [("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6)]


@st.composite
def expressions(draw: st.DrawFn) -> tuple[str, list[set[int]]]:
    """An expression, and the values that each of its fields stands for."""
    texts, values = [], []
    for _, low, high in FIELDS:
        chosen = draw(st.sets(st.integers(low, high), min_size=1, max_size=4) | st.none())
        texts.append("*" if chosen is None else ",".join(map(str, sorted(chosen))))
        values.append(set(range(low, high + 1)) if chosen is None else chosen)
    return " ".join(texts), values


@settings(max_examples=60)
@given(asked=expressions(), start=st.datetimes(datetime(2024, 1, 1), datetime(2032, 1, 1)))
def test_nothing_that_matches_is_passed_over(asked: tuple[str, list[set[int]]], start: datetime) -> None:
    """Against the definition: minute by minute, over two days."""
    text, (minutes, hours, days, months, weekdays) = asked
    start = start.replace(tzinfo=UTC)
    restricted = [text.split()[2] != "*", text.split()[4] != "*"]
    moment = start.replace(second=0, microsecond=0)
    found = None
    for _ in range(2 * 24 * 60):
        moment += timedelta(minutes=1)
        by_day = [moment.day in days, moment.isoweekday() % 7 in weekdays]
        right_day = any(by_day) if all(restricted) else all(by_day)
        if moment.minute in minutes and moment.hour in hours and moment.month in months and right_day:
            found = moment
            break
    told = Cron.parse(text).next_after(start)
    assert told == found if found else told is None or told > moment


def scheduled(schedule: str = "0 3 * * *", **retrain: object) -> RetrainWorld:
    world = RetrainWorld.drifting({"schedule": schedule, "cooldownSeconds": 0, "maxPerDay": 2} | retrain)
    assert world.status is not None
    world.status["drift"] = {"alarms": [], "active": [], "snapshot": SNAPSHOT, "version": world.stable()}
    return world


def finish(world: RetrainWorld, letter: str = "b") -> None:
    world.run()
    world.trains(letter, seconds=600)
    world.run()
    world.measures()
    world.run(60)


def test_a_schedule_retrains_when_it_is_due() -> None:
    world = scheduled()
    world.run()
    assert world.retrain()["nextSchedule"] == "2026-01-01T03:00:00Z"
    world.now = at("2026-01-01 02:59")
    world.run()
    assert world.created == []
    world.now = at("2026-01-01 03:00")
    finish(world)
    assert (world.last()["cause"], world.last()["scheduled"]) == ("schedule", "2026-01-01T03:00:00Z")
    assert world.last()["stage"] == "Promoted"
    assert world.retrain()["nextSchedule"] == "2026-01-02T03:00:00Z"
    world.run(20 * 3600, every=1800)
    assert len(world.train_jobs()) == 1


def test_a_time_that_was_refused_is_passed_over_and_told() -> None:
    world = scheduled(cooldownSeconds=30 * 3600)
    world.now = at("2026-01-01 03:00")
    finish(world)
    world.now = at("2026-01-02 03:00")
    world.run()
    assert world.retrain()["refused"] == c.COOLING_DOWN
    assert "schedule, due at 2026-01-02T03:00:00Z" in world.retrain()["refusedMessage"]
    assert world.condition(c.RETRAINING) == ("False", c.COOLING_DOWN)
    world.run(20 * 3600, every=3600)
    assert len(world.train_jobs()) == 1
    world.now = at("2026-01-03 03:00")
    world.run()
    assert len(world.train_jobs()) == 2


def test_what_was_missed_while_the_operator_was_away_is_one() -> None:
    world = scheduled("*/10 * * * *")
    world.run()
    world.now += timedelta(days=9)
    world.run()
    assert len(world.train_jobs()) == 1


def test_a_schedule_that_is_changed_is_followed_at_once() -> None:
    world = scheduled("0 3 1 1 *")
    world.run()
    world.edit_retrain(schedule="*/5 * * * *")
    world.run()
    assert world.retrain()["nextSchedule"] == "2026-01-01T00:05:00Z"
    world.edit_retrain(schedule=None)
    world.run(3600, every=60)
    assert "nextSchedule" not in world.retrain()
    assert world.created == []


@pytest.mark.parametrize("schedule", ["0 0 31 2 *", "0 5-1 * * *"])
def test_a_schedule_that_the_schema_could_not_refuse_is_told(schedule: str) -> None:
    world = scheduled(schedule)
    world.run()
    assert world.condition(c.RETRAINING) == ("False", c.SCHEDULE_INVALID)
    assert "spec.drift.retrain.schedule" in world.message(c.RETRAINING)
    world.alarm()
    world.run()
    assert world.condition(c.RETRAINING) == ("True", c.TRAINING), "alarms need no schedule"


@settings(max_examples=20)
@given(jumps=st.lists(st.integers(-40 * 86400, 40 * 86400), min_size=1, max_size=5))
def test_a_clock_that_jumps_makes_no_storm(jumps: list[int]) -> None:
    """However it jumps: at each rest at most one more begins, and never more than maxPerDay by the clock's own time."""
    world = scheduled("*/5 * * * *", maxPerDay=2, cooldownSeconds=600)
    for jump in jumps:
        before = len(world.train_jobs())
        world.now = max(world.now + timedelta(seconds=jump), at("2026-01-01 00:00"))
        for _ in range(8):
            world.run()
            current = world.retrain().get("current")
            if current is not None and current["stage"] == "Training":
                world.fails()
            world.now += timedelta(minutes=6)
        assert len(world.train_jobs()) - before <= 2
    world.now += timedelta(days=2)
    world.edit_retrain(maxFailures=99)
    world.run()
    assert world.retrain().get("refused") != c.DAILY_LIMIT, "what the wrong clock wrote does not block for ever"
