"""Scored examples as parquet and back, bit for bit: one row an example, one column a field of its score.

The columns are those of every kind of score, so that a reader needs no case by case; what a kind does not have is null.
Columns that begin with `perturbed_` are the score of the same example spelt carelessly. The same examples give the same
bytes. Pages carry checksums, so that a flipped bit is an error and not a score.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from slipway_jobs.evaluate.examples import (
    ChoiceScore,
    GenerationScore,
    LatencyScore,
    ModelingScore,
    Score,
    ScoredExample,
)

_SCORE_COLUMNS = (
    "nll", "tokens", "bytes", "log_likelihoods", "lengths", "labels", "gold", "predicted", "answer", "references",
    "finish", "first_token_seconds", "token_seconds",
)  # fmt: skip


def encode(examples: Sequence[ScoredExample]) -> bytes:
    """A parquet file."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.Table.from_pylist([_row(example) for example in examples], schema=_schema())
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd", write_page_checksum=True)
    return target.getvalue()


def decode(content: bytes) -> list[ScoredExample]:
    """The examples of a parquet file that `encode` made. Raises ValueError for a damaged one and for any other."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
        if table.schema != _schema():
            raise ValueError("it has other columns")
        return [_example(row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def concatenated(parts: Sequence[bytes]) -> bytes:
    """One parquet file of the rows of several."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.concat_tables([pq.read_table(io.BytesIO(part), page_checksum_verification=True) for part in parts])
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd", write_page_checksum=True)
    return target.getvalue()


def _schema() -> Any:
    import pyarrow as pa  # noqa: PLC0415

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    types = {
        "nll": number, "tokens": whole, "bytes": whole, "log_likelihoods": pa.list_(number), "lengths": pa.list_(whole),
        "labels": pa.list_(text), "gold": whole, "predicted": whole, "answer": text, "references": pa.list_(text),
        "finish": text, "first_token_seconds": number, "token_seconds": pa.list_(number),
    }  # fmt: skip
    head = [("index", whole), ("id", text), ("fields", pa.map_(text, text)), ("prompt", text), ("error", text)]
    return pa.schema(
        head + [(name, types[name]) for name in _SCORE_COLUMNS] + [(f"perturbed_{n}", types[n]) for n in _SCORE_COLUMNS]
    )


def _row(example: ScoredExample) -> dict[str, Any]:
    perturbed = {f"perturbed_{name}": value for name, value in _columns(example.perturbed).items()}
    return {
        "index": example.index,
        "id": example.id,
        "fields": sorted(example.fields.items()),
        "prompt": example.prompt,
        "error": example.error,
        **_columns(example.score),
        **perturbed,
    }


def _columns(score: Score | None) -> dict[str, Any]:
    if isinstance(score, ModelingScore):
        return {"nll": score.nll, "tokens": score.tokens, "bytes": score.bytes}
    if isinstance(score, ChoiceScore):
        return {
            "log_likelihoods": score.log_likelihoods,
            "lengths": score.lengths,
            "labels": score.labels,
            "gold": score.gold,
            "predicted": score.predicted,
        }
    if isinstance(score, GenerationScore):
        return {
            "answer": score.answer,
            "references": score.references,
            "tokens": score.tokens,
            "finish": score.finish,
        }
    if isinstance(score, LatencyScore):
        return {
            "first_token_seconds": score.first_token_seconds,
            "token_seconds": score.token_seconds,
            "tokens": score.tokens,
        }
    return {}


def _example(row: dict[str, Any]) -> ScoredExample:
    score = _score(row, "")
    return ScoredExample(
        index=row["index"],
        id=row["id"],
        fields=dict(row["fields"]),
        modeling=score if isinstance(score, ModelingScore) else None,
        choice=score if isinstance(score, ChoiceScore) else None,
        generation=score if isinstance(score, GenerationScore) else None,
        latency=score if isinstance(score, LatencyScore) else None,
        prompt=row["prompt"],
        perturbed=_score(row, "perturbed_"),
        error=row["error"],
    )


def _score(row: dict[str, Any], prefix: str) -> Score | None:
    value = {name: row[prefix + name] for name in _SCORE_COLUMNS}
    if value["nll"] is not None:
        return ModelingScore(value["nll"], value["tokens"], value["bytes"])
    if value["log_likelihoods"] is not None:
        return ChoiceScore(
            tuple(value["log_likelihoods"]), tuple(value["lengths"]), tuple(value["labels"]), value["gold"]
        )
    if value["answer"] is not None:
        return GenerationScore(value["answer"], tuple(value["references"]), value["tokens"], value["finish"])
    if value["first_token_seconds"] is not None:
        return LatencyScore(value["first_token_seconds"], tuple(value["token_seconds"]), value["tokens"])
    return None
