"""Windows to alarms: each kind of drift is found and named, quiet traffic is not, and a killed watcher goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slipway_jobs.drift.columns import Columns
from slipway_jobs.drift.detector import Detector, Settings, Verdict
from slipway_jobs.drift.errors import SketchError, StateError
from slipway_jobs.drift.features import Features
from slipway_jobs.drift.profile import ReferenceProfile
from slipway_jobs.drift.signals import Kind
from slipway_jobs.drift.summary import Summary
from slipway_jobs.drift.window_table import of_parquet, to_parquet
from slipway_jobs.drift.windows import Window, WindowRule, Windows

from .conftest import TOKENIZER, Maker

RULE = WindowRule(400, 400)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def fresh(profile: ReferenceProfile) -> Callable[[], Detector]:
    detector = Detector(profile, RULE)
    start = json.dumps(detector.state())

    def make() -> Detector:
        detector.restore(json.loads(start))
        return detector

    return make


def window_of(profile: ReferenceProfile, index: int, records: list[Features]) -> Window:
    summary = profile.summary()
    for number, record in enumerate(records):
        summary.add(f"{index}/{number}", record)
    return Window(index, float(index), index + 1.0, summary)


def judge(detector: Detector, index: int, records: list[Features]) -> Verdict:
    for record in records:
        detector.observe_error(record.numbers.get("concept.error"))
    return detector.observe(window_of(detector.profile, index, records))


def test_quiet_traffic_is_quiet(fresh: Callable[[], Detector], record: Maker) -> None:
    detector = fresh()
    verdicts = [judge(detector, index, [record() for _ in range(400)]) for index in range(6)]
    assert [verdict.alarms for verdict in verdicts] == [[]] * 6
    assert all(len(verdict.results) == len(detector.profile.signals) for verdict in verdicts)


@pytest.mark.parametrize(
    ("shift", "kind", "signal"),
    [
        ({"length": 90.0}, Kind.DATA, "input.tokens"),
        ({"labels": (0.3, 0.7)}, Kind.LABEL, "label"),
        ({"error_rate": 0.2}, Kind.CONCEPT, "concept.error"),
        ({"shift": 0.7}, Kind.DATA, "input.embedding"),
    ],
)
def test_each_kind_is_found_and_named(
    fresh: Callable[[], Detector], record: Maker, shift: dict[str, Any], kind: Kind, signal: str
) -> None:
    detector = fresh()
    judge(detector, 0, [record() for _ in range(400)])
    alarms = [
        alarm for index in (1, 2) for alarm in judge(detector, index, [record(**shift) for _ in range(400)]).alarms
    ]
    assert {alarm.kind for alarm in alarms} == {kind}
    assert signal in {alarm.signal for alarm in alarms}
    for alarm in alarms:
        assert alarm.effect >= alarm.threshold
        assert (alarm.start, alarm.end) == (alarm.window, alarm.window + 1)
    assert len({alarm.id for alarm in alarms}) == len(alarms)


def test_prediction_drift_by_refusals(fresh: Callable[[], Detector], record: Maker) -> None:
    detector = fresh()
    records = [record() for _ in range(400)]
    for refused in records[:60]:
        refused.categories["output.refusal"] = "yes"  # the reference has none: a category that is new
    alarms = judge(detector, 0, records).alarms
    assert [(alarm.signal, alarm.kind) for alarm in alarms] == [("output.refusal", Kind.PREDICTION)]


def test_an_alarm_is_said_once_and_again_after_it_was_over(fresh: Callable[[], Detector], record: Maker) -> None:
    detector = fresh()
    moved = [[record(labels=(0.1, 0.9)) for _ in range(400)] for _ in range(3)]
    quiet = [[record() for _ in range(400)] for _ in range(2)]
    verdicts = [judge(detector, index, w) for index, w in enumerate([moved[0], moved[1], *quiet, moved[2]])]
    assert [len(verdict.alarms) for verdict in verdicts] == [1, 0, 0, 0, 1]
    assert [verdict.active for verdict in verdicts] == [["label"], ["label"], [], [], ["label"]]
    assert verdicts[0].alarms[0].id != verdicts[4].alarms[0].id


def test_a_killed_watcher_says_the_same_and_nothing_twice(fresh: Callable[[], Detector], record: Maker) -> None:
    windows = [[record() for _ in range(400)], [record(labels=(0.2, 0.8), error_rate=0.3) for _ in range(400)]]
    detector = fresh()
    judge(detector, 0, windows[0])
    saved = json.dumps(detector.state())
    first = judge(detector, 1, windows[1])
    assert first.alarms
    detector.restore(json.loads(saved))  # killed before it could save what it had just said
    assert [alarm.id for alarm in judge(detector, 1, windows[1]).alarms] == [alarm.id for alarm in first.alarms]
    after = json.dumps(detector.state())
    detector.restore(json.loads(after))
    again = detector.observe(window_of(detector.profile, 1, windows[1]))
    assert again.alarms == [] and again.results == [] and again.active == first.active
    assert json.dumps(detector.state()) == after


@pytest.mark.parametrize("count", [0, 1, 49])
def test_windows_with_too_little_say_so(fresh: Callable[[], Detector], record: Maker, count: int) -> None:
    verdict = fresh().observe(window_of(fresh().profile, 0, [record() for _ in range(count)]))
    assert verdict.alarms == [] and verdict.results == []
    assert verdict.skipped["label"] == f"{count} values, 50 are needed"


def test_missing_labels_and_nan_are_no_drift(fresh: Callable[[], Detector], record: Maker) -> None:
    detector = fresh()
    records = [record() for _ in range(400)]
    for number, broken in enumerate(records):
        broken.categories.pop("label")
        if number % 3:
            broken.numbers["output.entropy"] = math.nan
    verdict = judge(detector, 0, records)
    assert verdict.alarms == []
    assert set(verdict.skipped) == {"label"}
    entropy = next(result for result in verdict.results if result.signal == "output.entropy")
    assert entropy.values == 134


def test_a_constant_feature_that_moves_is_seen(fresh: Callable[[], Detector], record: Maker) -> None:
    detector = fresh()
    assert detector.profile.layout["input.upperCase"].size == 2000  # 0 in every record
    records = [record() for _ in range(400)]
    for shouted in records[:100]:
        shouted.numbers["input.upperCase"] = 0.5
    assert [alarm.signal for alarm in judge(detector, 0, records).alarms] == ["input.upperCase"]


@pytest.mark.parametrize("test", ["populationStability", "kullbackLeibler", "jensenShannon", "wasserstein"])
def test_the_other_tests_can_judge_too(profile: ReferenceProfile, record: Maker, test: str) -> None:
    chosen = ReferenceProfile(
        TOKENIZER, profile.vocabulary, profile.sample, profile.seen, profile.seed, {"input.tokens": test}
    )
    detector = Detector(chosen, RULE)
    assert judge(detector, 0, [record() for _ in range(400)]).alarms == []
    alarms = judge(detector, 1, [record(length=80.0) for _ in range(400)]).alarms
    assert ("input.tokens", test) in {(alarm.signal, alarm.test) for alarm in alarms}


def test_a_state_of_another_profile_rule_or_version_is_refused(fresh: Callable[[], Detector]) -> None:
    detector = fresh()
    for key, value in (("profile", "other"), ("rule", [1, 1]), ("version", 0)):
        with pytest.raises(StateError, match=key):
            detector.restore(detector.state() | {key: value})
    with pytest.raises(StateError, match="damaged"):
        detector.restore(detector.state() | {"evidence": 3})
    with pytest.raises(ValueError, match="run_length"):
        Settings(run_length=0)


# --- windows ---


def small_windows(profile: ReferenceProfile, rule: WindowRule) -> tuple[Windows, Clock, Clock]:
    clock, wall = Clock(), Clock()
    return Windows(rule, profile.summary, clock, wall), clock, wall


def test_sliding_windows_are_sums_of_panes(profile: ReferenceProfile, record: Maker) -> None:
    windows, _, _ = small_windows(profile, WindowRule(6, 2))
    records = [record() for _ in range(10)]
    found = [window for number, r in enumerate(records) if (window := windows.add(str(number), r)) is not None]
    assert [window.index for window in found] == [2, 3, 4]
    for start, window in zip((0, 2, 4), found, strict=True):
        whole = profile.summary()
        for number in range(start, start + 6):
            whole.add(str(number), records[number])
        assert window.summary.state() == whole.state()


def test_panes_close_by_the_monotonic_clock_alone(profile: ReferenceProfile, record: Maker) -> None:
    windows, clock, wall = small_windows(profile, WindowRule(100, 100, max_seconds=60))
    windows.add("a", record())
    wall.now += 1e9
    assert windows.tick() is None
    wall.now -= 2e9
    assert windows.tick() is None
    clock.now += 61
    window = windows.tick()
    assert window is not None and window.summary.records == 1
    clock.now += 61
    assert windows.tick() is None  # an empty pane is no window


def test_windows_go_on_where_they_were_stopped(profile: ReferenceProfile, record: Maker) -> None:
    rule = WindowRule(6, 2)
    windows, _, _ = small_windows(profile, rule)
    records = [record() for _ in range(12)]
    for number in range(7):
        windows.add(str(number), records[number])
    resumed, _, _ = small_windows(profile, rule)
    resumed.restore(json.loads(json.dumps(windows.state())))
    for number in range(7, 12):
        one, other = windows.add(str(number), records[number]), resumed.add(str(number), records[number])
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.index, one.summary.state()) == (other.index, other.summary.state())
    with pytest.raises(StateError, match="size and stride"):
        Windows(RULE, profile.summary, Clock(), Clock()).restore(windows.state())
    with pytest.raises(ValueError, match="multiple of stride"):
        WindowRule(5, 2)


def test_memory_is_bounded_whatever_arrives(profile: ReferenceProfile, record: Maker) -> None:
    sizes = []
    summary = profile.summary()
    for number in range(3000):
        features = record()
        features.categories["label"] = f"label {number}"
        features.categories["unheard of"] = str(number)
        summary.add(str(number), features)
        if number in {999, 2999}:
            sizes.append(len(json.dumps(summary.state())))
    assert sizes[1] < sizes[0] * 1.05


def test_one_by_one_is_column_by_column(profile: ReferenceProfile, record: Maker) -> None:
    records = [record() for _ in range(60)]
    records[3].numbers.pop("output.entropy")
    one, whole = profile.summary(), profile.summary()
    for number, features in enumerate(records):
        one.add(str(number), features)
    columns = Columns.of(records)
    whole.add_columns(columns)
    assert one.state() == whole.state()
    part = profile.summary()
    part.add_columns(columns.take(np.arange(30)))
    assert part.records == 30


def test_windows_come_back_from_parquet_whole(profile: ReferenceProfile, record: Maker) -> None:
    windows = [window_of(profile, index, [record() for _ in range(20)]) for index in range(3)]
    again = of_parquet(to_parquet(windows))
    assert [(w.index, w.start, w.end, w.summary.state()) for w in again] == [
        (w.index, w.start, w.end, w.summary.state()) for w in windows
    ]
    merged = again[0].summary.merged(again[1].summary)
    assert merged.state() == windows[0].summary.merged(windows[1].summary).state()
    for damaged in (b"", b"no table", to_parquet(windows)[:-9]):
        with pytest.raises(SketchError, match="not a table of windows"):
            of_parquet(damaged)


def test_summaries_of_other_profiles_do_not_merge(profile: ReferenceProfile) -> None:
    other = profile.summary()
    other.sketches.pop("label")
    with pytest.raises(SketchError, match="different signals"):
        profile.summary().merged(other)
    swapped = profile.summary()
    swapped.sketches["label"] = swapped.sketches["input.tokens"]
    with pytest.raises(SketchError, match="cannot be merged"):
        profile.summary().merged(swapped)
    state = profile.summary().state()
    state["sketches"]["label"]["sketch"] = "Unheard"
    with pytest.raises(SketchError, match="Unheard"):
        Summary.of_state(state)
