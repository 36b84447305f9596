"""Task files that come by URI: what is refused, and that nothing of it is run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_api.evaljob import Benchmark
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.benchmark import prepare
from slipway_jobs.evaluate.benchmark_engine import EngineScorer
from slipway_jobs.evaluate.benchmark_files import fetch_tasks

from .task_files import CHOICE, choice_rows, write_rows, write_task

FIELD = "suites[0].benchmark"


def refused(tmp_path: Path, uri: Path | str) -> UserError:
    with pytest.raises(UserError) as caught:
        prepare(Benchmark(uri=str(uri)), suite="b", field=FIELD, work=tmp_path / "work")
    return caught.value


def test_functions_are_refused_with_their_line(tmp_path: Path, tasks: Path) -> None:
    """The harness would import the module; here it is never touched."""
    witness = tmp_path / "witness"
    (tasks / "evil.py").write_text(f"open({str(witness)!r}, 'w')\ndef f(*a): return 'x'\n")
    text = yaml.safe_dump(CHOICE | {"task": "evil"}).replace("'{{choices}}'", "!function evil.f")
    (tasks / "evil.yaml").write_text(text)
    line = text.splitlines().index("doc_to_choice: !function evil.f") + 1
    error = refused(tmp_path, tasks / "evil.yaml")
    assert error.reason == "BenchmarkCodeRefused"
    assert f"{FIELD}.uri: " in error.message and f"evil.yaml, line {line}: the tag !function" in error.message
    assert refused(tmp_path, tasks).message == error.message  # one bad file in a directory
    assert not witness.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary aGk="]
)
def test_other_tags_are_refused(tmp_path: Path, tag: str) -> None:
    (tmp_path / "t.yaml").write_text(f"task: t\nprocess: {tag}\n")
    error = refused(tmp_path, tmp_path / "t.yaml")
    assert (error.reason, "line 2" in error.message) == ("BenchmarkCodeRefused", True)


def test_templates_run_in_a_sandbox(tmp_path: Path, tasks: Path, scorer: EngineScorer) -> None:
    """The harness's own environment would hand out Python's builtins."""
    witness = tmp_path / "witness"
    attack = "{{ cycler.__init__.__globals__.os.system('touch " + str(witness) + "') }}"
    write_task(tasks / "evil.yaml", task="evil", **(CHOICE | {"doc_to_text": attack}))
    error = refused(tmp_path, tasks / "evil.yaml")
    assert (error.reason, "SecurityError" in error.message) == ("BenchmarkInvalid", True)
    assert not witness.exists()
    import lm_eval.utils  # noqa: PLC0415

    assert lm_eval.utils.apply_template(attack, {}) == "0"  # what it would have been
    assert witness.exists()


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"process_docs": "f"}, "BenchmarkCodeRefused", "process_docs is refused"),
        ({"class": "f"}, "BenchmarkCodeRefused", "class is refused"),
        ({"unsafe_code": True}, "BenchmarkCodeRefused", "unsafe_code is refused"),
        ({"use_prompt": "promptsource:x"}, "BenchmarkCodeRefused", "use_prompt is refused"),
        ({"fewshot_config": {"process_docs": "f"}}, "BenchmarkCodeRefused", "fewshot_config.process_docs is refused"),
        ({"dataset_path": "owner/name"}, "BenchmarkCodeRefused", "must lie beside it"),
        ({"dataset_path": "pandas"}, "BenchmarkCodeRefused", "must lie beside it"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "BenchmarkCodeRefused", "hf_evaluate is refused"),
        ({"metric_list": [{"metric": "./metric.py"}]}, "BenchmarkInvalid", "the harness has no './metric.py'"),
        ({"metric_list": [{"metric": "acc", "aggregation": "x"}]}, "BenchmarkInvalid", "the harness has no 'x'"),
        ({"dataset_kwargs": {"data_files": "../secret.jsonl"}}, "BenchmarkInvalid", "leads out of"),
        ({"dataset_kwargs": {"data_files": "/etc/passwd"}}, "BenchmarkInvalid", "relative path"),
        ({"dataset_kwargs": {"data_files": "https://example.com/x"}}, "BenchmarkInvalid", "relative path"),
        ({"dataset_kwargs": {"data_files": "data/*.jsonl"}}, "BenchmarkInvalid", "is a pattern"),
        ({"dataset_kwargs": {"data_files": "data/none.jsonl"}}, "BenchmarkDataUnavailable", "there is no file"),
        ({"dataset_kwargs": {"data_files": "x", "trust_remote_code": True}}, "BenchmarkInvalid", "is refused"),
        ({"dataset_kwargs": {}}, "BenchmarkInvalid", "name the files"),
        ({"include": "../other.yaml"}, "BenchmarkInvalid", "leads out of"),
        ({"include": "none.yaml"}, "BenchmarkInvalid", "no such file"),
        ({"include": "evil.yaml"}, "BenchmarkInvalid", "include each other"),
        ({"test_split": "nope"}, "BenchmarkInvalid", "names of fields and splits"),
        ({"doc_to_text": "{{nope}}"}, "BenchmarkInvalid", "'nope' is undefined"),
        ({"doc_to_text": "{{question"}, "BenchmarkInvalid", "TemplateSyntaxError"),
        ({"no_such_key": 1}, "BenchmarkInvalid", "no_such_key"),
        ({"output_type": "poetry"}, "BenchmarkInvalid", "poetry"),
    ],
)
def test_what_is_wrong_has_a_reason(
    tmp_path: Path, tasks: Path, changes: dict[str, Any], reason: str, words: str
) -> None:
    write_task(tasks / "evil.yaml", task="evil", **(CHOICE | changes))
    error = refused(tmp_path, tasks / "evil.yaml")
    assert error.reason == reason, error.message
    assert words in error.message
    assert f"{FIELD}.uri" in error.message


def test_groups_are_checked_throughout(tmp_path: Path, tasks: Path) -> None:
    """A task that a group defines or overrides in place has no more rights; an unknown one is named with near ones."""
    inner = {"group": "inner", "task": [{"task": "colours", "dataset_path": "owner/name"}]}
    write_task(tasks / "group.yaml", group="outer", task=["writes", inner])
    error = refused(tmp_path, tasks)
    assert (error.reason, "task[1].task[0].dataset_path" in error.message) == ("BenchmarkCodeRefused", True)
    write_task(tasks / "group.yaml", group="outer", task=["color", "writes"])
    error = refused(tmp_path, tasks)
    assert (error.reason, "did you mean colours" in error.message) == ("BenchmarkNotFound", True)


def test_files_that_are_no_tasks(tmp_path: Path) -> None:
    """Nothing there, no YAML, no mapping, nothing to run, data without a row, a bomb of aliases."""
    assert refused(tmp_path, tmp_path / "none").reason == "BenchmarkNotFound"
    bad = tmp_path / "bad.yaml"
    for text, words in (
        ("task: [", "line"),
        ("- a\n", "must be a mapping"),
        ("task: &a [*a]\n", "an alias of itself"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + _bomb() + "task: t\n", "stand for too much"),
    ):
        bad.write_text(text)
        error = refused(tmp_path, bad)
        assert (error.reason, words in error.message) == ("BenchmarkInvalid", True), error.message
    bad.write_text("output_type: multiple_choice\n")
    assert refused(tmp_path, bad).reason == "BenchmarkNotFound"
    bad.write_bytes(b"\xff\xfe\x00")
    assert refused(tmp_path, bad).reason == "BenchmarkInvalid"
    write_rows(tmp_path / "data" / "choices.jsonl", [])
    write_rows(tmp_path / "data" / "more.jsonl", choice_rows(2))
    write_task(bad, task="t", **CHOICE)
    assert refused(tmp_path, bad).reason == "BenchmarkInvalid"


def _bomb() -> str:
    letters = "abcdefghij"
    pairs = itertools.pairwise(letters)
    return "".join(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairs)


def test_a_store_that_is_not_local(tmp_path: Path, tasks: Path, scorer: EngineScorer) -> None:
    """Task and data are fetched through the storage layer."""
    import fsspec  # noqa: PLC0415

    remote = fsspec.filesystem("memory")
    for path in tasks.rglob("*"):
        if path.is_file():
            remote.pipe_file(f"/bench/{path.relative_to(tasks)}", path.read_bytes())
    uri = "memory://bench/colours.yaml"
    bench = prepare(Benchmark(uri=uri), suite="b", field=FIELD, work=tmp_path / "work")
    local = prepare(Benchmark(uri=str(tasks / "colours.yaml")), suite="b", field=FIELD, work=tmp_path / "other")
    assert bench.digest == local.digest
    assert bench.run(scorer) == local.run(scorer)
    files = fetch_tasks(uri, tmp_path / "third", field=FIELD)
    assert files.names == ("colours",)
    assert sorted(p.name for p in (tmp_path / "third" / "data").rglob("*.jsonl")) == ["choices.jsonl", "more.jsonl"]
