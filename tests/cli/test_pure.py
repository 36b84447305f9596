"""The decisions behind the commands: durations, goals, cadence, tables, templates, manifests, the end of a log."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_cli import jobs
from slipway_cli.durations import ago, parse_duration, short_duration
from slipway_cli.errors import CliError, ManifestError, UsageError
from slipway_cli.manifests import parse
from slipway_cli.output import as_list, compile_template, parse_format, to_yaml
from slipway_cli.parser import COMMANDS, command_parser
from slipway_cli.progress import PlainCadence, PlainDisplay, ProgressView
from slipway_cli.resources import Discovered, find_kinds, kind_of, parse_references
from slipway_cli.run_logs import last_lines
from slipway_cli.sections import usage
from slipway_cli.tables import TableStyle, render, rows_of
from slipway_cli.waiting import ConditionStatus, Deletion, judge, parse_goal
from slipway_operator.kube.resource import Resource

from .conftest import condition, ended, running


def job(**status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "a", "generation": 1},
        "status": status,
    }


# --- durations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("0", 0),
        ("45", 45),
        ("-1s", 604800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "10 m", "1d", "s10", "1m10", "--1s x"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@given(st.integers(0, 10**7))
def test_short_durations_are_never_longer_and_lose_less_than_the_second_unit(seconds: int) -> None:
    text = short_duration(seconds)
    read = sum(int(n) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[u] for n, u in _units(text))
    unit = {"d": 3600, "h": 60, "m": 1, "s": 1}[
        text.rstrip("0123456789")[-1] if text[-1].isdigit() else _units(text)[0][1]
    ]
    assert 0 <= seconds - read < unit


def _units(text: str) -> list[tuple[str, str]]:
    found, number = [], ""
    for character in text:
        if character.isdigit():
            number += character
        else:
            found.append((number, character))
            number = ""
    return found


def test_ago() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago("2025-12-31T23:58:30Z", now) == "1m30s"
    assert ago("2026-01-01T00:00:05Z", now) == "0s"  # a clock that is ahead
    assert ago("yesterday", now) == ago(None, now) == "<unknown>"
    assert ago((now - timedelta(days=3, hours=4)).isoformat(), now) == "3d4h"


# --- waiting ------------------------------------------------------------------------------------------------------


def test_goals() -> None:
    assert parse_goal("delete") == Deletion()
    assert parse_goal("condition=Succeeded") == ConditionStatus("Succeeded")
    assert parse_goal("condition=Running=False") == ConditionStatus("Running", "False")
    for wrong in ("Succeeded", "condition=", "condition=X=", "create", "jsonpath={.a}=b"):
        with pytest.raises(UsageError):
            parse_goal(wrong)


@pytest.mark.parametrize(
    ("goal", "status", "met", "possible"),
    [
        ("condition=Succeeded", ended(), True, True),
        ("condition=succeeded=true", ended(), True, True),
        ("condition=Succeeded", running(), False, True),
        ("condition=Succeeded", {}, False, True),
        ("condition=Succeeded", ended("Failed", "UserError", "no"), False, False),
        ("condition=Failed", ended("Failed", "UserError", "no"), True, True),
        ("condition=Failed", ended(), False, False),
        ("condition=Running", ended(), False, False),
        ("condition=Running=False", ended(), True, True),
        ("delete", ended(), False, True),
    ],
)
def test_verdicts(goal: str, status: dict[str, Any], met: bool, possible: bool) -> None:
    verdict = judge(parse_goal(goal), job(**status))
    assert (verdict.met, verdict.possible) == (met, possible)


def test_absence_ends_a_wait() -> None:
    assert judge(Deletion(), None).met
    assert not judge(ConditionStatus("Succeeded"), None).possible


def test_a_condition_of_an_older_spec_does_not_count_yet() -> None:
    other = {
        "kind": "Thing",
        "metadata": {"generation": 2},
        "status": {"conditions": [condition("Ready", "True", "R", "")]},
    }
    assert not judge(ConditionStatus("Ready"), other).met
    other["metadata"] = {"generation": 1}
    assert judge(ConditionStatus("Ready"), other).met
    edited_after_its_end = job(**ended())
    edited_after_its_end["metadata"]["generation"] = 2
    assert judge(ConditionStatus("Succeeded"), edited_after_its_end).met


# --- progress -----------------------------------------------------------------------------------------------------


def view(step: int, stage: str = "Training", **more: Any) -> ProgressView:
    return ProgressView(name="a", stage=stage, step=step, steps=100, **more)


def test_numbers_come_at_a_human_cadence_and_news_at_once() -> None:
    cadence = PlainCadence(10)
    asked = [
        (view(0, "Starting"), 0.0, True),
        (view(1), 1.0, True),  # another stage
        (view(2), 2.0, False),
        (view(3), 10.9, False),
        (view(3), 11.0, True),
        (view(3), 50.0, False),  # nothing new
        (view(4, attempt=2), 50.5, True),  # another attempt
        (view(4, "BackingOff", attempt=2, note="a"), 50.6, True),
        (view(4, "BackingOff", attempt=2, note="b"), 50.7, True),  # another reason to wait
    ]
    for shown, now, wanted in asked:
        assert cadence.wants(shown, now) is wanted, (shown, now)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50)), max_size=60))
def test_within_a_stage_lines_are_never_closer_than_the_cadence(steps: list[tuple[float, int]]) -> None:
    cadence, now, printed = PlainCadence(5), 0.0, []
    for pause, step in steps:
        now += pause
        if cadence.wants(view(step), now):
            printed.append(now)
    assert all(later - earlier >= 5 for earlier, later in pairwise(printed))


def test_a_line_holds_what_is_known_and_nothing_stale() -> None:
    stream, now = io.StringIO(), [0.0]
    display = PlainDisplay(stream, clock=lambda: now[0])
    progress = {"step": 5, "steps": 10, "loss": "2.5", "evalLoss": "2.75", "tokensPerSecond": 1234567, "etaSeconds": 75}
    with display:
        display.show(ProgressView.of(job(**running(progress=progress))))
        display.show(ProgressView.of(job(**running("BackingOff", "attempt 1 ended: a worker died", progress=progress))))
    training, waiting = stream.getvalue().splitlines()
    assert training == "a: Training: step 5/10, loss 2.5, held-out loss 2.75, 1,234,567 tokens/s, ETA 1m15s"
    assert waiting == ("a: BackingOff: step 5/10, loss 2.5, held-out loss 2.75 - attempt 1 ended: a worker died")


def test_between_two_attempts_the_line_says_how_the_last_one_ended() -> None:
    record = {"number": 1, "outcome": "Infrastructure", "message": "rank 1 died"}
    status = {**running("BackingOff", "waiting until the previous attempt has stopped"), "attempts": [record]}
    assert ProgressView.of(job(**status)).line() == (
        "a: BackingOff: attempt 1 ended: Infrastructure: rank 1 died; waiting until the previous attempt has stopped"
    )


# --- tables and templates -----------------------------------------------------------------------------------------


def test_a_table_is_aligned_and_wide_columns_stay_away() -> None:
    table = {
        "columnDefinitions": [{"name": "Name"}, {"name": "State"}, {"name": "Model", "priority": 1}],
        "rows": [{"cells": ["a", None, "m"]}, {"cells": ["long-name", "Done\n\x1b[1m", "m"]}],
    }
    headers, rows = rows_of(table, TableStyle())
    assert render(headers, rows).splitlines() == ["NAME        STATE", "a", "long-name   Done  [1m"]
    assert rows_of(table, TableStyle(wide=True, prefix="tj/"))[1][0] == ["tj/a", "", "m"]


@given(st.lists(st.lists(st.text("abc", max_size=6), min_size=3, max_size=3), min_size=1, max_size=8))
def test_columns_of_a_table_begin_at_one_place(rows: list[list[str]]) -> None:
    rows = [["x" + cell for cell in row] for row in rows]
    lines = render(["A", "B", "C"], rows).splitlines()
    widths = [max(len(row[i]) for row in [["A", "B", "C"], *rows]) for i in range(3)]
    starts = [0, widths[0] + 3, widths[0] + widths[1] + 6]
    for line, row in zip(lines[1:], rows, strict=True):
        assert [line[start : start + len(cell)] for start, cell in zip(starts, row, strict=True)] == row


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{.status.state}", "Training"),
        (".status.state", "Training"),
        ("status.state", "Training"),
        ("{.metadata.name}: {.status.progress.step}", "a: 5"),
        ('{.metadata.name}{"\\n"}', "a\n"),
        ("{.status.conditions[*].type}", "Running Succeeded Failed"),
        ('{.status.conditions[?(@.type=="Running")].reason}', "Training"),
        ("{.status.progress}", '{"step":5}'),
        ("{.nothing.here}", ""),
    ],
)
def test_jsonpath(template: str, text: str) -> None:
    assert compile_template(template)(job(**running(progress={"step": 5}))) == text


@pytest.mark.parametrize("template", ["{.a", "{range .items[*]}", "{.a[?}", "{'a}"])
def test_a_template_that_is_not_understood(template: str) -> None:
    with pytest.raises(UsageError):
        compile_template(template)


def test_formats() -> None:
    assert parse_format(None).tabular
    assert parse_format("jsonpath={.a}").template == "{.a}"
    for wrong in ("jsonpath", "jsonpath=", "yaml=x", "go-template"):
        with pytest.raises(UsageError):
            parse_format(wrong)
    assert to_yaml({"a": "x\ny\n", "b": [1]}) == "a: |\n  x\n  y\nb:\n- 1\n"
    assert as_list([{"a": 1}])["items"] == [{"a": 1}]


# --- words for resources ------------------------------------------------------------------------------------------

TJ = Discovered(Resource("slipway.dev", "v1alpha1", "trainjobs", "TrainJob"), "trainjob", ("tj",), ("slipway",))
EJ = Discovered(Resource("slipway.dev", "v1alpha1", "evaljobs", "EvalJob"), "evaljob", ("ej",), ("slipway",))
CORE = Discovered(Resource("", "v1", "events", "Event"), "event", ("ev",), ())
NEW = Discovered(Resource("events.k8s.io", "v1", "events", "Event"), "event", ("ev",), ())
KNOWN = [CORE, NEW, TJ, EJ]


@pytest.mark.parametrize("word", ["tj", "TJ", "trainjob", "trainjobs.slipway.dev", "trainjob.v1alpha1.slipway.dev"])
def test_words_of_one_kind(word: str) -> None:
    assert find_kinds(word, KNOWN) == [TJ]


def test_ambiguous_and_collective_words() -> None:
    assert find_kinds("events", KNOWN) == [CORE]
    assert find_kinds("events.events.k8s.io", KNOWN) == [NEW]
    assert find_kinds("slipway", KNOWN) == [TJ, EJ]
    with pytest.raises(CliError):
        find_kinds("tj.other.dev", KNOWN)
    assert kind_of({"apiVersion": "events.k8s.io/v1", "kind": "Event"}, KNOWN) == NEW
    assert kind_of({"apiVersion": "slipway.dev/v2", "kind": "TrainJob"}, KNOWN) is None


def test_references() -> None:
    assert [(r.kind, r.names) for r in parse_references(["tj/a", "ej/b"], KNOWN, names_required=True)] == [
        (TJ, ("a",)),
        (EJ, ("b",)),
    ]
    assert parse_references(["tj", "a", "b"], KNOWN, names_required=True)[0].names == ("a", "b")
    assert [r.kind for r in parse_references(["tj,ej"], KNOWN, names_required=False)] == [TJ, EJ]
    for wrong in (["tj/"], ["/a"], ["tj/a/b"], ["tj/a", "b"], ["slipway/a"], ["tj"], [","]):
        with pytest.raises(UsageError):
            parse_references(wrong, KNOWN, names_required=True)


# --- manifests ----------------------------------------------------------------------------------------------------


def test_documents_and_their_places() -> None:
    text = "# nothing\n---\nkind: A\napiVersion: v1\nmetadata: {name: a}\n---\n---\n" + json.dumps(
        {"kind": "B", "apiVersion": "v1", "metadata": {"name": "b"}}
    )
    found = parse(text, "x.yaml")
    assert [(m.name, m.source) for m in found] == [
        ("a", "x.yaml: document 1 (line 3)"),
        ("b", "x.yaml: document 2 (line 8)"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "x:1:5: not YAML"),
        ("a: 1\na: 2", "x:2:1: not YAML: key 'a' stands twice"),
        ("kind: A\napiVersion: v1\nmetadata: &m {name: x}\nspec: *m", "aliases are not accepted"),
        ("- a", "an object is expected, not a list"),
        ("word", "an object is expected, not 'word'"),
        ("kind: A\nmetadata: {name: a}", "apiVersion is missing"),
        ("apiVersion: v1\nmetadata: {name: a}", "kind is missing"),
        ("apiVersion: v1\nkind: A", "metadata.name is missing"),
        ("apiVersion: v1\nkind: A\nmetadata: {name: 5}", "metadata.name is missing or not a string"),
        ("a: !!python/object:os.system {}", "not YAML"),
        ("[" * 1500, "not YAML"),
    ],
)
def test_what_is_no_manifest(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match="x") as caught:
        parse(text, "x")
    assert message in caught.value.message


def test_a_time_stays_text() -> None:
    text = "kind: A\napiVersion: v1\nmetadata: {name: a}\nspec: {at: 2026-01-01T00:00:00Z}"
    assert parse(text, "x")[0].obj["spec"]["at"] == "2026-01-01T00:00:00Z"


# --- logs ---------------------------------------------------------------------------------------------------------


def test_a_deployment_is_a_run_by_its_newest_compression() -> None:
    deployment = {"apiVersion": "slipway.dev/v1alpha1", "kind": "Deployment", "metadata": {"name": "chat"}}
    assert jobs.run_of(deployment) is None
    compression = {"attempt": 2, "storage": "/s", "rayJobName": "chat-c2", "attempts": [{"number": 2}]}
    run = jobs.run_of(deployment | {"status": {"attempt": 9, "compression": compression}})
    assert run is not None
    assert jobs.attempt_of(run) == 2
    assert not jobs.attempt_ended(run, 2)
    assert jobs.label_of(run) == "sdeploy/chat"
    job = {"apiVersion": "slipway.dev/v1alpha1", "kind": "TrainJob", "metadata": {"name": "t"}}
    assert jobs.run_of(job) is job


@given(st.lists(st.text("ab ", max_size=5), max_size=20), st.integers(0, 25), st.booleans())
def test_the_last_lines_are_what_splitlines_says(lines: list[str], count: int, unfinished: bool) -> None:
    text = "".join(f"{line}\n" for line in lines) + ("rest" if unfinished else "")
    data = text.encode()
    expected = "".join(text.splitlines(keepends=True)[-count:] if count else [])
    assert data[last_lines(io.BytesIO(data), count) :].decode() == expected


def test_the_last_lines_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"{n} {'x' * 900}\n" for n in range(1000)))
    with file.open("rb") as stream:
        stream.seek(last_lines(stream, 300))
        assert [line.split()[0] for line in stream.read().decode().splitlines()] == [str(n) for n in range(700, 1000)]


def test_every_command_has_a_module_an_example_that_parses_and_a_line_of_help() -> None:
    for command in COMMANDS:
        assert (Path(__file__).parents[2] / "operator" / (command.module.replace(".", "/") + ".py")).is_file()
        words = __import__("shlex").split(command.example)
        assert words[0] == command.name
        command_parser(command, "slipway").parse_intermixed_args(words[1:])
        assert len(command.summary) <= 58


def test_what_a_job_has_used() -> None:
    used = {"workerSeconds": 1200, "gpuSeconds": 0, "cost": "0.6000", "currency": "EUR", "energyKwh": "0.0333"}
    told = {name: text for name, text in usage({"usage": used, "pool": "a", "storage": "file:///s"}) if text}
    assert told == {
        "Workers": "20m of worker time",
        "Cost": "0.6000 EUR",
        "Energy": "0.0333 kWh",
        "Pool": "a",
        "Storage": "file:///s",
    }
    assert [text for _, text in usage({}) if text] == []
