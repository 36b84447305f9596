"""From a suite's spec and data to its examples: what is drawn, what is rendered, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_jobs.data.documents import Row
from slipway_jobs.data.fingerprints import Fingerprints
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate import templates
from slipway_jobs.evaluate.dataset import (
    ChoiceInput,
    Example,
    GenerationInput,
    ModelingInput,
    OpenSuite,
    examples,
    open_suite,
    shards,
)
from slipway_jobs.storage import Storage

from .conftest import make_run, source, write_rows

CHOICE = {"prompt": "{q}?", "choicesField": "options", "answerField": "right"}
ROWS = [{"q": f"q{n}", "options": ["yes", "no"], "right": n % 2, "a": f"answer {n}"} for n in range(12)]


def opened(folder: Path, suite: dict[str, Any], rows: list[dict[str, Any]] | None = None, **changes: Any) -> OpenSuite:
    if rows is not None:
        suite = {"data": source(write_rows(folder / "rows.jsonl", rows)), **suite}
    run = make_run(folder, [{"name": "s", **suite}], folder / "model", **changes)
    return open_suite(run, 0, Fingerprints(Storage(folder / "memo")), lambda _: None)


def made(
    folder: Path, suite: dict[str, Any], rows: list[dict[str, Any]], seed: int = 0, **changes: Any
) -> list[Example]:
    return examples(opened(folder, suite, rows, **changes), seed)


# --- what comes out -----------------------------------------------------------------------------------------------


def test_choices_follow_their_prompt_after_one_space(tmp_path: Path) -> None:
    first, second = made(tmp_path, {"multipleChoice": CHOICE}, ROWS[:2])
    assert first.input == ChoiceInput("q0?", (" yes", " no"), ("yes", "no"), 0)
    assert second.index == 1
    assert second.input.gold == 1  # type: ignore[union-attr]
    spaced = made(tmp_path, {"multipleChoice": {**CHOICE, "prompt": "{q}\nA: "}}, ROWS[:1])
    assert spaced[0].input.choices == ("yes", "no")  # type: ignore[union-attr]


@pytest.mark.parametrize(("answer", "gold"), [("no", 1), (1, 1), ("1", 1), ("yes", 0)])
def test_the_answer_is_a_text_or_an_index(tmp_path: Path, answer: object, gold: int) -> None:
    (example,) = made(tmp_path, {"multipleChoice": CHOICE}, [{**ROWS[0], "right": answer}])
    assert example.input.gold == gold  # type: ignore[union-attr]


def test_labels_of_a_classification(tmp_path: Path) -> None:
    task = {"prompt": "{q}", "choices": ["good", "bad"], "answerField": "right"}
    (example,) = made(tmp_path, {"multipleChoice": task}, [{"q": "fine", "right": "bad"}])
    assert example.input == ChoiceInput("fine", (" good", " bad"), ("good", "bad"), 1)


def test_text_files_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("one document")
    run = {"languageModeling": {}, "data": source(tmp_path / "text"), "slices": [{"field": "file"}]}
    (example,) = examples(opened(tmp_path, run), 0)
    assert example.input == ModelingInput("one document")
    assert example.fields == {"file": "a.txt"}
    pq.write_table(pa.Table.from_pylist([{"q": 1, "a": ["x", "y"]}]), tmp_path / "r.parquet")
    task = {"generation": {"prompt": "{q}+1=", "referenceField": "a"}}
    (asked,) = examples(opened(tmp_path, {**task, "data": source(tmp_path / "r.parquet", format="parquet")}), 0)
    assert asked.input == GenerationInput("1+1=", ("x", "y"))


@given(text=st.text(st.characters(codec="ascii"), max_size=30).filter(lambda text: "{" not in text and "}" not in text))
def test_a_template_without_fields_is_itself(text: str) -> None:
    assert templates.fill(text, Row({}, "here"), "prompt") == text


def test_braces_that_are_no_field() -> None:
    row = Row({"x": 3, "name": "n"}, "here")
    assert templates.fill('{{x}} { "a": {x} } {} {name}', row, "prompt") == '{x} { "a": 3 } {} n'


def test_draws_follow_the_seed(tmp_path: Path) -> None:
    suite = {"multipleChoice": CHOICE, "fewShot": {"count": 2}}
    data = {**source(write_rows(tmp_path / "rows.jsonl", ROWS)), "limit": 5}
    first = examples(opened(tmp_path, {**suite, "data": data}), 1)
    assert first == examples(opened(tmp_path, {**suite, "data": data}), 1)
    other = examples(opened(tmp_path, {**suite, "data": data}), 2)
    assert {one.id for one in first} != {one.id for one in other}
    assert [one.index for one in first] == list(range(5))


@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_solved_example_is_never_the_asked_one(tmp_path: Path, count: int) -> None:
    twin = [*ROWS, {**ROWS[0]}]  # a copy would give the answer away as well
    for example in made(tmp_path, {"multipleChoice": CHOICE, "fewShot": {"count": count}}, twin):
        *solved, asked = example.input.prompt.split("\n\n")  # type: ignore[union-attr]
        assert len(solved) == count
        assert not any(one.startswith(asked) for one in solved)


def test_too_few_rows_for_the_solved_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suites\[0\].fewShot.count: 12 .* only 11") as caught:
        made(tmp_path, {"multipleChoice": CHOICE, "fewShot": {"count": 12}}, ROWS)
    assert caught.value.reason == "FewShotTooFew"


def test_ids_are_those_of_the_rows(tmp_path: Path) -> None:
    before = {one.id for one in made(tmp_path, {"multipleChoice": CHOICE}, ROWS)}
    after = {one.id for one in made(tmp_path, {"multipleChoice": CHOICE}, ROWS[::-1])}
    assert before == after and len(before) == len(ROWS)
    twice = made(tmp_path, {"multipleChoice": CHOICE}, [ROWS[0], ROWS[0]])
    assert twice[1].id == f"{twice[0].id}-2"


# --- what names the scores ----------------------------------------------------------------------------------------


def test_the_digest_is_over_what_decides_a_score(tmp_path: Path) -> None:
    base = {"multipleChoice": CHOICE}
    plain = opened(tmp_path, base, ROWS).digest
    same = [
        opened(tmp_path, {**base, "metrics": ["accuracy"]}, ROWS),  # computed from the scores
        opened(tmp_path, {**base, "name": "other"}, ROWS),
        opened(tmp_path, base, ROWS, workers={"count": 2, "resources": {"cpu": "1"}}),
        opened(tmp_path, base, ROWS, confidences=["0.9", "0.99"]),
    ]
    assert {one.digest for one in same} == {plain}
    others = [
        opened(tmp_path, {"multipleChoice": {**CHOICE, "prompt": "{q}!"}}, ROWS),
        opened(tmp_path, base, ROWS[1:]),
        opened(tmp_path, {**base, "fewShot": {"count": 1}}, ROWS),
        opened(tmp_path, {**base, "slices": [{"field": "q"}]}, ROWS),
        opened(tmp_path, {**base, "perturbations": {}}, ROWS),
        opened(tmp_path, base, ROWS, precision="bf16"),
        opened(tmp_path, base, ROWS, fewShot={"count": 3}),
    ]
    assert len({plain, *(one.digest for one in others)}) == 1 + len(others)


@given(sizes=st.lists(st.integers(1, 200_000), max_size=60))
def test_shards_hold_every_example_once(sizes: list[int]) -> None:
    listed = [Example(n, str(n), "", {}, ModelingInput("x" * size)) for n, size in enumerate(sizes)]
    cut = shards(listed)
    assert [place for part in cut for place in part] == list(range(len(sizes)))
    assert all(len(part) > 0 for part in cut)
    assert len(cut) <= 33


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "row", "reason", "words"),
    [
        ({"multipleChoice": CHOICE}, {"options": ["a", "b"], "right": 0}, "PromptFieldMissing", "no field 'q'"),
        ({"multipleChoice": CHOICE}, {"q": "x", "right": 0}, "ChoicesInvalid", "'options'"),
        ({"multipleChoice": CHOICE}, {"q": "x", "options": ["a"], "right": 0}, "ChoicesInvalid", "two or more"),
        ({"multipleChoice": CHOICE}, {"q": "x", "options": ["a", "b"], "right": 2}, "AnswerInvalid", "'2'"),
        ({"multipleChoice": CHOICE}, {"q": "x", "options": ["a", "b"]}, "AnswerInvalid", "no field 'right'"),
        ({"generation": {"prompt": "{q}", "referenceField": "a"}}, {"q": "x"}, "ReferenceMissing", "'a'"),
        ({"generation": {"prompt": "{q}", "referenceField": "a"}}, {"q": "x", "a": []}, "ReferenceMissing", "'a'"),
        ({"languageModeling": {}}, {"q": "x"}, "DataFieldMissing", "textField"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, suite: dict[str, Any], row: dict[str, Any], reason: str, words: str
) -> None:
    good = {**ROWS[0], "text": "fine"}
    with pytest.raises(UserError) as caught:
        made(tmp_path, suite, [good, good, row])
    assert caught.value.reason == reason
    assert "rows.jsonl:3" in caught.value.message
    assert words in caught.value.message


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row") as caught:
        (tmp_path / "rows.jsonl").write_text("\n\n")
        examples(opened(tmp_path, {"multipleChoice": CHOICE, "data": source(tmp_path / "rows.jsonl")}), 0)
    assert caught.value.reason == "DataEmpty"


def test_a_slice_of_a_field_that_no_row_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'colour'") as caught:
        made(tmp_path, {"multipleChoice": CHOICE, "slices": [{"field": "colour"}]}, ROWS)
    assert caught.value.reason == "SliceFieldMissing"
    # The job's own slices are for whichever suite has the field.
    assert made(tmp_path, {"multipleChoice": CHOICE}, ROWS, slices=[{"field": "colour"}])[0].fields == {}
