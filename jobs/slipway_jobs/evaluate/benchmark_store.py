"""The scores of a benchmark, stored under their key like any other and read back as they were."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from slipway_api.evaljob import MetricValue
from slipway_jobs.evaluate.score_store import ScoreStore

if TYPE_CHECKING:
    from slipway_jobs.evaluate.benchmark_scores import BenchmarkScores

_SCORES, _SAMPLES = "scores.json", "samples.parquet"


def store_benchmark(store: ScoreStore, scores: BenchmarkScores, *, documents: int, **about: object) -> None:
    """Commit them."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    document = {
        "metrics": [metric.to_wire() for metric in scores.metrics],
        "values": {name: list(values) for name, values in scores.values.items()},
        "versions": dict(scores.versions),
        "warnings": list(scores.warnings),
    }
    store.write(_SCORES, json.dumps(document, indent=1, sort_keys=True, default=str).encode() + b"\n")
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(scores.rows)), target, compression="zstd", write_page_checksum=True)
    store.write(_SAMPLES, target.getvalue())
    store.commit([_SCORES, _SAMPLES], examples=documents, **about)


def read_benchmark(store: ScoreStore) -> tuple[BenchmarkScores, bytes]:
    """The scores (their rows left out), and the rows as a parquet file. Raises InfrastructureError ScoresDamaged."""
    from slipway_jobs.evaluate.benchmark_scores import BenchmarkScores  # noqa: PLC0415

    content, samples = store.contents()
    document = json.loads(content)
    scores = BenchmarkScores(
        metrics=tuple(MetricValue.model_validate(metric) for metric in document["metrics"]),
        rows=(),
        values={name: tuple(values) for name, values in document["values"].items()},
        versions=document["versions"],
        warnings=tuple(document["warnings"]),
    )
    return scores, samples
