"""The results of one evaluation, in its own storage: every example, every score, and a page to read.

    <storage>/results/<suite>.parquet            each example with its prompt, answer, references and score
    <storage>/results/<suite>.baseline.parquet   the same of the baseline
    <storage>/results/report.html                for people, in one file
    <storage>/results/results.json               all scores, and what they are scores of; written last

It holds no time and no attempt: the same scores give the same results.json, bit for bit.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slipway_api.evaljob import EvalResults
from slipway_api.gates import judge
from slipway_api.run import EvalRunSpec
from slipway_jobs.evaluate import score_table
from slipway_jobs.evaluate.tracker import Tracker
from slipway_jobs.storage import Storage

if TYPE_CHECKING:
    from slipway_jobs.evaluate.evaluation import SuiteRun

FOLDER = "results"
RESULTS = "results.json"
REPORT = "report.html"
VERSION = 1
_LIBRARIES = ("torch", "transformers", "tokenizers", "lm-eval", "sacrebleu", "rouge-score")


def publish(run: EvalRunSpec, storage: Storage, suites: Sequence[SuiteRun], tracker: Tracker) -> EvalResults:
    """Write everything. Raises InfrastructureError where storage fails."""
    from slipway_jobs.evaluate.report import write_report  # noqa: PLC0415

    folder = storage.join(FOLDER)
    for suite in suites:
        for which, store in suite.stores.items():
            if which in suite.scored:
                name = suite.suite.name if which == "model" else f"{suite.suite.name}.{which}"
                folder.write_bytes_atomic(f"{name}.parquet", score_table.concatenated(store.contents()))
        for which, samples in suite.samples.items():
            name = suite.suite.name if which == "model" else f"{suite.suite.name}.{which}"
            folder.write_bytes_atomic(f"{name}.parquet", samples)
    document = results_document(run, suites, tracker)
    verdict = judge(run.gate, document["metrics"], document["suites"])
    write_report(folder, document, {suite.suite.name: suite.scored for suite in suites}, verdict)
    content = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    folder.write_bytes_atomic(RESULTS, content)
    return EvalResults(
        uri=folder.uri, report=folder.join(REPORT).uri, digest=f"sha256:{hashlib.sha256(content).hexdigest()}"
    )


def results_document(run: EvalRunSpec, suites: Sequence[SuiteRun], tracker: Tracker) -> dict[str, Any]:
    """What results.json holds."""
    state = tracker.evaluation()
    opened = {suite.suite.name: suite for suite in suites}
    listed = []
    for status in state.suites:
        entry = status.to_wire()
        entry.pop("cached", None)  # true of a run, not of its results
        if status.name in opened:
            suite = opened[status.name]
            entry["kind"] = suite.suite.kind
            entry["digest"] = suite.opened.digest
            entry["scores"] = {which: store.storage.uri for which, store in suite.stores.items()}
        listed.append(entry)
    return {
        "version": VERSION,
        "name": run.name,
        "namespace": run.namespace,
        "seed": run.seed,
        "precision": run.precision,
        "batchTokens": run.batch_tokens,
        "confidences": list(run.confidences),
        "model": None if state.model is None else state.model.to_wire(),
        "baseline": None if state.baseline is None else state.baseline.to_wire(),
        "suites": listed,
        "metrics": [metric.to_wire() for metric in tracker.metrics],
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
