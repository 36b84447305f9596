"""Which documents a retrain learns from and which it is measured on. Pure.

    learned:  captured examples + spec.drift.retrain.data.sources + a part of the template's own documents (replay)
    new:      the captured examples that were held out; without captured ones, a part of data.sources
    old:      what the template holds out: its evalSources, or its split

Nothing that is measured is learned. Where the template divides its documents by a split, the same split divides
everything here, so what it held out stays held out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from slipway_api.drift import Retrain, Snapshot

MAX_SOURCES = 32
_OWN_SPLIT = {"evalFraction": "0.1", "seed": 0}  # of data.sources, where nothing else is there to measure on

Source = dict[str, Any]


@dataclass(frozen=True)
class RetrainDocuments:
    """`data` of the TrainJob, and `data` of the suites new and old."""

    train: dict[str, Any]
    new: dict[str, Any]
    old: dict[str, Any]


class NoSuchDataError(Exception):
    """The template or the manifest leaves nothing to learn or to measure on; says what to change."""


def documents(retrain: Retrain, template: dict[str, Any], snapshot: Snapshot | None, seed: int) -> RetrainDocuments:
    """From the template's `data` and the snapshot. `seed` decides what is learned again.

    Raises NoSuchDataError.
    """
    data = template["spec"]["data"]
    split, held_out = data.get("split"), data.get("evalSources") or []
    name = template["metadata"]["name"]
    if split is None and not held_out:
        raise NoSuchDataError(
            f"spec.drift.retrain.trainJob: TrainJob {name} holds nothing out, so nothing would show what was "
            "forgotten: name one with data.evalSources or data.split"
        )
    own = [source.to_wire() for source in retrain.data.sources]
    learned = [*([_rows(snapshot, "train")] if snapshot else []), *own, *_replay(retrain, data["sources"], seed)]
    if snapshot is None and split is None:
        split = dict(_OWN_SPLIT)
    train: dict[str, Any] = {"sources": learned, "sequenceLength": data.get("sequenceLength", 512)}
    measured: list[Source] = []
    if split is not None:
        train["split"] = split
    else:
        assert snapshot is not None
        measured = [_rows(snapshot, "held-out"), *copy.deepcopy(held_out)]
        train["evalSources"] = measured
    if max(len(learned), len(measured)) > MAX_SOURCES:
        raise NoSuchDataError(
            f"a retrain would have {max(len(learned), len(measured))} sources, and a TrainJob may have {MAX_SOURCES}: "
            f"name fewer in spec.drift.retrain.data.sources, or in the data of TrainJob {name}"
        )
    new = {"sources": [_rows(snapshot, "held-out")]} if snapshot else {"sources": own, "split": split}
    old_split = data.get("split")
    old = {"sources": copy.deepcopy(data["sources"]), "split": old_split} if old_split else {"sources": held_out}
    return RetrainDocuments(train, new, copy.deepcopy(old))


def _rows(snapshot: Snapshot, part: str) -> Source:
    return {
        "uri": f"{snapshot.uri.rstrip('/')}/{part}",
        "format": "parquet",
        "textField": "text",
        "include": ["*.parquet"],
    }


def _replay(retrain: Retrain, sources: list[Source], seed: int) -> list[Source]:
    """The template's own documents: all, or a part that is another one in each retrain."""
    ratio = Decimal(retrain.data.replay_ratio)
    found = []
    for source in copy.deepcopy(sources):
        sample = source.get("sample") or {"fraction": "1", "seed": seed}
        fraction = round(ratio * Decimal(sample["fraction"]), 12).normalize()
        if fraction <= 0:
            continue
        if fraction < 1:  # of a sample of the same seed a smaller one is a part
            source["sample"] = {"fraction": format(fraction, "f"), "seed": sample.get("seed", 0)}
        found.append(source)
    return found
