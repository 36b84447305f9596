"""One worker of an evaluation: a whole model, and the shards that it is given. Runs in a Ray actor; imports no Ray.

What goes wrong leaves it as a value, not as an exception: the driver must know whether a suite, the run or the process
has failed, and an exception that crosses processes arrives as something else.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from slipway_api.run import EvalRunSpec
from slipway_jobs.errors import JobError, OutOfMemory
from slipway_jobs.evaluate.benchmark_engine import Part
from slipway_jobs.evaluate.dataset import Example
from slipway_jobs.evaluate.score_store import ScoreKey, ScoreStore
from slipway_jobs.model_files import model_directory
from slipway_jobs.storage import Storage
from slipway_jobs.train.failures import UNEXPECTED, job_error

Which = Literal["model", "baseline"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done:
    """What a call gave, and how long it took."""

    value: Any
    seconds: float


@dataclass(frozen=True)
class Failed:
    """Why a call gave nothing."""

    error: JobError


class EvalWorker:
    """Scores what it is asked, one call after the other. `rank` is for messages."""

    def __init__(self, run: str, rank: int) -> None:
        self._run = EvalRunSpec.model_validate_json(run)
        self._rank = rank
        self._which: Which | None = None
        self._model: Any = None
        # A progress bar is for a terminal; in a log it is one endless line.
        os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

    def load(self, which: Which) -> Done | Failed:
        """Load the model or the baseline; the other one is let go before. The value is the number of parameters."""
        return self._guarded(lambda: self._load(which).parameters)

    def score(self, which: Which, key: ScoreKey, shard: int, suite: int, examples: Sequence[Example]) -> Done | Failed:
        """Score a shard of a suite and commit it. The value is the number of examples."""

        def work() -> int:
            from slipway_jobs.evaluate.scoring.engine import score  # noqa: PLC0415

            model = self._load(which)
            scored = score(model, self._run.suites[suite], examples, seed=self._run.seed)
            ScoreStore(Storage(self._run.results, field="results"), key).write_shard(shard, scored)
            return len(scored)

        return self._guarded(work)

    def answer(self, which: Which, part: Part) -> Done | Failed:
        """Answer a part of a benchmark's requests. The value is the list of answers."""

        def work() -> list[Any]:
            from slipway_jobs.evaluate.benchmark_engine import answer  # noqa: PLC0415

            return answer(self._load(which), part)

        return self._guarded(work)

    def _load(self, which: Which) -> Any:
        if self._which == which:
            return self._model
        from slipway_jobs.evaluate.scoring.model import ScoringModel  # noqa: PLC0415 - imports torch

        self._which, self._model = None, None
        gc.collect()  # two models at once may not fit
        run = self._run
        reference = run.model if which == "model" else run.baseline
        assert reference is not None
        with model_directory(reference, field=which) as (directory, where):
            self._model = ScoringModel.load(
                directory,
                where,
                batch_tokens=run.batch_tokens,
                precision=run.precision,
                gpu=run.workers.resources.gpu > 0,
                field=which,
            )
        self._which = which
        return self._model

    def _guarded(self, work: Callable[[], Result]) -> Done | Failed:
        started = time.monotonic()
        try:
            return Done(work(), time.monotonic() - started)
        except BaseException as error:
            failure = job_error(error, self._rank)
            if isinstance(failure, OutOfMemory):
                failure = OutOfMemory(
                    "OutOfMemory",
                    f"worker {self._rank} ran out of memory while it scored; lower batchTokens, or give workers more "
                    "memory (workers.resources)",
                )
            if failure.reason == UNEXPECTED:
                traceback.print_exc(file=sys.stderr)
            return Failed(failure)
