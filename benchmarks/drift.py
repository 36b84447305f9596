"""Drift detection on text that every machine with Python has: false alarms, power, speed, beside fixed thresholds.

    python benchmarks/drift.py [--quick] [--seed 0]

Data sets: Python source and English prose of the standard library (docstrings, the language reference in pydoc_data),
C headers of CPython, and a mixture. Each is cut into texts of a few hundred to two thousand characters and split at
random: a fifth counts the vocabulary, two fifths are the reference, the rest is the traffic, drawn with replacement.
What models and users add (answer lengths, entropies, finish reasons, labels, errors) is drawn from fixed distributions,
since no model is part of this.

The rival is what Evidently 0.7 documents as its defaults, written down here from those rules: with a reference of at
most 1,000 rows KS p < 0.05 and chi-square (two values: z test) p < 0.05, with a larger one Wasserstein distance over
the reference's standard deviation >= 0.1 and Jensen-Shannon distance >= 0.1; the data set drifts when half of the
columns do. It gets the same columns of the same windows, without the token ranks and embeddings, which are no columns.

Every figure is a count over seeded draws, but for the times. `--quick` is a smoke test of the script, no measurement.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import re
import string
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import jensenshannon
from tokenizers import ByteLevelBPETokenizer

from slipway_jobs.drift.columns import Columns
from slipway_jobs.drift.detector import Detector, Settings, Verdict
from slipway_jobs.drift.features import Vocabulary, answer_features, byte_tokens_of, request_features
from slipway_jobs.drift.profile import ReferenceProfile
from slipway_jobs.drift.statistics import (
    chi_square,
    jensen_shannon,
    kolmogorov_smirnov,
    kullback_leibler,
    population_stability,
)
from slipway_jobs.drift.statistics.maximum_mean_discrepancy import maximum_mean_discrepancy
from slipway_jobs.drift.statistics.wasserstein import wasserstein
from slipway_jobs.drift.streams.adwin import Adwin
from slipway_jobs.drift.streams.page_hinkley import PageHinkley, run_length_threshold
from slipway_jobs.drift.windows import Window, WindowRule

LABELS, LABEL_SHARES = ["a", "b", "c", "d"], [0.4, 0.3, 0.2, 0.1]
SHIFTED_LABELS = [0.25, 0.3, 0.2, 0.25]  # 15 points from the first to the last
ERROR_RATE = 0.05
EMBEDDING_WIDTH = 32
SIZES = (200, 500, 1000, 2000)
MOST_TEXTS = 16_000  # of one domain


# --- data ---------------------------------------------------------------------------------------------------------


def chunks(text: str, generator: np.random.Generator) -> Iterator[str]:
    """Runs of whole lines, of a random length."""
    lines: list[str] = []
    wanted, length = 0.0, 0
    for line in text.splitlines(keepends=True):
        if not lines:
            wanted, length = float(np.clip(generator.lognormal(6.3, 0.6), 120, 2000)), 0
        lines.append(line)
        length += len(line)
        if length >= wanted:
            yield "".join(lines)
            lines = []


def sources() -> dict[str, Iterator[str]]:
    """The files of each domain."""
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "lib2to3", "idlelib", "__pycache__"}
    python = sorted(path for path in library.rglob("*.py") if not skipped & set(path.relative_to(library).parts))
    headers = sorted(Path(sysconfig.get_path("include")).rglob("*.h"))

    def docstrings() -> Iterator[str]:
        for path in python:
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            found = []
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                    words = ast.get_docstring(node) or ""
                    if len(words) > 80 and ">>>" not in words:
                        found.append(words)
                elif (
                    path.parent.name == "pydoc_data" and isinstance(node, ast.Constant) and isinstance(node.value, str)
                ):
                    found.append(node.value)  # the language reference, a string for each topic
            yield "\n".join(found)

    return {
        "python": (
            path.read_text(encoding="utf-8", errors="replace") for path in python if path.parent.name != "pydoc_data"
        ),
        "english": docstrings(),
        "c": (path.read_text(encoding="utf-8", errors="replace") for path in headers),
    }


def with_typos(text: str, rate: float, generator: np.random.Generator) -> str:
    """One letter swapped, dropped, doubled or replaced in this share of the words."""

    def spoil(match: re.Match[str]) -> str:
        word = match.group()
        if generator.random() >= rate:
            return word
        place, how = int(generator.integers(len(word) - 1)), int(generator.integers(4))
        letter = string.ascii_lowercase[int(generator.integers(26))]
        middle = (
            word[place + 1] + word[place],
            word[place + 1],
            word[place] * 2 + word[place + 1],
            letter + word[place + 1],
        )
        return word[:place] + middle[how] + word[place + 2 :]

    return re.sub(r"[A-Za-z]{3,}", spoil, text)


@dataclass
class Domain:
    """Features of the reference and of a pool of traffic, with the vocabulary that both were made with."""

    name: str
    vocabulary: Vocabulary
    reference: Columns
    traffic: Columns
    texts: list[str]  # of the traffic


class Featurizer:
    """Texts to columns, with one tokenizer for all."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self.tokenizer = ByteLevelBPETokenizer()
        self.tokenizer.train_from_iterator(texts, vocab_size=4096, show_progress=False)
        self.size = self.tokenizer.get_vocab_size()
        self.bytes = byte_tokens_of(self.tokenizer.get_vocab())
        self.directions = np.random.default_rng(seed).normal(size=(self.size, EMBEDDING_WIDTH)).astype(np.float32)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def vocabulary(self, texts: list[str]) -> Vocabulary:
        return Vocabulary.count(self.tokens(texts), self.size, self.bytes)

    def columns(self, texts: list[str], vocabulary: Vocabulary) -> Columns:
        records = []
        for text, ids in zip(texts, self.tokens(texts), strict=True):
            embedding = self.directions[ids].mean(0) if ids else None
            records.append(request_features(text, ids, vocabulary, embedding=embedding))
        return Columns.of(records)


def answers(
    rows: int,
    generator: np.random.Generator,
    labels: list[float] = LABEL_SHARES,
    error_rate: float = ERROR_RATE,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[str | None]]]:
    """What model and users add to requests."""
    numbers = {
        "output.tokens": np.minimum(512, np.floor(generator.lognormal(4.5, 0.8, rows))),
        "output.entropy": generator.gamma(4, 0.3, rows),
        "concept.error": (generator.random(rows) < error_rate).astype(np.float64),
    }
    categories: dict[str, list[str | None]] = {
        "label": generator.choice(LABELS, rows, p=labels).tolist(),
        "output.finishReason": generator.choice(["stop", "length"], rows, p=[0.85, 0.15]).tolist(),
        "output.refusal": generator.choice(["no", "yes"], rows, p=[0.98, 0.02]).tolist(),
    }
    return numbers, categories


def with_answers(columns: Columns, generator: np.random.Generator, **shift: Any) -> Columns:
    numbers, categories = answers(columns.rows, generator, **shift)
    return Columns(columns.rows, {**columns.numbers, **numbers}, categories, columns.ranks, columns.embeddings)


def joined(parts: list[Columns]) -> Columns:
    """Rows of all parts, which have the same features."""
    return Columns(
        sum(part.rows for part in parts),
        {name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers},
        {},
        np.concatenate([part.ranks for part in parts if part.ranks is not None]),
        np.concatenate([part.embeddings for part in parts if part.embeddings is not None]),
    )


def prepare(seed: int, most: int) -> tuple[dict[str, list[str]], dict[str, Domain], Featurizer]:
    """All texts by domain, and each domain with its reference."""
    generator = np.random.default_rng(seed)
    texts: dict[str, list[str]] = {}
    for name, files in sources().items():
        found = [chunk for file in files for chunk in chunks(file, generator)]
        texts[name] = [found[place] for place in generator.permutation(len(found))[:most].tolist()]
    least = min(len(found) for found in texts.values())
    texts["mixture"] = [text for found in list(texts.values()) for text in found[:least]]
    texts["mixture"] = [texts["mixture"][place] for place in generator.permutation(len(texts["mixture"])).tolist()]
    featurizer = Featurizer(texts["python"][: most // 4], seed)
    domains = {}
    for name, found in texts.items():
        fifth = len(found) // 5
        vocabulary = featurizer.vocabulary(found[:fifth])
        domains[name] = Domain(
            name,
            vocabulary,
            featurizer.columns(found[fifth : 3 * fifth], vocabulary),
            featurizer.columns(found[3 * fifth :], vocabulary),
            found[3 * fifth :],
        )
    return texts, domains, featurizer


# --- the rival ----------------------------------------------------------------------------------------------------


class FixedThresholds:
    """Evidently's defaults for numbers and categories, on raw columns."""

    def __init__(self, reference: Columns, rows: int) -> None:
        self.reference = reference.take(np.arange(min(rows, reference.rows)))
        self.small = self.reference.rows <= 1000

    def drifted(self, window: Columns) -> list[bool]:
        """For each column."""
        numbers = [self._number(self.reference.numbers[name], window.numbers[name]) for name in window.numbers]
        categories = [
            self._category(self.reference.categories[name], window.categories[name]) for name in window.categories
        ]
        return numbers + categories

    def _number(self, reference: NDArray[np.float64], window: NDArray[np.float64]) -> bool:
        reference, window = reference[np.isfinite(reference)], window[np.isfinite(window)]
        if len(np.unique(np.concatenate([reference, window]))) <= 5:
            return self._category(reference.astype(str).tolist(), window.astype(str).tolist())
        if self.small:
            return bool(stats.ks_2samp(reference, window, method="asymp").pvalue < 0.05)
        return bool(stats.wasserstein_distance(reference, window) / max(float(reference.std()), 0.001) >= 0.1)

    def _category(self, reference: list[Any], window: list[Any]) -> bool:
        names = sorted(set(reference) | set(window))
        if len(names) < 2:
            return False
        first = np.array([reference.count(name) for name in names], dtype=float)
        second = np.array([window.count(name) for name in names], dtype=float)
        if not self.small:
            return bool(jensenshannon(first / first.sum(), second / second.sum()) >= 0.1)
        if len(names) == 2:
            p, q, n, m = first[0] / first.sum(), second[0] / second.sum(), first.sum(), second.sum()
            pooled = (first[0] + second[0]) / (n + m)
            z = (p - q) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
            return bool(2 * stats.norm.sf(abs(z)) < 0.05)
        return bool(stats.chisquare(second, first * second.sum() / first.sum()).pvalue < 0.05) if first.all() else True


# --- what is measured ---------------------------------------------------------------------------------------------


class Watch:
    """One detector with its profile; `fresh` forgets what it has seen, and keeps the thresholds."""

    def __init__(self, domain: Domain, size: int, generator: np.random.Generator, seed: int) -> None:
        reference = with_answers(domain.reference, generator)
        self.profile = ReferenceProfile("benchmark", domain.vocabulary, reference, reference.rows, seed)
        self.detector = Detector(self.profile, WindowRule(size, size), Settings())
        self._start = self.detector.state()
        self.rivals = {"1000 rows": FixedThresholds(reference, 1000), "all rows": FixedThresholds(reference, 10**9)}

    def fresh(self) -> None:
        self.detector.restore(self._start)

    def judge(self, index: int, columns: Columns) -> Verdict:
        summary = self.profile.summary()
        summary.add_columns(columns, f"{index}/")
        for value in columns.numbers["concept.error"].tolist():
            self.detector.observe_error(value)
        return self.detector.observe(Window(index, float(index), float(index + 1), summary))


def rival_says(watch: Watch, columns: Columns) -> dict[str, bool]:
    """Two references, two rules."""
    said = {}
    for name, rival in watch.rivals.items():
        drifted = rival.drifted(columns)
        said[f"fixed, {name}, half of the columns"] = sum(drifted) >= len(drifted) / 2
        said[f"fixed, {name}, any column"] = any(drifted)
    return said


def false_alarms(domains: dict[str, Domain], windows: int, seed: int) -> list[dict[str, Any]]:
    """Stationary traffic: in how many windows somebody cried."""
    rows = []
    for name, domain in domains.items():
        for size in SIZES:
            generator = np.random.default_rng([seed, 1, size, len(name)])
            watch = Watch(domain, size, generator, seed)
            count: dict[str, int] = {"slipway": 0}
            signals: dict[str, int] = {}
            for index in range(windows):
                drawn = domain.traffic.take(generator.integers(domain.traffic.rows, size=size))
                columns = with_answers(drawn, generator)
                verdict = watch.judge(index, columns)
                count["slipway"] += verdict.drifted
                for signal in verdict.active:
                    signals[signal] = signals.get(signal, 0) + 1
                for rule, said in rival_says(watch, columns).items():
                    count[rule] = count.get(rule, 0) + said
            rows.append({"traffic": name, "size": size, "windows": windows, **count, "signals": signals})
            print(json.dumps(rows[-1]), flush=True)
    return rows


Shift = Callable[[int, np.random.Generator], Columns]


def shifts(
    domains: dict[str, Domain], texts: dict[str, list[str]], featurizer: Featurizer, seed: int
) -> dict[str, tuple[str, Shift]]:
    """By name: the domain of the reference, and traffic after the change."""
    generator = np.random.default_rng([seed, 2])
    result: dict[str, tuple[str, Shift]] = {}

    def mixed(base: str, other: str, share: float) -> Shift:
        domain = domains[base]
        foreign = featurizer.columns(texts[other][:2000], domain.vocabulary)

        def draw(size: int, generator: np.random.Generator) -> Columns:
            others = int(generator.binomial(size, share))
            own = domain.traffic.take(generator.integers(domain.traffic.rows, size=size - others))
            new = foreign.take(generator.integers(foreign.rows, size=others))
            return with_answers(joined([own, new]), generator)

        return draw

    for base, other in (("python", "c"), ("python", "english"), ("english", "python"), ("english", "c")):
        result[f"20% {other} in {base}"] = (base, mixed(base, other, 0.2))

    for base in ("python", "english"):
        spoilt = [with_typos(text, 0.1, generator) for text in domains[base].texts[:3000]]
        pool = featurizer.columns(spoilt, domains[base].vocabulary)

        def typos(size: int, generator: np.random.Generator, pool: Columns = pool) -> Columns:
            return with_answers(pool.take(generator.integers(pool.rows, size=size)), generator)

        result[f"typos in 10% of the words, {base}"] = (base, typos)

    def answered(**shift: Any) -> Shift:
        pool = domains["python"].traffic

        def draw(size: int, generator: np.random.Generator) -> Columns:
            return with_answers(pool.take(generator.integers(pool.rows, size=size)), generator, **shift)

        return draw

    result["label prior moved by 15 points"] = ("python", answered(labels=SHIFTED_LABELS))
    result["error rate 5% to 10%"] = ("python", answered(error_rate=0.1))
    return result


def power(
    domains: dict[str, Domain], cases: dict[str, tuple[str, Shift]], repeats: int, seed: int, size: int = 500
) -> list[dict[str, Any]]:
    """Three quiet windows, then three after the change: the share of repeats in which it was found, and how soon."""
    rows = []
    watches = {
        base: Watch(domains[base], size, np.random.default_rng([seed, 3]), seed)
        for base in {b for b, _ in cases.values()}
    }
    for number, (name, (base, draw)) in enumerate(cases.items()):
        watch, pool = watches[base], domains[base].traffic
        generator = np.random.default_rng([seed, 4, number])
        found: dict[str, int] = {}
        delays: list[int] = []
        for _ in range(repeats):
            watch.fresh()
            for index in range(3):
                watch.judge(index, with_answers(pool.take(generator.integers(pool.rows, size=size)), generator))
            said: dict[str, bool] = {"slipway": False}
            for index in range(3, 6):
                columns = draw(size, generator)
                if watch.judge(index, columns).drifted and not said["slipway"]:
                    said["slipway"] = True
                    delays.append(index - 2)
                for rule, cried in rival_says(watch, columns).items():
                    said[rule] = said.get(rule, False) or cried
            for rule, hit in said.items():
                found[rule] = found.get(rule, 0) + hit
        rows.append(
            {
                "change": name,
                "repeats": repeats,
                **{rule: round(hits / repeats, 3) for rule, hits in found.items()},
                "medianWindows": float(np.median(delays)) if delays else None,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def cpu_seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The least of some rounds, in CPU time of this process: other processes do not count."""
    best = math.inf
    for _ in range(rounds):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def speed(values: int, seed: int) -> list[dict[str, Any]]:
    """Each statistic at so many values on either side; MMD is quadratic and gets what a window keeps."""
    generator = np.random.default_rng([seed, 5])
    first, second = generator.normal(size=values), generator.normal(0.01, 1, size=values)
    labels, others = generator.integers(8, size=values), generator.integers(8, size=values)
    cloud = generator.normal(size=(768, 32))
    stream = (generator.random(values) < ERROR_RATE).astype(float).tolist()
    adwin = Adwin(1e-4)
    page_hinkley = PageHinkley(ERROR_RATE, 0.02, run_length_threshold(np.array(stream[:10_000]), 0.02, 1e6))
    tests: dict[str, Callable[[], Any]] = {
        "kolmogorovSmirnov": lambda: kolmogorov_smirnov.kolmogorov_smirnov(first, second),
        "populationStability": lambda: population_stability.population_stability_index(first, second),
        "kullbackLeibler": lambda: kullback_leibler.kullback_leibler(first, second),
        "jensenShannon": lambda: jensen_shannon.jensen_shannon(first, second),
        "chiSquare": lambda: chi_square.chi_square(np.bincount(labels), np.bincount(others)),
        "wasserstein": lambda: wasserstein(first, second),
        "wasserstein, one value less": lambda: wasserstein(first, second[1:]),
        "adwin": lambda: [adwin.add(value) for value in stream],
        "pageHinkley": lambda: [page_hinkley.add(value) for value in stream],
    }
    rows = [
        {"statistic": name, "values": values, "cpuSeconds": round(cpu_seconds(work), 3)} for name, work in tests.items()
    ]
    rows.append(
        {
            "statistic": "mmd, 512 against 256, 200 permutations",
            "values": 768,
            "cpuSeconds": round(cpu_seconds(lambda: maximum_mean_discrepancy(cloud[:512], cloud[512:], generator)), 3),
        }
    )
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def capture_cost(domain: Domain, featurizer: Featurizer, seed: int) -> dict[str, Any]:
    """What one request of 2 kB costs: its features, and adding them to the open pane."""
    text = ("".join(domain.texts[:40]))[:2000]
    ids = featurizer.tokens([text])[0]
    entropy, loss = 1.2, 2.5  # the engine gives them
    watch = Watch(domain, 500, np.random.default_rng(seed), seed)
    summary = watch.profile.summary()
    rounds = 2000

    def features() -> None:
        for _ in range(rounds):
            request_features(text, ids, domain.vocabulary, loss=loss).joined(
                answer_features(text, 128, "stop", entropy)
            )

    record = request_features(text, ids, domain.vocabulary, loss=loss).joined(
        answer_features(text, 128, "stop", entropy)
    )

    def adding() -> None:
        for number in range(rounds):
            summary.add(str(number), record)

    row = {
        "characters": len(text),
        "tokens": len(ids),
        "featuresMs": round(cpu_seconds(features) / rounds * 1000, 4),
        "addMs": round(cpu_seconds(adding) / rounds * 1000, 4),
        "windowStateKiB": round(len(json.dumps(summary.state())) / 1024, 1),
        "detectorStateKiB": round(len(json.dumps(watch.detector.state())) / 1024, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["alarms", "power", "speed"], help="a part of it")
    options = parser.parse_args()
    started, cpu = time.perf_counter(), time.process_time()
    busy = round(os.getloadavg()[0], 1)
    texts, domains, featurizer = prepare(options.seed, 4000 if options.quick else MOST_TEXTS)
    sizes = {name: {"reference": d.reference.rows, "traffic": d.traffic.rows} for name, d in domains.items()}
    print(
        json.dumps({"loadBefore": busy, "texts": sizes, "prepareCpuSeconds": round(time.process_time() - cpu, 1)}),
        flush=True,
    )
    if options.only in {None, "alarms"}:
        rows = false_alarms(domains, 10 if options.quick else 150, options.seed)
        total = sum(row["windows"] for row in rows)
        rules = ["slipway", *(rule for rule in rows[0] if rule.startswith("fixed"))]
        per_hundred = {rule: round(100 * sum(row[rule] for row in rows) / total, 2) for rule in rules}
        print(json.dumps({"windows": total, "falseAlarmsPer100Windows": per_hundred}), flush=True)
    if options.only in {None, "power"}:
        power(domains, shifts(domains, texts, featurizer, options.seed), 5 if options.quick else 40, options.seed)
    if options.only in {None, "speed"}:
        speed(100_000 if options.quick else 1_000_000, options.seed)
        capture_cost(domains["python"], featurizer, options.seed)
    print(
        json.dumps(
            {"wallSeconds": round(time.perf_counter() - started), "cpuSeconds": round(time.process_time() - cpu)}
        )
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
