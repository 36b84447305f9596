"""The `benchmark` suite: a task of lm-evaluation-harness, its own prompts, metrics and errors, on our engine.

Two steps, because a baseline is measured on the same documents: `prepare` finds the tasks and their data (and raises
all that can be wrong with them, before a model is loaded), `PreparedBenchmark.run` scores one model. The harness runs
in one process and asks the `Scorer` for everything at once; the scorer spreads the requests over the run's workers
(benchmark_model.py says why).

What is the harness's stays the harness's: which documents, prompts, filters, aggregates, standard errors, and that
`fewShot.count` does not override a task that is defined for zero examples (a warning says so). What differs:

- templates are rendered in jinja2's sandbox; the harness itself would let one run Python;
- tasks that execute what the model writes, that need images or sound, or whose metric is a script on the hub
  (`evaluate.load`), are refused;
- bootstrapped standard errors take 1,000 draws, not 100,000, and no processes of their own.

lm_eval is imported inside functions: it takes two seconds and pulls in half of the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from slipway_api.evaljob import Benchmark, Confidence, FewShot
from slipway_jobs.errors import JobError, UserError
from slipway_jobs.evaluate.benchmark_files import LocalTasks, fetch_tasks
from slipway_jobs.evaluate.benchmark_index import builtin_tasks, configurations, not_found
from slipway_jobs.evaluate.benchmark_model import Scorer, harness_model
from slipway_jobs.evaluate.benchmark_scores import BenchmarkScores, scores_of
from slipway_jobs.storage import Storage

_BOOTSTRAP_DRAWS = 1000
_FORMAT = 1  # of what is computed here; part of the digest


@dataclass(frozen=True)
class PreparedBenchmark:
    """Tasks with their documents, ready to be asked of any number of models, one after the other."""

    suite: str
    benchmark: Benchmark
    loaded: Mapping[str, Any]  # the harness's TaskDict
    roots: tuple[str, ...]  # tasks and groups that no other group holds, in order
    documents: int
    digest: str  # over everything that decides the scores but the model and the seed
    warnings: tuple[str, ...]
    seed: int
    confidences: tuple[Confidence, ...]
    field: str

    def run(self, scorer: Scorer, progress: Callable[[int, int], None] = lambda done, total: None) -> BenchmarkScores:
        """Measure a model. `progress(done, total)` counts documents; the same model and seed give the same scores.

        Raises UserError LossNotFinite, BenchmarkUnsupported or BenchmarkInvalid, and what the scorer raises.
        """
        from lm_eval.evaluator import evaluate  # noqa: PLC0415

        with _harness_settings(), _no_scripts() as asked:
            self._seed()
            answered = 0
            requests = 0  # known once the harness has built them all, which is before it asks the first

            def advance(count: int) -> None:
                nonlocal answered, requests
                if not requests:
                    requests = sum(len(task.instances) * task.config.repeats for task in self.loaded["tasks"].values())
                answered += count
                progress(self.documents * answered // max(1, requests), self.documents)

            try:
                result = evaluate(
                    lm=harness_model(scorer, seed=self.seed, progress=advance),
                    task_dict=dict(self.loaded),
                    limit=self.benchmark.limit,
                    bootstrap_iters=_BOOTSTRAP_DRAWS,
                    log_samples=True,
                    apply_chat_template=self.benchmark.chat_template,
                    fewshot_as_multiturn=self.benchmark.chat_template,
                )
            except (JobError, OSError, MemoryError):
                raise
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                _refuse_scripts(asked, ", ".join(self.roots), self.field)
                raise _invalid(self.field, "its documents", error) from error
            except Exception as error:
                _refuse_scripts(asked, ", ".join(self.roots), self.field)
                if type(error).__module__.startswith("jinja2"):
                    raise _invalid(self.field, "a template", error) from error
                raise
        return scores_of(
            cast("Mapping[str, Any]", result),
            self.loaded,
            suite=self.suite,
            roots=self.roots,
            seed=self.seed,
            confidences=self.confidences,
        )

    def _seed(self) -> None:
        """Everything that the harness and its tasks draw from."""
        import numpy  # noqa: PLC0415
        import torch  # noqa: PLC0415

        random.seed(self.seed)
        numpy.random.seed(self.seed)
        torch.manual_seed(self.seed)
        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(seed=self.seed)


def prepare(
    benchmark: Benchmark,
    *,
    suite: str,
    field: str,
    work: Path,
    cache: Storage | None = None,
    few_shot: FewShot | None = None,
    seed: int = 0,
    confidences: Sequence[Confidence] = ("0.95",),
    progress: Callable[[str], None] = lambda _: None,
) -> PreparedBenchmark:
    """Find the benchmark's tasks and data.

    `field` is the path of the benchmark in the manifest (spec.suites[0].benchmark), `work` a scratch directory that
    must live as long as the result, `cache` the namespace's cache, where the list of built-in names is kept.

    Raises UserError BenchmarkNotFound (with near names), BenchmarkDataUnavailable, BenchmarkInvalid,
    BenchmarkCodeRefused, BenchmarkUnsupported, BenchmarkNeedsPackage, or what Storage raises.
    """
    if few_shot is not None and few_shot.sources:
        raise UserError(
            "BenchmarkUnsupported",
            f"{field}: fewShot.sources does not go with a benchmark, which takes its examples from its own data; "
            "give this suite a fewShot with a count only",
        )
    work.mkdir(parents=True, exist_ok=True)
    count = few_shot.count if few_shot is not None else None
    with _harness_settings():
        local = fetch_tasks(benchmark.uri, work, field=f"{field}.uri") if benchmark.uri is not None else None
        where = f"{field}.uri" if local is not None else f"{field}.task"
        loaded = _load(benchmark, local, where, cache, progress)
        _refuse_unsuitable(loaded["tasks"], where)
        warnings = tuple(_set_few_shot(loaded["tasks"], count))
        documents = 0
        for task in loaded["tasks"].values():
            size = len(task.eval_docs)
            documents += size if benchmark.limit is None else min(size, benchmark.limit)
        digest = _digest(benchmark, loaded, local)
    inside = {name for members in loaded.get("group_map", {}).values() for name in members}
    roots = tuple(name for name in (*loaded.get("groups", {}), *loaded["tasks"]) if name not in inside)
    return PreparedBenchmark(
        suite, benchmark, loaded, roots, documents, digest, warnings, seed, tuple(confidences), where
    )


def _load(
    benchmark: Benchmark,
    local: LocalTasks | None,
    field: str,
    cache: Storage | None,
    progress: Callable[[str], None],
) -> Mapping[str, Any]:
    """The harness's tasks, their data fetched."""
    if local is not None:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415

        manager = TaskManager(include_path=str(local.directory), include_defaults=False)
        names: list[str] = list(local.names)
    else:
        manager = builtin_tasks(cache, progress)
        names = [str(benchmark.task)]
        if names[0] not in manager.task_index:
            raise not_found(names[0], sorted(manager.task_index), field)
        for name, config in configurations(manager, names[0]):
            if config.get("unsafe_code"):
                raise _runs_code(name, field)
    with _no_scripts() as asked:
        try:
            loaded = manager.load(names)
        except (JobError, MemoryError):
            raise
        except Exception as error:
            if not asked:
                raise _loading_error(error, field, ", ".join(names), local) from error
    _refuse_scripts(asked, ", ".join(names), field)  # the harness goes on without a metric that it cannot load
    return cast("Mapping[str, Any]", loaded)


def _refuse_scripts(asked: Sequence[str], names: str, field: str) -> None:
    if asked:
        raise UserError(
            "BenchmarkCodeRefused",
            f"{field}: {names} takes the metric {', '.join(sorted(set(asked)))} from the Hugging Face hub, as a script "
            "to run; choose a task with the harness's own metrics",
        )


def _runs_code(name: str, field: str) -> UserError:
    return UserError("BenchmarkUnsupported", f"{field}: {name} runs code that the model writes; that is not offered")


@contextlib.contextmanager
def _no_scripts() -> Iterator[list[str]]:
    """`evaluate.load` runs nothing; yields the names that it was asked for."""
    import evaluate  # type: ignore[import-untyped]  # noqa: PLC0415

    asked: list[str] = []

    def refuse(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        raise RuntimeError(f"{name} is a script on the hub")

    load = evaluate.load
    evaluate.load = refuse
    try:
        yield asked
    finally:
        evaluate.load = load


def _loading_error(error: Exception, field: str, names: str, local: LocalTasks | None) -> UserError:
    """What went wrong while the harness made a task. It lets every library's own errors through."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    what = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    if any(isinstance(one, ModuleNotFoundError) for one in chain):
        return UserError(
            "BenchmarkNeedsPackage", f"{field}: {names} needs a Python package that is not installed: {what}"
        )
    if local is None and any("scripts are no longer supported" in str(one) for one in chain):
        return UserError(
            "BenchmarkDataUnavailable",
            f"{field}: the data of {names} come as a script, which nobody runs any more ({what}); put them into files "
            "and use benchmark.uri with a task of your own",
        )
    if local is None and any(isinstance(one, OSError) or _is_data_error(one) for one in chain):
        return UserError(
            "BenchmarkDataUnavailable",
            f"{field}: the data of {names} cannot be fetched: {what}; let the workers reach the Hugging Face hub (and "
            "give them a token where the data are gated), fill their HF_HOME beforehand, or use benchmark.uri with a "
            "task whose data lie beside it",
        )
    return _invalid(field, names, error)


def _is_data_error(error: BaseException) -> bool:
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    # The hub's client has errors of its own beside those that are OSErrors.
    return isinstance(error, DatasetsError) or type(error).__module__.split(".")[0] in (
        "huggingface_hub",
        "httpx",
        "requests",
    )


def _invalid(field: str, what: str, error: Exception) -> UserError:
    detail = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
    if isinstance(error, IndexError):
        detail = f"no example (or an index out of range): {detail}"
    return UserError(
        "BenchmarkInvalid",
        f"{field}: lm-evaluation-harness cannot use {what}: {detail}; check the names of fields and splits in the task "
        "against its data",
    )


def _refuse_unsuitable(tasks: Mapping[str, Any], field: str) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise _runs_code(name, field)
        if getattr(task, "MULTIMODAL", False):
            raise UserError("BenchmarkUnsupported", f"{field}: {name} needs images or sound; only text is measured")
        if len(task.eval_docs) == 0:
            raise UserError("BenchmarkInvalid", f"{field}: {name} has no examples; check its data and its split")


def _set_few_shot(tasks: Mapping[str, Any], count: int | None) -> Iterator[str]:
    """Solved examples for each task, by the harness's rules; yields what the user should know."""
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if count is None or (own == 0 and count > 0):
            if own == 0 and count:
                yield f"{name}: fewShot.count {count} is not applied: the task is defined for 0 examples"
            task.set_config(key="num_fewshot", value=own or 0)
        else:
            task.set_config(key="num_fewshot", value=count)


def _digest(benchmark: Benchmark, loaded: Mapping[str, Any], local: LocalTasks | None) -> str:
    """SHA-256 over the harness's version, the tasks and the documents that are asked and shown."""
    import lm_eval  # noqa: PLC0415

    header = {
        "format": _FORMAT,
        "lm_eval": lm_eval.__version__,
        "task": benchmark.task,
        "limit": benchmark.limit,
        "chatTemplate": benchmark.chat_template,
        "local": None if local is None else local.configs,
    }
    digest = hashlib.sha256(_canonical(header))
    for name, task in sorted(loaded["tasks"].items()):
        shots = task.get_config("num_fewshot")
        digest.update(_canonical([name, shots, task.VERSION]))
        for _, document in task.doc_iterator(limit=benchmark.limit):
            digest.update(_canonical(document))
        for document in (task.fewshot_docs() or ()) if shots else ():
            digest.update(_canonical(document))
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=repr, ensure_ascii=False).encode() + b"\n"


@contextlib.contextmanager
def _harness_settings() -> Iterator[None]:
    """The harness as it may be used here: templates in a sandbox, no pool of processes for a bootstrap."""
    import lm_eval.utils  # noqa: PLC0415
    from jinja2 import StrictUndefined  # noqa: PLC0415
    from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415

    open_environment = lm_eval.utils.env
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(open_environment.filters)
    pools = os.environ.get("DISABLE_MULTIPROC")
    lm_eval.utils.env = sandbox
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        lm_eval.utils.env = open_environment
        if pools is None:
            os.environ.pop("DISABLE_MULTIPROC", None)
        else:
            os.environ["DISABLE_MULTIPROC"] = pools
