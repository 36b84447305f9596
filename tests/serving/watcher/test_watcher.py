"""From captured requests to alarms, state, snapshots and the report; and what happens when something is away."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from slipway_api.references import ModelReference
from slipway_api.trainjob import DataSource
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.reference import FOLDER, build_profile
from slipway_serving.watcher import watcher as module
from slipway_serving.watcher.watcher import Watcher

from .conftest import WINDOW, Clock, Signals, Start, batch, document, feed, prompts, save_tokenizer, write_reference


def texts_of(folder: Path) -> set[str]:
    return {text for file in folder.glob("*.parquet") for text in pq.read_table(file)["text"].to_pylist()}


def drifted(start: Start) -> Watcher:
    """Four windows of what the model was made for, then two of something else."""
    watcher = start()
    feed(watcher, prompts("prose", 4 * WINDOW), name="quiet")
    assert watcher.status().active == []
    feed(watcher, prompts("code", 2 * WINDOW), name="other")
    return watcher


def test_quiet_traffic_is_quiet_and_another_domain_is_found(start: Start) -> None:
    watcher = drifted(start)
    status = watcher.status()
    assert (status.windows, status.requests, status.dropped, status.problem) == (6, 6 * WINDOW, 0, None)
    assert "input.tokenRanks" in status.active
    assert {alarm.window for alarm in status.alarms} <= {4, 5}
    alarm = next(alarm for alarm in status.alarms if alarm.signal == "input.tokenRanks")
    assert alarm.window == 4
    assert (alarm.kind, alarm.test) == ("data", "jensenShannon")
    assert float(alarm.effect) > float(alarm.threshold)
    assert float(alarm.p_value or "1") < 1e-3
    told = watcher.take(batch([]))
    assert told["windows"] == 6
    assert told["alarms"] == len(status.alarms)
    assert told["signals"]["input.tokenRanks"][1] is True


def test_an_alarm_takes_a_snapshot_that_is_whole_and_disjoint(start: Start) -> None:
    snapshot = drifted(start).status().snapshot
    assert snapshot is not None
    train, held_out = texts_of(Path(snapshot.uri, "train")), texts_of(Path(snapshot.uri, "held-out"))
    assert (len(train), len(held_out)) == (snapshot.examples, snapshot.held_out)
    assert not train & held_out
    assert 0.1 < len(held_out) / (len(train) + len(held_out)) < 0.3
    assert set(prompts("code", WINDOW)) <= train | held_out
    assert not any("what the model said" in text for text in train | held_out)
    lines = "".join(
        f"{path}\0{hashlib.sha256(Path(snapshot.uri, path).read_bytes()).hexdigest()}\n"
        for path in ("held-out/part-0.parquet", "train/part-0.parquet")
    )
    assert snapshot.digest == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


@pytest.mark.parametrize("redact", [True, False])
def test_redaction_is_a_choice(start: Start, redact: bool) -> None:
    watcher = start(redact=redact)
    texts = [f"{text} ask me@example.org" for text in prompts("prose", WINDOW)]
    feed(watcher, [*texts, *prompts("code", WINDOW)])
    snapshot = watcher.status().snapshot
    assert snapshot is not None
    kept = texts_of(Path(snapshot.uri, "train")) | texts_of(Path(snapshot.uri, "held-out"))
    assert any("me@example.org" in text for text in kept) is not redact


def test_feedback_joins_by_id_and_its_corrections_are_learnt(start: Start) -> None:
    watcher = start()
    texts = prompts("prose", WINDOW - 1)
    feed(watcher, texts)
    entry = {"request_id": "r-3", "corrected": "the right answer, ask me@example.org", "version": "v-1"}
    other = {"request_id": "r-4", "corrected": "of another version", "version": "v-2"}
    bad = {"request_id": "r-5", "rating": float("nan"), "version": "v-1"}
    heard = [{"key": f"f/{number}", "feedback": one} for number, one in enumerate([entry, other, bad])]
    watcher.take({"replica": "one", "records": heard, "dropped": 0})
    feed(watcher, prompts("code", WINDOW + 1), name="other")
    snapshot = watcher.status().snapshot
    assert snapshot is not None
    texts_kept = texts_of(Path(snapshot.uri, "train")) | texts_of(Path(snapshot.uri, "held-out"))
    assert texts[3] + "the right answer, ask [email]" in texts_kept
    assert texts[3] not in texts_kept
    assert texts[4] in texts_kept


def test_labels_and_errors_are_compared_with_the_first_ones(start: Start) -> None:
    watcher = start()

    def hear(label: str, rating: float, count: int) -> None:
        records = [
            {"key": f"{label}{n}", "feedback": {"request_id": "x", "label": label, "rating": rating, "version": "v-1"}}
            for n in range(count)
        ]
        watcher.take({"replica": "one", "records": records, "dropped": 0})
        watcher.step()

    hear("good", 1, 400)
    hear("quite good", 1, 5)
    assert watcher.status().active == []
    hear("bad", -1, 100)
    kinds = {alarm.kind for alarm in watcher.status().alarms}
    assert kinds == {"label", "concept"}


def test_a_killed_watcher_goes_on_and_says_nothing_twice(start: Start) -> None:
    killed = drifted(start)
    before = killed.status()
    again = start()
    assert again.status() == before
    feed(again, prompts("code", WINDOW, start=5000), name="later")
    after = again.status()
    assert after.windows == before.windows + 1
    assert {alarm.id for alarm in after.alarms} >= {alarm.id for alarm in before.alarms}
    assert len({(alarm.signal, alarm.test) for alarm in after.alarms}) == len(after.alarms)


def test_a_batch_that_comes_twice_counts_once(start: Start) -> None:
    watcher = start()
    for _ in range(2):
        feed(watcher, prompts("prose", 30))
    assert watcher.status().requests == 30


def test_another_version_and_other_settings_are_kept_apart(start: Start) -> None:
    watcher = drifted(start)
    watcher.take(batch(prompts("code", 50), name="candidate", version="v-2"))
    watcher.step()
    assert watcher.status().requests == 6 * WINDOW
    other = start(window_requests=2 * WINDOW)
    assert (other.status().windows, other.status().alarms) == (0, [])


def test_storage_away_stops_nothing_and_is_caught_up(start: Start, tmp_path: Path) -> None:
    watcher = start()
    feed(watcher, prompts("prose", WINDOW))
    folder = tmp_path / "drift"
    shutil.move(folder, tmp_path / "elsewhere")
    folder.write_text("a file where a directory should be")
    feed(watcher, prompts("code", WINDOW), name="other")
    status = watcher.status()
    assert status.windows == 2
    assert status.alarms
    assert status.snapshot is None
    folder.unlink()
    shutil.move(tmp_path / "elsewhere", folder)
    feed(watcher, prompts("code", WINDOW, start=3000), name="more")
    assert watcher.status().snapshot is not None
    assert start().status().windows == 3
    assert len(list((folder / "v-1" / "windows").glob("requests-*.parquet"))) == 3


def test_a_tiny_window_is_not_judged(start: Start) -> None:
    clock = Clock()
    watcher = start(clock)
    feed(watcher, prompts("code", 20))
    clock.now += 4000
    watcher.step()
    status = watcher.status()
    assert (status.windows, status.alarms, status.active) == (0, [], [])
    assert start().status().requests == 20


def test_a_reference_of_another_tokenizer_is_refused_by_name(start: Start, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    save_tokenizer(folder, size=350)
    watcher = start(model=ModelReference(uri=str(folder)))
    problem = watcher.status().problem or ""
    assert "made with tokenizer sha256:" in problem
    assert "spec.drift.reference.sources" in problem
    assert watcher.status().profile == ""


def test_without_a_profile_it_is_built_from_documents_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tokenizer(tmp_path / "foreign")
    reference = ModelReference(uri=str(folder))
    assert "no reference profile" in (start(model=reference).status().problem or "")
    source = tmp_path / "documents"
    source.mkdir()
    for number in range(60):
        (source / f"{number}.txt").write_text(document("prose", number))
    first = start(model=reference, sources=[DataSource(uri=str(source))])
    assert first.status().problem is None
    feed(first, prompts("prose", WINDOW))
    assert first.status().windows == 1
    monkeypatch.setattr("slipway_serving.watcher.reference.build_profile", None)  # it is read, not made again
    assert start(model=reference, sources=[DataSource(uri=str(source))]).status().profile == first.status().profile


def test_what_finds_the_queue_full_is_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUE", 25)
    watcher = start()
    watcher.take(batch(prompts("prose", 40), dropped=7))
    assert watcher.status().dropped == 15 + 7


def test_features_alone_keep_no_text(start: Start, tmp_path: Path) -> None:
    watcher = start(content="features")
    feed(watcher, prompts("prose", WINDOW) + prompts("code", WINDOW))
    assert watcher.status().alarms
    assert watcher.status().snapshot is None
    assert not (tmp_path / "drift" / "snapshots").exists()


def test_chats_are_compared_by_what_was_said(start: Start) -> None:
    watcher = start()
    sent = batch(prompts("prose", WINDOW))
    for record in sent["records"]:
        record["messages"] = [{"role": "user", "content": record.pop("prompt")}]
    watcher.take(sent)
    watcher.step()
    assert (watcher.status().windows, watcher.status().active) == (1, [])


class Knows:
    """A model that knows its held-out requests about equally well."""

    def losses(self, texts: Sequence[str]) -> list[float]:
        draws = random.Random(0)
        return [draws.gauss(2, 0.3) for _ in texts[:300]]

    def outputs(self, texts: Sequence[str]) -> dict[str, Any]:
        shares = {"quantiles": [0.0, 1.0], "tokens": [7, 31], "entropy": [0.125, 2.5]}
        return {"prompts": 64, "maxTokens": 32, "ended": 9, **shares}


@pytest.fixture
def knowing(tmp_path: Path, start: Start) -> Watcher:
    """A watcher whose reference has losses of a part of its requests, and the model's own answers."""
    folder = save_tokenizer(tmp_path / "knowing")
    texts = [(str(number), document("prose", number)) for number in range(120)]
    profile = build_profile(load_backend(folder), texts[:60], held_out=texts[60:], model=Knows())
    assert np.isfinite(profile.sample.numbers["input.loss"]).sum() == 300 < profile.sample.rows
    (folder / FOLDER).mkdir()
    profile.write(folder / FOLDER)
    return start(model=ModelReference(uri=str(folder)))


def told_with(loss: float, entropy: float) -> Signals:
    draws = random.Random(1)
    return lambda _: {"loss": draws.gauss(loss, 0.3), "entropy": draws.gauss(entropy, 0.2)}


def test_the_model_knows_its_requests_less_well_though_they_look_the_same(knowing: Watcher) -> None:
    feed(knowing, prompts("prose", 6 * WINDOW), name="quiet", signals=told_with(2, 1))
    assert {"input.loss", "output.entropy"} <= knowing._history.points.keys()
    assert knowing.status().active == []
    feed(knowing, prompts("prose", 2 * WINDOW, start=3000), name="other", signals=told_with(2.3, 1.2))
    assert {(alarm.kind, alarm.signal) for alarm in knowing.status().alarms} == {
        ("data", "input.loss"),
        ("prediction", "output.entropy"),
    }
    page = Path(knowing.status().report or "").read_text()
    assert "64 held-out requests, at temperature 1 and up to 32 tokens (9 ended before)" in page
    assert "<td>output.entropy</td><td class=n>0.125</td><td class=n>2.5</td>" in page


def test_that_the_model_knows_its_requests_better_is_no_alarm(knowing: Watcher) -> None:
    """As it does requests like its training documents: the reference's losses are of held-out ones."""
    feed(knowing, prompts("prose", 8 * WINDOW), name="quiet", signals=told_with(1.4, 1))
    assert (knowing.status().windows, knowing.status().active, knowing.status().alarms) == (8, [], [])
    assert knowing._history.points["input.loss"][-1].effect == 0


def test_what_an_engine_cannot_tell_is_left_out_and_no_alarm(knowing: Watcher) -> None:
    feed(knowing, prompts("prose", 6 * WINDOW))
    assert (knowing.status().windows, knowing.status().active) == (6, [])
    assert not {"input.loss", "output.entropy"} & knowing._history.points.keys()
    assert "input.loss: 0 values, 50 are needed" in Path(knowing.status().report or "").read_text()


def test_the_report_is_one_page_with_every_signal(start: Start) -> None:
    watcher = drifted(start)
    page = Path(watcher.status().report or "").read_text()
    assert page.count("<svg") == len(watcher._history.points) > 5
    assert "Drifted now: " in page
    assert "http" not in page.replace("http-equiv", "")
    assert "jensenShannon" in page


def test_a_model_directory_with_a_reference_of_its_own(tmp_path: Path, start: Start) -> None:
    folder = save_tokenizer(tmp_path / "mine")
    write_reference(folder)
    (folder / "reference" / "profile.npz").write_bytes(b"cut short")
    reference = ModelReference(uri=str(folder))
    assert "is not the file that profile.json names" in (start(model=reference).status().problem or "")
