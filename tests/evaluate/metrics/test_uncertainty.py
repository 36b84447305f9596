"""Intervals cover what they say, tests reject what they should, and nothing crashes at the edges."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from slipway_api.metrics import METRICS, SuiteKind
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import ChoiceScore, GenerationScore, ModelingScore, ScoredExample
from slipway_jobs.evaluate.metrics import REGISTRY, compare
from slipway_jobs.evaluate.metrics.f1 import F1Macro, F1Micro
from slipway_jobs.evaluate.metrics.latency import resampled_percentiles
from slipway_jobs.evaluate.metrics.precision import PrecisionMacro, PrecisionMicro
from slipway_jobs.evaluate.metrics.recall import RecallMacro, RecallMicro
from slipway_jobs.evaluate.metrics.uncertainty import mcnemar, wilson

from .conftest import chosen, compute, context, documents, timed, written


def coverage(name: Any, truth: float, samples: list[list[ScoredExample]], kind: SuiteKind) -> float:
    inside = 0
    for examples in samples:
        low, high = compute(name, examples, kind).intervals["0.9"]
        inside += low <= truth <= high
    return inside / len(samples)


def test_intervals_of_accuracy_cover_the_true_share() -> None:
    draws = random.Random(0)
    truth = compute("accuracy", chosen(draws, 20_000), "multipleChoice").value
    samples = [chosen(draws, 60) for _ in range(300)]
    assert 0.85 <= coverage("accuracy", truth, samples, "multipleChoice") <= 0.95


def test_intervals_of_perplexity_cover_though_tokens_of_a_document_are_alike() -> None:
    draws = random.Random(1)
    truth = compute("perplexity", documents(draws, 20_000), "languageModeling").value
    samples = [documents(draws, 60) for _ in range(300)]
    assert 0.84 <= coverage("perplexity", truth, samples, "languageModeling") <= 0.96


def test_intervals_of_a_bootstrap_cover() -> None:
    draws = random.Random(2)
    truth = compute("f1Macro", chosen(draws, 20_000), "multipleChoice").value
    samples = [chosen(draws, 80) for _ in range(150)]
    assert 0.82 <= coverage("f1Macro", truth, samples, "multipleChoice") <= 0.97


CONFUSION = (PrecisionMacro(), RecallMacro(), F1Macro(), PrecisionMicro(), RecallMicro(), F1Micro())


def test_each_resample_is_scored_as_scikit_learn_scores_it() -> None:
    """Also where a rare label is absent from it."""
    examples = [*chosen(random.Random(8), 30), *chosen(random.Random(9), 2, labels=("rare", "rarer"))]
    rng, absent = np.random.default_rng(0), 0
    for _ in range(30):
        weights = np.bincount(rng.integers(0, len(examples), len(examples)), minlength=len(examples))
        drawn = [e.choice for e, n in zip(examples, weights, strict=True) if e.choice for _ in range(n)]
        gold, predicted = [s.labels[s.gold] for s in drawn], [s.labels[s.predicted] for s in drawn]
        absent += len({*gold, *predicted}) < 5
        theirs: list[float] = []
        for average in ("macro", "micro"):
            theirs += precision_recall_fscore_support(gold, predicted, average=average, zero_division=0)[:3]
        rows = CONFUSION[0].statistics(examples, context("multipleChoice"))
        assert [float(metric.value(weights @ rows)) for metric in CONFUSION] == pytest.approx(theirs, abs=1e-9)
    assert absent > 5


def test_rare_labels_do_not_pull_the_interval_below_the_score() -> None:
    """Five labels that are right once each are absent from a third of the resamples: the score is 1 in all of them."""
    sure = [replace(e, choice=replace(e.choice, log_likelihoods=(0.0, -9.0))) for e in chosen(random.Random(10), 60)]
    examples = []
    for place, example in enumerate(sure):
        assert example.choice is not None
        label = f"rare-{place}" if place < 5 else "common"
        examples.append(replace(example, choice=replace(example.choice, labels=(label, "never"), gold=0)))
    for name in ("f1Macro", "precisionMacro", "recallMacro"):
        score = compute(name, examples, "multipleChoice")  # type: ignore[arg-type]
        assert (score.value, score.intervals["0.95"]) == (1.0, (1.0, 1.0))


@pytest.mark.parametrize("percent", [0, 37, 50, 95, 100])
def test_a_resampled_percentile_is_numpys_of_the_times_that_were_drawn(percent: float) -> None:
    rng = np.random.default_rng(0)
    requests = [rng.exponential(size=size) for size in (3, 0, 1, 7, 2)]
    counts = rng.integers(0, 3, size=(50, len(requests)))
    counts[0] = 0
    counts[1] = [0, 4, 0, 0, 0]
    found = resampled_percentiles(requests, counts, percent)
    assert np.isnan(found[:2]).all()
    for value, times in zip(found[2:], counts[2:], strict=True):
        drawn = np.concatenate([np.tile(one, n) for one, n in zip(requests, times, strict=True)])
        assert value == pytest.approx(np.percentile(drawn, percent), abs=1e-12)


def test_wilson_is_scipys() -> None:
    for right, examples in ((0, 5), (3, 10), (99, 100), (50, 50)):
        low, high = stats.binomtest(right, examples).proportion_ci(0.95, method="wilson")
        assert wilson(right / examples, examples, 0.95) == pytest.approx((low, high), abs=1e-9)


def test_mcnemar_looks_at_the_examples_that_differ() -> None:
    ours, theirs = np.array([1.0] * 10 + [0.0] * 3 + [1.0] * 50), np.array([0.0] * 10 + [1.0] * 3 + [1.0] * 50)
    assert mcnemar(ours, theirs) == pytest.approx(stats.binomtest(10, 13).pvalue)
    assert mcnemar(ours, ours) == 1.0


def better(examples: list[ScoredExample], draws: random.Random, share: float) -> list[ScoredExample]:
    """The same examples, some of the wrong ones put right."""
    found = []
    for example in examples:
        score = example.choice
        assert score is not None
        if draws.random() < share:
            likelihoods = list(score.log_likelihoods)
            likelihoods[score.gold] = max(likelihoods) + 1
            score = replace(score, log_likelihoods=tuple(likelihoods))
        found.append(replace(example, choice=score))
    return found


@pytest.mark.parametrize("name", ["accuracy", "f1Macro", "calibrationError"])
def test_a_real_difference_is_found_and_none_is_not(name: Any) -> None:
    draws = random.Random(3)
    examples = chosen(draws, 300)
    improved = better(examples, draws, 0.3)
    found = compare(name, improved, examples, context("multipleChoice"))
    assert found.p_value is not None
    same = compare(name, examples, examples, context("multipleChoice"))
    assert same.difference == 0
    assert same.p_value == pytest.approx(1.0)
    if name != "calibrationError":
        assert found.difference > 0
        assert found.p_value < 0.01
        low, high = found.intervals["0.95"]
        assert 0 < low < found.difference < high


def test_paired_losses_are_compared_document_by_document() -> None:
    draws = random.Random(4)
    ours = documents(draws, 100)
    worse = []
    for example in ours:
        assert example.modeling is not None
        more = replace(example.modeling, nll=example.modeling.nll * 1.05 + draws.gauss(0, 0.5))
        worse.append(replace(example, modeling=more))
    found = compare("perplexity", worse, ours, context("languageModeling"))
    assert found.test == "paired t"
    assert found.p_value is not None
    assert found.p_value < 1e-6  # though the two perplexities' own intervals overlap widely
    ours_high = compute("perplexity", ours, "languageModeling").intervals["0.95"][1]
    theirs_low = compute("perplexity", worse, "languageModeling").intervals["0.95"][0]
    assert ours_high > theirs_low


def test_false_alarms_of_the_paired_bootstrap_are_rare() -> None:
    draws, alarms = random.Random(5), 0
    for _ in range(60):
        examples = chosen(draws, 80)
        other = [
            replace(e, choice=replace(e.choice, log_likelihoods=tuple(draws.gauss(-5, 2) for _ in range(3))))
            for e in examples
            if e.choice
        ]
        again = [
            replace(e, choice=replace(e.choice, log_likelihoods=tuple(draws.gauss(-5, 2) for _ in range(3))))
            for e in examples
            if e.choice
        ]
        p_value = compare("f1Macro", other, again, context("multipleChoice")).p_value
        assert p_value is not None
        alarms += p_value < 0.05
    assert alarms <= 8


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    examples = written(random.Random(6), 40)
    metric = REGISTRY["bleu"]
    first, again = (metric.compute(examples, context("generation", seed=1)) for _ in range(2))
    assert first == again
    assert first.intervals != metric.compute(examples, context("generation", seed=2)).intervals


def test_a_bootstrap_of_ten_thousand_examples_takes_no_second_count() -> None:
    draws = random.Random(7)
    one = written(draws, 100, references=1)
    examples = [replace(e, index=i, id=str(i)) for i, e in enumerate(one * 100)]
    score = compute("bleu", examples, "generation")
    assert score.method == "bootstrap"
    assert score.standard_error is not None
    assert score.standard_error < compute("bleu", one, "generation").standard_error / 5  # type: ignore[operator]


MAKERS: dict[str, Any] = {
    "languageModeling": documents,
    "multipleChoice": chosen,
    "generation": written,
    "latency": timed,
}


@pytest.mark.parametrize(("name", "kind"), [(m.name, k) for m in METRICS for k in m.kinds])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_examples_never_crash(name: Any, kind: Any, count: int) -> None:
    examples = [replace(e, perturbed=e.score, fields={"team": "x"}) for e in MAKERS[kind](random.Random(8), count)]
    score = REGISTRY[name].compute(examples, context(kind, "team"))
    if count == 1:
        assert score.standard_error is None
    difference = compare(name, examples, examples, context(kind, "team"))
    assert difference.difference == 0 or math.isnan(difference.difference)


@pytest.mark.parametrize(("name", "kind"), [(m.name, m.kinds[0]) for m in METRICS])
def test_no_examples_is_an_error(name: Any, kind: Any) -> None:
    with pytest.raises(UserError, match="there are no"):
        compute(name, [], kind)


def test_all_equal_examples_have_no_spread() -> None:
    score = GenerationScore("same", ("same",), 1, "stop")
    examples = [ScoredExample(i, str(i), generation=score) for i in range(9)]
    assert compute("tokenF1", examples, "generation").intervals["0.95"] == (1.0, 1.0)
    assert compute("chrf", examples, "generation").standard_error == 0


@pytest.mark.parametrize("nll", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named(nll: float) -> None:
    examples = [*documents(random.Random(9), 3), ScoredExample(3, "d3", modeling=ModelingScore(nll, 4, 9))]
    with pytest.raises(UserError, match="example 3 has a loss of") as caught:
        compute("perplexity", examples, "languageModeling")
    assert caught.value.reason == "LossNotFinite"


def test_a_choice_that_is_no_number_is_named() -> None:
    score = ChoiceScore((math.nan, -1.0), (1, 1), ("a", "b"), 0)
    with pytest.raises(UserError, match="example 0"):
        compute("accuracy", [ScoredExample(0, "x", choice=score)], "multipleChoice")


def test_a_missing_reference_is_named() -> None:
    example = ScoredExample(7, "x", generation=GenerationScore("words", (), 1, "stop"))
    with pytest.raises(UserError, match="example 7 has no reference"):
        compute("bleu", [example], "generation")


def test_unpaired_examples_are_refused() -> None:
    with pytest.raises(UserError, match="not scored on the same examples"):
        compare("accuracy", chosen(random.Random(0), 3), chosen(random.Random(0), 4), context("multipleChoice"))
