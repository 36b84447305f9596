"""Captured texts for retrains: a bounded sample of the latest windows, and snapshots of it that never change.

An example is a request, followed by the corrected answer if feedback gave one; what the model itself answered is never
kept: a model that learns from its own answers forgets the world (Shumailov et al. 2024).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict, deque
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slipway_api.drift import Snapshot
from slipway_jobs.drift.sketches.reservoir import Reservoir
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import FileRecord
from slipway_jobs.train.lineage import model_digest

WINDOWS_KEPT = 10
WINDOWS_OF_AN_ALARM = 3  # what is new came with the last few windows
_HELD_OUT = 51  # of 256: a fifth
_SEED = 0
_COMMIT = "snapshot.json"


class Examples:
    """The sample. At most `limit` texts over WINDOWS_KEPT windows."""

    def __init__(self, limit: int) -> None:
        self._each = max(1, limit // WINDOWS_KEPT)
        self._limit = limit
        self._windows: deque[Reservoir] = deque([Reservoir(self._each, _SEED)])

    def add(self, identity: str, prompt: str) -> None:
        """Offer the text of a request, by its id."""
        self._windows[-1].add(identity, {"prompt": prompt, "corrected": ""})

    def correct(self, identity: str, answer: str) -> None:
        """What the answer should have been, if the request is in the sample."""
        for window in self._windows:
            found = window.get(identity)
            if found is not None:
                found["corrected"] = answer

    def next_window(self) -> None:
        """A window has ended."""
        self._windows.append(Reservoir(self._each, _SEED))
        while len(self._windows) > WINDOWS_KEPT + 1 or self.size > self._limit:
            self._windows.popleft()

    @property
    def size(self) -> int:
        """Texts kept."""
        return sum(window.size for window in self._windows)

    def texts(self, windows: int = WINDOWS_KEPT) -> list[str]:
        """Of the last so many full windows and of the open one, each text once, in the order of their digests."""
        texts = {
            item["prompt"] + item["corrected"]
            for window in list(self._windows)[-windows - 1 :]
            for item in window.items()
        }
        return sorted((text for text in texts if text and not text.isspace()), key=_place)

    def state(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [window.state() for window in self._windows]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """From `state`; what is above the limit in force now goes at the next window."""
        self._windows = deque(Reservoir.of_state(window) for window in state)


def _place(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """(to learn from, to measure on), by the digest of the text: a text is on the same side in every snapshot.

    Neither is empty: of fewer than two texts nothing can be made, and both are then.
    """
    held_out = [text for text in texts if _place(text)[0] < _HELD_OUT]
    train = [text for text in texts if _place(text)[0] >= _HELD_OUT]
    if len(texts) < 2:
        return [], []
    if not held_out:
        return train[1:], train[:1]
    return (train, held_out) if train else (held_out[1:], held_out[:1])


def write_snapshot(texts: list[str], storage: Storage, name: str, time: str) -> Snapshot | None:
    """Write `<storage>/<name>-<digest>/{train,held-out}/part-0.parquet`; None where there are fewer than two texts.

    The document with the digests is written last. The same texts give the same directory, so
    writing it again changes nothing. Raises what Storage raises.
    """
    train, held_out = split(texts)
    if not train:
        return None
    parts = {"train/part-0.parquet": _parquet(train), "held-out/part-0.parquet": _parquet(held_out)}
    records = [FileRecord(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in parts.items()]
    digest = model_digest(records)
    place = storage.join(f"{name}-{digest.removeprefix('sha256:')[:12]}")
    snapshot = Snapshot(uri=place.uri, digest=digest, examples=len(train), held_out=len(held_out), time=time)
    if not place.exists(_COMMIT):
        for path, data in parts.items():
            place.write_bytes_atomic(path, data)
        place.write_bytes_atomic(_COMMIT, json.dumps(snapshot.to_wire(), indent=1).encode())
    return snapshot


def _parquet(texts: list[str]) -> bytes:
    clean = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no UTF-8
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(clean, pa.string())}), sink)
    return sink.getvalue()


class Seen:
    """The keys of the last records: a batch that is sent twice counts once."""

    def __init__(self, most: int = 20_000) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()
        self._most = most

    def first(self, key: str) -> bool:
        """Whether this key is new."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)
        return True
