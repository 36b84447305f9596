"""The report: well-formed, complete, self-contained, and safe with whatever the data hold."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from slipway_api.evaljob import Gate
from slipway_api.gates import JudgedGate, Verdict, judge
from slipway_jobs.evaluate.examples import GenerationScore, ScoredExample
from slipway_jobs.evaluate.report import render, write_report
from slipway_jobs.storage import Storage

from .conftest import chosen, documents, timed, written

_VOID = {"meta", "br", "rect", "line", "circle"}
HOSTILE = '</pre><script>alert("x")</script><img src=x onerror=y>'


class Checked(HTMLParser):
    """Every element is closed in order; what is seen is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


def metric(suite: str, name: str, value: str, **more: Any) -> dict[str, Any]:
    intervals = [{"confidence": "0.95", "low": "0.1", "high": "0.9"}]
    whole = {"suite": suite, "metric": name, "value": value, "higherIsBetter": True, "count": 40, "seed": 0}
    return {**whole, "standardError": "0.02", "intervals": intervals, **more}


def document(**changes: Any) -> dict[str, Any]:
    comparison = {"value": "0.4", "difference": "0.2", "pValue": "0.0004", "test": "McNemar (exact)"}
    return {
        "version": 1,
        "name": "check",
        "namespace": "team",
        "seed": 7,
        "precision": "fp32",
        "model": {"uri": "/models/a", "digest": "sha256:aa", "parameters": 1234567},
        "baseline": {"uri": "/models/b", "digest": "sha256:bb", "parameters": 7},
        "suites": [
            {"name": "texts", "state": "Succeeded", "digest": "sha256:tt"},
            {"name": "choices", "state": "Succeeded", "message": "slice team=green has no examples"},
            {"name": "answers", "state": "Succeeded"},
            {"name": "speed", "state": "Succeeded"},
            {"name": "broken", "state": "Failed", "reason": "BenchmarkDataUnavailable", "message": "no network"},
        ],
        "metrics": [
            metric("texts", "perplexity", "12.5", higherIsBetter=False),
            metric("choices", "accuracy", "0.6", baseline=comparison),
            metric("choices", "accuracy", "0.7", slice="team=red"),
            metric("choices", "accuracy", "NaN", slice="team=green", intervals=[]),
            metric("answers", "bleu", "NaN", standardError=None, intervals=[]),
        ],
        "libraries": {"torch": "2"},
        **changes,
    }


def verdict(*gates: dict[str, Any]) -> Verdict:
    """Over the metrics of `document`."""
    whole = document()
    return judge([Gate.model_validate(gate) for gate in gates], whole["metrics"], whole["suites"])


def scored() -> dict[str, Any]:
    draws = random.Random(0)
    return {
        "texts": {"model": documents(draws, 20)},
        "choices": {"model": chosen(draws, 40), "baseline": chosen(draws, 40)},
        "answers": {"model": [replace(e, prompt="Say something: ") for e in written(draws, 30)]},
        "speed": {"model": timed(draws, 10)},
    }


def checked(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = render(document(), scored(), verdict())
    parser = checked(page)
    assert not {"script", "link", "img", "iframe"} & set(parser.seen)
    assert not [name for name, _ in parser.attributes if name.startswith("on") or name in ("src", "href")]
    assert "http" not in page
    assert parser.seen.count("svg") >= 5


def test_it_says_what_was_measured() -> None:
    page = render(document(), scored(), verdict())
    for words in ("team/check", "/models/a", "1,234,567 parameters", "12.5", "BenchmarkDataUnavailable: no network"):
        assert words in page
    assert re.search(r"class='n better'>\+0\.2<", page)
    assert "&lt; 0.001" in page or "< 0.001" in page
    assert "sha256:tt" in page
    assert "slice team=green has no examples" in page


def test_the_verdict_comes_first_with_value_bound_and_threshold() -> None:
    low = {"suite": "texts", "metric": "perplexity", "op": "<=", "value": "20"}
    sure = {"suite": "choices", "metric": "accuracy", "op": ">", "value": "0.5", "confidence": "0.95"}
    gone = {"suite": "broken", "metric": "acc", "op": ">", "value": "0.5"}
    page = render(document(), scored(), verdict(low, sure, gone))
    assert "<strong>Not passed</strong>: 2 of 3 gates fail." in page
    top = page[: page.index("<h2>Scores</h2>")]
    checked(page)
    rows = re.findall(r"<tr><td>(.*?)<br>.*?<td class=n>(.*?)</td><td class=n>(.*?)</td><td class=n>(.*?)</td>", top)
    assert rows == [
        ("choices/accuracy &gt; 0.5 (95%)", "0.6", "0.1", "&gt; 0.5"),
        ("broken/acc &gt; 0.5", "none", "none", "none"),
        ("texts/perplexity &lt;= 20", "12.5", "12.5", "&lt;= 20"),
    ]
    assert "suite broken failed: no network" in top
    assert "<strong>Passed</strong>: all 1 gates hold." in render(document(), scored(), verdict(low))
    assert "No gates were asked for" in render(document(), scored(), verdict())


def test_whatever_data_and_models_say_is_shown_as_text() -> None:
    answer = GenerationScore(HOSTILE, (HOSTILE,) * 2, 3, "length")
    bad = ScoredExample(
        0, "x", fields={HOSTILE: HOSTILE}, generation=replace(answer, references=("right",)), prompt=HOSTILE
    )
    metrics = [metric(HOSTILE, HOSTILE, HOSTILE, slice=HOSTILE)]
    suites = [{"name": HOSTILE, "state": "Succeeded", "message": HOSTILE, "digest": HOSTILE}]
    page = render(
        document(name=HOSTILE, namespace=HOSTILE, suites=suites, metrics=metrics, libraries={HOSTILE: HOSTILE}),
        {HOSTILE: {"model": [bad]}},
        Verdict("False", "GatesFailed", "", (JudgedGate(HOSTILE, False, HOSTILE, HOSTILE, HOSTILE, HOSTILE),)),
    )
    assert not {"script", "img"} & set(checked(page).seen)
    assert "&lt;script&gt;" in page


def test_the_worst_come_first_and_the_right_ones_not_at_all() -> None:
    good = GenerationScore("right", ("right",), 1, "stop")
    near = GenerationScore("right words", ("right word",), 2, "stop")
    wrong = GenerationScore("nothing like it", ("right",), 3, "stop")
    examples = [ScoredExample(i, str(i), generation=score) for i, score in enumerate((good, near, wrong))]
    page = render(
        document(suites=[{"name": "answers", "state": "Succeeded"}]), {"answers": {"model": examples}}, verdict()
    )
    assert page.index("example 2: token F1 0.00") < page.index("example 1: token F1 0.50")
    assert "example 0" not in page


@pytest.mark.parametrize("missing", ["model", "baseline"])
def test_without_a_model_or_examples(missing: str) -> None:
    checked(render(document(**{missing: None}, metrics=[]), {}, verdict()))


def test_it_is_written_as_one_file(tmp_path: Path) -> None:
    write_report(Storage(tmp_path), document(), scored(), verdict())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
