"""The work of an evaluation, in order: models, suites, stored scores, missing scores, metrics, results.

A suite that cannot be measured fails with its reason and the others go on; the run fails only when none is left, or
when what it stands on fails: the model, the workers, the storage. Everything is stored before it is spoken of, under
names that say what it is, so a run that is killed anywhere is continued by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from slipway_api.evaljob import MeasuredModel, Suite
from slipway_api.references import ModelReference
from slipway_api.run import EvalRunSpec, Outcome, RunEnd
from slipway_jobs.data.cache import Cache
from slipway_jobs.errors import JobError, UserError
from slipway_jobs.evaluate import suite_metrics
from slipway_jobs.evaluate.benchmark_store import read_benchmark, store_benchmark
from slipway_jobs.evaluate.dataset import Example, OpenSuite, examples, open_suite, shards
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.publish import publish
from slipway_jobs.evaluate.score_store import ScoreKey, ScoreStore, shard_name
from slipway_jobs.evaluate.tracker import Tracker
from slipway_jobs.evaluate.worker import Done, Failed, Which
from slipway_jobs.lean_transformers import lean_transformers
from slipway_jobs.model_files import count_parameters, directory_digest, model_directory
from slipway_jobs.reporting import Stage
from slipway_jobs.storage import Storage

if TYPE_CHECKING:
    from slipway_jobs.evaluate.benchmark import PreparedBenchmark
    from slipway_jobs.evaluate.pool import Call, WorkerPool


class Host(Protocol):
    """What an evaluation asks of the process that it runs in."""

    def stage(self, stage: Stage) -> None:
        """The run has come to that stage."""
        ...

    def say(self, text: str) -> None:
        """A line for the log."""
        ...

    def connect(self) -> None:
        """Join the Ray cluster and wait for room."""
        ...


@dataclass
class SuiteRun:
    """A suite on its way. `stores` are those of the models that it is measured on."""

    position: int
    suite: Suite
    opened: OpenSuite
    stores: dict[Which, ScoreStore]
    stored: bool  # every score was there before this run
    finished: bool = False  # its metrics are final
    gave_up: bool = False  # the baseline cannot be scored: no comparison
    examples: list[Example] = field(default_factory=list)
    shards: list[range] = field(default_factory=list)
    missing: dict[Which, list[int]] = field(default_factory=dict)  # shards that are still to be scored
    warnings: list[str] = field(default_factory=list)
    benchmark: PreparedBenchmark | None = None
    samples: dict[Which, bytes] = field(default_factory=dict)  # of a benchmark: its documents as parquet
    scored: dict[Which, list[ScoredExample]] = field(default_factory=dict)


class Evaluation:
    """One evaluation, from the spec to its results."""

    def __init__(self, run: EvalRunSpec, storage: Storage, tracker: Tracker, host: Host) -> None:
        self._run = run
        self._storage = storage
        self._tracker = tracker
        self._host = host
        self._results = Storage(run.results, field="results")
        self._models: dict[Which, MeasuredModel] = {}
        self._pool: WorkerPool | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="slipway-evaluate-", ignore_cleanup_errors=True)

    def run(self) -> RunEnd:
        """Do it all; how the run ends. Raises JobError where it ends badly."""
        self._host.stage("PreparingData")
        self._measure("model", self._run.model)
        if self._run.baseline is not None:
            self._measure("baseline", self._run.baseline)
        try:
            suites = self._open()
            for suite in suites:
                if suite.stored:
                    self._finish(suite)
            if missing := [suite for suite in suites if not suite.stored]:
                self._score(missing)
            for suite in suites:
                self._finish(suite)
        finally:
            if self._pool is not None:
                with contextlib.suppress(Exception):  # they end with the driver in any case
                    self._pool.close()
            self._scratch.cleanup()
        return self._end(suites)

    # --- before any worker ----------------------------------------------------------------------------------------

    def _measure(self, which: Which, reference: ModelReference) -> None:
        """Find out which model it is."""
        with model_directory(reference, field=which) as (directory, where):
            model = MeasuredModel(uri=where, digest=directory_digest(directory), parameters=count_parameters(directory))
        self._models[which] = model
        self._tracker.measured(which, model)
        self._host.say(f"{which}: {where}, {model.parameters:,} parameters, {model.digest[:23]}")

    def _open(self) -> list[SuiteRun]:
        """Every suite whose data are there; the others have failed. Benchmarks come last: while this process imports
        their harness, which takes seconds, the workers that the others need start already."""
        fingerprints = Cache(Storage(self._run.cache, field="cache"), progress=self._host.say).fingerprints
        found: list[SuiteRun] = []
        order = sorted(enumerate(self._run.suites), key=lambda place: place[1].kind == "benchmark")
        for position, suite in order:
            if suite.kind == "benchmark" and self._pool is None and not all(one.stored for one in found):
                self._start_workers(found)
            with self._failing(suite):
                if suite.kind != "benchmark":
                    suite_metrics.wanted(self._run, suite)
                opened = open_suite(self._run, position, fingerprints, self._host.say)
                benchmark = self._prepare(suite, opened) if suite.kind == "benchmark" else None
                if benchmark is not None:
                    both = hashlib.sha256(f"{opened.digest} {benchmark.digest}".encode()).hexdigest()
                    opened = replace(opened, digest=both)
                    self._tracker.size(suite.name, benchmark.documents)
                keys = {which: ScoreKey(m.digest, opened.digest, self._run.seed) for which, m in self._models.items()}
                stores = {which: ScoreStore(self._results, key) for which, key in keys.items()}
                stored = all(store.is_complete() for store in stores.values())
                found.append(SuiteRun(position, suite, opened, stores, stored, benchmark=benchmark))
        return sorted(found, key=lambda one: one.position)

    def _prepare(self, suite: Suite, opened: OpenSuite) -> PreparedBenchmark:
        """Tasks and documents of a benchmark."""
        from slipway_jobs.evaluate.benchmark import prepare  # noqa: PLC0415 - imports lm_eval

        assert suite.benchmark is not None
        return prepare(
            suite.benchmark,
            suite=suite.name,
            field=f"{opened.field}.benchmark",
            work=Path(self._scratch.name, suite.name),
            cache=Storage(self._run.cache, field="cache"),
            few_shot=opened.few_shot,
            seed=self._run.seed,
            confidences=self._run.confidences,
            progress=self._host.say,
        )

    @contextlib.contextmanager
    def _failing(self, suite: Suite) -> Iterator[None]:
        """A user's error inside ends the suite, not the run."""
        try:
            yield
        except UserError as error:
            self._tracker.fail(suite.name, error)

    # --- scores ---------------------------------------------------------------------------------------------------

    def _start_workers(self, suites: Sequence[SuiteRun]) -> WorkerPool:
        """Join the cluster and start the workers. They import and load while this process does other things."""
        self._host.connect()
        from slipway_jobs.evaluate.pool import WorkerPool  # noqa: PLC0415 - imports ray

        pool = self._pool = WorkerPool(self._run, say=self._host.say)
        pool.prepare(next(w for w in self._models if any(not s.stores[w].is_complete() for s in suites)))
        return pool

    def _score(self, suites: Sequence[SuiteRun]) -> None:
        """Have every score made that is not there."""
        pool = self._pool or self._start_workers(suites)
        for suite in suites:
            if suite.benchmark is None:
                with self._failing(suite.suite):
                    self._read(suite)
        self._host.stage("Evaluating")
        for which in self._models:
            waiting = [suite for suite in suites if suite.missing.get(which)]
            # What measures time comes last: it needs the machine to itself.
            waiting.sort(key=lambda suite: suite.suite.kind == "latency")
            pool.work(self._calls(which, waiting), self._settle)
            for suite in suites:
                if suite.benchmark is None:
                    self._commit(suite, which)
                elif not self._tracker.failed(suite.suite.name) and not suite.stores[which].is_complete():
                    self._ask(suite, suite.benchmark, which, pool)

    def _read(self, suite: SuiteRun) -> None:
        """The examples of a suite, and which shards of it are missing."""
        suite.examples = examples(suite.opened, self._run.seed)
        suite.shards = shards(suite.examples)
        self._tracker.size(suite.suite.name, len(suite.examples))
        for which, store in suite.stores.items():
            suite.missing[which] = []
            for number, part in enumerate(suite.shards):
                ids = [suite.examples[place].id for place in part]
                if store.shard_is_there(number, ids, part.start):
                    self._tracker.advance(suite.suite.name, which, len(part), fresh=False)
                else:
                    suite.missing[which].append(number)

    def _calls(self, which: Which, suites: Sequence[SuiteRun]) -> list[Call]:
        """Every shard that is missing; the largest of a suite first, so that none is left alone at the end."""
        from slipway_jobs.evaluate.pool import Call  # noqa: PLC0415

        return [
            Call(
                "score",
                (which, suite.stores[which].key, number, suite.position, _part(suite, number)),
                group=suite.suite.name,
                alone=suite.suite.kind == "latency",
                about=(suite, which),
            )
            for suite in suites
            if not self._tracker.failed(suite.suite.name)
            for number in sorted(suite.missing[which], key=lambda number: -_size(suite, number))
        ]

    def _settle(self, call: Call, result: Done | Failed) -> bool:
        """What a shard's end means. False gives the rest of its suite up."""
        suite, which = call.about
        if isinstance(result, Done):
            self._tracker.begin(suite.suite.name)
            self._tracker.advance(suite.suite.name, which, result.value)
            suite.missing[which].remove(call.arguments[2])
            if not suite.missing[which]:
                for each in suite.stores:
                    self._commit(suite, each)
                self._finish(suite)  # its scores are known while the workers go on with the next
            return not self._tracker.failed(suite.suite.name)
        self._give_up(suite, which, result.error)
        return False

    def _give_up(self, suite: SuiteRun, which: Which, error: JobError) -> None:
        """A suite that cannot be scored with a model. Raises the error where it is not the suite's."""
        # What the model is, and not what it is asked, is the whole run's affair.
        if not isinstance(error, UserError) or error.reason in _OF_THE_MODEL:
            raise error
        if which == "baseline":
            suite.gave_up = True
            suite.warnings.append(f"no comparison with the baseline ({error.reason}): {error.message}")
        else:
            self._tracker.fail(suite.suite.name, error)

    def _commit(self, suite: SuiteRun, which: Which) -> None:
        if suite.shards and not suite.missing.get(which, [0]) and not suite.stores[which].is_complete():
            paths = [shard_name(number) for number in range(len(suite.shards))]
            suite.stores[which].commit(paths, examples=len(suite.examples), kind=suite.suite.kind)

    def _ask(self, suite: SuiteRun, benchmark: PreparedBenchmark, which: Which, pool: WorkerPool) -> None:
        """Run a benchmark's harness here; its questions go to the workers."""
        lean_transformers()
        from transformers import AutoTokenizer  # noqa: PLC0415

        from slipway_jobs.evaluate.benchmark_engine import EngineScorer  # noqa: PLC0415

        name, told = suite.suite.name, 0

        def progress(done: int, _total: int) -> None:
            nonlocal told
            self._tracker.advance(name, which, done - told)
            told = done

        self._tracker.begin(name)
        try:
            reference = self._run.model if which == "model" else self._run.baseline
            assert reference is not None
            with model_directory(reference, field=which) as (directory, _):
                tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
                scores = benchmark.run(EngineScorer(lambda parts: pool.ask(which, parts), tokenizer), progress)
        except JobError as error:
            self._give_up(suite, which, error)
            return
        store_benchmark(suite.stores[which], scores, documents=benchmark.documents, kind="benchmark")

    # --- metrics and results --------------------------------------------------------------------------------------

    def _finish(self, suite: SuiteRun) -> None:
        """Metrics of a suite from its stored scores. It has come to its end when no model has any left to score."""
        name = suite.suite.name
        if suite.finished or self._tracker.failed(name):
            return
        with self._failing(suite.suite):
            suite.finished = not any(suite.missing.values()) or suite.gave_up
            if suite.benchmark is not None:
                self._finish_benchmark(suite, suite.benchmark)
                return
            for which, store in suite.stores.items():
                if store.is_complete():
                    suite.scored[which] = store.read()
            ours = suite.scored["model"]
            if suite.stored:  # so nothing has been read
                self._tracker.size(name, len(ours))
                for which, scored in suite.scored.items():
                    self._tracker.advance(name, which, len(scored), fresh=False)
                self._tracker.cached(name)
            metrics, warnings = suite_metrics.compute(self._run, suite.suite, ours, suite.scored.get("baseline"))
            self._tracker.scores(name, metrics)
            if suite.finished:
                suite.warnings.extend(warnings)
                self._tracker.succeed(name, suite.warnings)

    def _finish_benchmark(self, suite: SuiteRun, benchmark: PreparedBenchmark) -> None:
        """The same for a benchmark, whose metrics are the harness's own."""
        from slipway_jobs.evaluate.benchmark_scores import compare  # noqa: PLC0415

        name, whole = suite.suite.name, {}
        for which, store in suite.stores.items():
            if store.is_complete():
                whole[which], suite.samples[which] = read_benchmark(store)
                if suite.stored:
                    self._tracker.advance(name, which, benchmark.documents, fresh=False)
        if suite.stored:
            self._tracker.cached(name)
        ours = whole["model"]
        theirs = whole.get("baseline")
        self._tracker.scores(name, ours.metrics if theirs is None else compare(ours, theirs, self._run.confidences))
        suite.warnings.extend([*benchmark.warnings, *ours.warnings])
        self._tracker.succeed(name, suite.warnings)

    def _end(self, suites: Sequence[SuiteRun]) -> RunEnd:
        statuses = self._tracker.suites
        failed = [status for status in statuses if status.state == "Failed"]
        if len(failed) == len(statuses):
            first = failed[0]
            many = "" if len(failed) == 1 else f"all {len(failed)} suites failed; the first, {first.name}: "
            raise UserError(first.reason or "SuiteFailed", f"{many}{first.message}")
        self._host.stage("SavingResults")
        results = publish(self._run, self._storage, suites, self._tracker)
        message = f"measured {len(statuses) - len(failed)} of {len(statuses)} suites; results at {results.uri}"
        if failed:
            message += f"; failed: {', '.join(status.name for status in failed)}"
        return RunEnd(outcome=Outcome.SUCCEEDED, reason="ResultsSaved", message=message, results=results)


_OF_THE_MODEL = frozenset(
    {
        "ModelNotFound", "NoSafetensors", "UnknownArchitecture", "ModelUnreadable", "TokenizerNotFound",
        "TokenizerUnusable", "VocabularyMismatch",
    }
)  # fmt: skip


def _size(suite: SuiteRun, number: int) -> int:
    return sum(example.size for example in _part(suite, number))


def _part(suite: SuiteRun, number: int) -> list[Example]:
    return [suite.examples[place] for place in suite.shards[number]]
