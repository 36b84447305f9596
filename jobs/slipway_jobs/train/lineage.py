"""slipway.json: where a model comes from and what exactly it is. Written last, it is what makes a directory a model.

Reading it needs no torch, so the driver can see that a run has nothing left to do before anything heavy starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from slipway_api.trainjob import TrainedModel
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import FileRecord

FOLDER = "model"
LINEAGE = "slipway.json"
VERSION = 1


def model_digest(files: Iterable[FileRecord]) -> str:
    """The digest of a model directory: over path and digest of every file but slipway.json, as sha256:..."""
    lines = "".join(f"{record.path}\0{record.sha256}\n" for record in sorted(files, key=lambda file: file.path))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def completed_model(storage: Storage, *, uid: str | None = None) -> TrainedModel | None:
    """The finished model below a job's storage prefix, None while there is none that is complete.

    Complete: slipway.json is there, can be read, (with `uid`) belongs to that job, and every file has its size.
    """
    directory = storage.join(FOLDER)
    try:
        document: dict[str, Any] = json.loads(directory.read_bytes(LINEAGE))
        if uid is not None and document["run"]["uid"] != uid:
            return None
        sizes = {path: info["size"] for path, info in directory.find().items()}
        if any(sizes.get(record["path"]) != record["size"] for record in document["files"]):
            return None
        return TrainedModel(
            uri=directory.uri,
            digest=document["digest"],
            parameters=document["parameters"],
            **_metrics(document["metrics"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    names = {"evalLoss": "eval_loss", "perplexity": "perplexity", "initialPerplexity": "initial_perplexity"}
    return {field: str(metrics[name]) for name, field in names.items() if metrics.get(name) is not None}
