"""Every metric agrees with its reference implementation to 1e-6."""

from __future__ import annotations

import collections
import itertools
import math
import random
import re
import string
from typing import Any, get_args

import numpy as np
import pytest
import sacrebleu
import torch
from nltk.translate import meteor_score as nltk_meteor
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import precision_recall_fscore_support

from slipway_api.metrics import MetricName
from slipway_jobs.evaluate.examples import ChoiceScore, GenerationScore, ModelingScore, ScoredExample
from slipway_jobs.evaluate.metrics import REGISTRY

from .conftest import LABELS, chosen, close, compute, documents, timed, written


def test_the_registry_holds_exactly_the_metrics_of_the_api() -> None:
    assert set(REGISTRY) == set(get_args(MetricName))
    assert all(metric.name == name for name, metric in REGISTRY.items())


# --- language modeling --------------------------------------------------------------------------------------------


def test_loss_and_perplexity_are_those_of_transformers() -> None:
    """transformers' own loss over the tokens of all documents together is the token-weighted mean."""
    torch.manual_seed(0)
    logits = [torch.randn(length, 50, dtype=torch.float64) for length in (3, 17, 8)]
    targets = [torch.randint(0, 50, (len(one),)) for one in logits]
    from transformers.loss.loss_utils import fixed_cross_entropy  # noqa: PLC0415

    whole = float(fixed_cross_entropy(torch.cat(logits), torch.cat(targets)))
    examples = []
    for index, (one, target) in enumerate(zip(logits, targets, strict=True)):
        nll = float(torch.nn.functional.cross_entropy(one, target, reduction="sum"))
        examples.append(ScoredExample(index, str(index), modeling=ModelingScore(nll, len(target), 5 * len(target))))
    assert close(compute("loss", examples, "languageModeling").value, whole)
    assert close(compute("perplexity", examples, "languageModeling").value, math.exp(whole))
    assert close(compute("bitsPerByte", examples, "languageModeling").value, whole / math.log(2) / 5)


def test_perplexity_and_bits_per_byte_are_those_of_lm_eval() -> None:
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity  # noqa: PLC0415

    examples = documents(random.Random(0), 30)
    scores = [example.modeling for example in examples if example.modeling]
    theirs = weighted_perplexity([(-s.nll, s.tokens) for s in scores])
    assert close(compute("perplexity", examples, "languageModeling").value, theirs)
    theirs = bits_per_byte([(-s.nll, s.bytes) for s in scores])
    assert close(compute("bitsPerByte", examples, "languageModeling").value, theirs)
    assert compute("perplexity", examples, "languageModeling").count == sum(s.tokens for s in scores)


# --- choices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["Macro", "Micro"])
@pytest.mark.parametrize("labels", [LABELS, ("a", "b"), tuple("abcdefghij")])
def test_precision_recall_and_f1_are_those_of_scikit_learn(average: str, labels: tuple[str, ...]) -> None:
    for seed in range(20):
        draws = random.Random(seed)
        examples = chosen(draws, draws.randint(1, 30), skill=draws.random(), labels=labels)
        gold = [e.choice.labels[e.choice.gold] for e in examples if e.choice]
        predicted = [e.choice.labels[e.choice.predicted] for e in examples if e.choice]
        theirs = precision_recall_fscore_support(gold, predicted, average=average.lower(), zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
            metric: Any = f"{name}{average}"
            assert close(compute(metric, examples, "multipleChoice").value, value), (seed, metric)


def test_accuracies_are_those_of_lm_eval() -> None:
    """lm_eval's `multiple_choice`: acc by the largest log-likelihood, acc_norm by the largest per length."""
    examples = chosen(random.Random(1), 200)
    scores = [e.choice for e in examples if e.choice]
    acc = np.mean([np.argmax(s.log_likelihoods) == s.gold for s in scores])
    acc_norm = np.mean([np.argmax(np.array(s.log_likelihoods) / np.array(s.lengths)) == s.gold for s in scores])
    assert close(compute("accuracy", examples, "multipleChoice").value, float(acc))
    assert close(compute("accuracyNormalized", examples, "multipleChoice").value, float(acc_norm))


def test_the_standard_error_of_accuracy_is_that_of_lm_eval() -> None:
    from lm_eval.api.metrics import mean_stderr  # noqa: PLC0415

    examples = chosen(random.Random(2), 100)
    right = [float(e.choice.predicted == e.choice.gold) for e in examples if e.choice]
    error = compute("accuracy", examples, "multipleChoice").standard_error
    assert error is not None
    assert close(error, mean_stderr(right))


def test_calibration_error_is_that_of_the_paper() -> None:
    """Equation 3 of arXiv:1706.04599, bin by bin, with masks."""
    examples = chosen(random.Random(3), 300)
    scores = [e.choice for e in examples if e.choice]
    confidence = np.array([max(s.probabilities) for s in scores])
    right = np.array([s.predicted == s.gold for s in scores])
    expected = 0.0
    edges = np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert close(compute("calibrationError", examples, "multipleChoice").value, expected)


# --- generation ---------------------------------------------------------------------------------------------------


def squad_f1(answer: str, reference: str) -> tuple[float, float]:
    """(exact, F1) as the evaluation of SQuAD 1.1 defines them, written from its description."""

    def tokens(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    ours, theirs = tokens(answer), tokens(reference)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs), float(ours == theirs)
    if same == 0:
        return 0.0, 0.0
    return float(ours == theirs), 2 * (same / len(ours)) * (same / len(theirs)) / (
        same / len(ours) + same / len(theirs)
    )


def test_exact_match_and_token_f1_are_those_of_squad() -> None:
    examples = written(random.Random(4), 200)
    best = [[squad_f1(s.answer, r) for r in s.references] for e in examples if (s := e.generation)]
    exact = sum(max(pair[0] for pair in one) for one in best) / len(best)
    f1 = sum(max(pair[1] for pair in one) for one in best) / len(best)
    assert close(compute("exactMatch", examples, "generation").value, exact)
    assert close(compute("tokenF1", examples, "generation").value, f1)
    assert 0.1 < exact < f1 < 1


@pytest.mark.parametrize("references", [1, 2])
def test_bleu_and_chrf_are_those_of_sacrebleu(references: int) -> None:
    for seed in range(10):
        draws = random.Random(seed)
        examples = written(draws, draws.choice([1, 2, 25]), references=references)
        answers = [e.generation.answer for e in examples if e.generation]
        streams = [[e.generation.references[i] for e in examples if e.generation] for i in range(references)]
        bleu = sacrebleu.corpus_bleu(answers, streams, force=True).score
        chrf = sacrebleu.corpus_chrf(answers, streams).score
        assert close(compute("bleu", examples, "generation").value, bleu), seed
        assert close(compute("chrf", examples, "generation").value, chrf), seed


@pytest.mark.parametrize("answer", ["", "no word in common", "the", "the cat"])
def test_bleu_and_chrf_at_their_edges(answer: str) -> None:
    score = GenerationScore(answer, ("the cat sat on the mat",), 1, "stop")
    examples = [ScoredExample(0, "0", generation=score)]
    references = [["the cat sat on the mat"]]
    bleu = sacrebleu.corpus_bleu([answer], references, force=True).score
    assert close(compute("bleu", examples, "generation").value, bleu)
    assert close(compute("chrf", examples, "generation").value, sacrebleu.corpus_chrf([answer], references).score)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_rouge_score(name: Any) -> None:
    examples = written(random.Random(5), 50)
    scorer = RougeScorer([name])
    scores = [e.generation for e in examples if e.generation]
    theirs = [max(scorer.score(r, s.answer)[name].fmeasure for r in s.references) for s in scores]
    assert close(compute(name, examples, "generation").value, sum(theirs) / len(theirs))


class NoSynonyms:
    """A WordNet that knows no word: nltk's METEOR is then exact and stem."""

    def synsets(self, word: str) -> list[Any]:
        return []


def nltk_score(answer: str, reference: str) -> float:
    from slipway_jobs.evaluate.metrics.meteor_exact_stem import words  # noqa: PLC0415

    return float(nltk_meteor.single_meteor_score(words(reference), words(answer), wordnet=NoSynonyms()))


def test_meteor_is_that_of_nltk_where_no_word_comes_twice() -> None:
    draws = random.Random(6)
    vocabulary = "the cat sat on mat while two running dogs jumped over lazy foxes , ; !".split()  # noqa: SIM905
    examples, theirs = [], []
    for index in range(200):
        texts = [" ".join(draws.sample(vocabulary, draws.randint(1, 12))) for _ in range(3)]
        answer = draws.choice([texts[0], " ".join(texts[0].split()[::-1]), texts[0].replace("running", "runs"), "cat"])
        examples.append(ScoredExample(index, str(index), generation=GenerationScore(answer, tuple(texts), 1, "stop")))
        theirs.append(max(nltk_score(answer, text) for text in texts))
    value = compute("meteorExactStem", examples, "generation").value
    assert close(value, sum(theirs) / len(theirs))
    assert 0.1 < value < 1


def test_meteor_never_has_more_chunks_than_nltks_greedy_alignment() -> None:
    from slipway_jobs.evaluate.metrics.meteor_exact_stem import meteor, words  # noqa: PLC0415

    better = 0
    for example in written(random.Random(6), 200):
        assert example.generation is not None
        for reference in example.generation.references:
            ours = meteor(words(example.generation.answer), words(reference))
            theirs = nltk_score(example.generation.answer, reference)
            assert ours >= theirs - 1e-9
            better += ours > theirs + 1e-9
    assert better


def fewest_chunks(answer: str, reference: str) -> tuple[int, int]:
    """By trying every alignment: most matches, then fewest chunks."""
    best = (0, 0)

    def extend(place: int, taken: frozenset[int], last: int, matches: int, chunks: int) -> None:
        nonlocal best
        if place == len(answer):
            best = min(best, (-matches, chunks))
            return
        extend(place + 1, taken, -2, matches, chunks)
        for other, word in enumerate(reference):
            if word == answer[place] and other not in taken:
                extend(place + 1, taken | {other}, other, matches + 1, chunks + (other != last + 1))

    extend(0, frozenset(), -2, 0, 0)
    return -best[0], best[1]


def test_meteor_aligns_in_the_fewest_chunks() -> None:
    from slipway_jobs.evaluate.metrics.meteor_exact_stem import align  # noqa: PLC0415

    draws = random.Random(7)
    for _ in range(300):
        answer, reference = ("".join(draws.choices("abc", k=draws.randint(0, 7))) for _ in range(2))
        assert align(answer, reference) == fewest_chunks(answer, reference), (answer, reference)


# --- groups -------------------------------------------------------------------------------------------------------


def test_group_disparity_is_the_gap_between_accuracies() -> None:
    examples = chosen(random.Random(7), 300)
    by_team: dict[str, list[bool]] = {}
    for example in examples:
        assert example.choice is not None
        by_team.setdefault(example.fields["team"], []).append(example.choice.predicted == example.choice.gold)
    accuracies = [sum(team) / len(team) for team in by_team.values()]
    value = compute("groupDisparity", examples, "multipleChoice", "team").value
    assert close(value, max(accuracies) - min(accuracies))


def test_bias_amplification_is_that_of_the_paper() -> None:
    """Equation 3 of arXiv:2102.12594, pair by pair."""
    draws = random.Random(8)
    examples = chosen(draws, 400, skill=0.3)
    rows = [
        (e.fields["team"], e.choice.labels[e.choice.gold], e.choice.labels[e.choice.predicted])
        for e in examples
        if e.choice
    ]
    teams, labels = sorted({row[0] for row in rows}), sorted({row[1] for row in rows} | {row[2] for row in rows})
    total = 0.0
    for team in teams:
        members = [row for row in rows if row[0] == team]
        for label in labels:
            joint = sum(row[1] == label for row in members) / len(rows)
            linked = joint > len(members) / len(rows) * sum(row[1] == label for row in rows) / len(rows)
            delta = (sum(row[2] == label for row in members) - sum(row[1] == label for row in members)) / len(members)
            total += delta if linked else -delta
    expected = total / (len(teams) * len(labels))
    assert close(compute("biasAmplification", examples, "multipleChoice", "team").value, expected)


def test_a_model_that_always_says_what_the_group_is_known_for_amplifies() -> None:
    examples = []
    for index in range(100):
        team, gold = ("red", int(index % 10 < 3)) if index < 50 else ("blue", int(index % 10 >= 3))
        predicted = 0 if team == "red" else 1
        likelihoods = (0.0, -1.0) if predicted == 0 else (-1.0, 0.0)
        score = ChoiceScore(likelihoods, (1, 1), ("cook", "drive"), gold)
        examples.append(ScoredExample(index, str(index), fields={"team": team}, choice=score))
    assert close(compute("biasAmplification", examples, "multipleChoice", "team").value, 0.3)


# --- latency ------------------------------------------------------------------------------------------------------


def test_latencies_are_numpys_percentiles_in_milliseconds() -> None:
    examples = timed(random.Random(9), 40)
    scores = [e.latency for e in examples if e.latency]
    first = [1000 * s.first_token_seconds for s in scores]
    gaps = [1000 * gap for s in scores for gap in s.token_seconds]
    for percent in (50, 95, 99):
        name: Any = f"timeToFirstTokenP{percent}"
        assert close(compute(name, examples, "latency").value, float(np.percentile(first, percent)))
        name = f"interTokenLatencyP{percent}"
        assert close(compute(name, examples, "latency").value, float(np.percentile(gaps, percent)))
    seconds = sum(s.first_token_seconds + sum(s.token_seconds) for s in scores)
    assert close(compute("tokensPerSecond", examples, "latency").value, sum(s.tokens for s in scores) / seconds)
