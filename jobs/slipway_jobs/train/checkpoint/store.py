"""The checkpoints of one job in storage: which is the newest that can be believed, committing one, removing old ones.

It decides by the files alone (manifest.py) and loads nothing itself. All ranks agree on every decision: rank 0 reads
what is small, the digests are checked by all ranks, each its part.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from slipway_api.trainjob import SkippedCheckpoint
from slipway_jobs.errors import InfrastructureError
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import MANIFEST, MARKER, CheckpointName, Manifest, sha256_of
from slipway_jobs.train.ranks import Ranks

FOLDER = "checkpoints"


@dataclass(frozen=True)
class ValidCheckpoint:
    """A checkpoint that is committed and whose every file has the digest that its manifest says."""

    storage: Storage
    name: CheckpointName
    manifest: Manifest

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.storage.uri

    @property
    def local_path(self) -> Path | None:
        """Its directory where that is on this machine."""
        return self.storage.local_path

    def download(self, destination: Path) -> None:
        """Copy its files into a directory of this machine."""
        self.storage.download("", destination, [record.path for record in self.manifest.files])


class CheckpointStore:
    """The directory `<storage>/checkpoints` of a job, as one attempt sees it."""

    def __init__(self, storage: Storage, *, uid: str, attempt: int, keep_last: int, ranks: Ranks) -> None:
        self.storage = storage.join(FOLDER)
        self.attempt = attempt
        self._uid = uid
        self._keep_last = keep_last
        self._ranks = ranks
        self._damaged: set[CheckpointName] = set()

    def name_of(self, step: int) -> CheckpointName:
        """The name that this attempt gives to the checkpoint of a step."""
        return CheckpointName(step, self.attempt)

    def of(self, name: CheckpointName) -> Storage:
        """The directory of a checkpoint."""
        return self.storage.join(str(name))

    # --- finding --------------------------------------------------------------------------------------------------

    def newest_valid(self, strategy: str, *, portable: bool) -> tuple[ValidCheckpoint | None, list[SkippedCheckpoint]]:
        """The newest checkpoint to resume from, and those that were passed over, newest first. Collective.

        `portable`: another world size than the one that wrote it will do. Raises InfrastructureError where storage
        cannot be read: that says nothing about the checkpoint.
        """
        skipped: list[SkippedCheckpoint] = []
        for name in self._ranks.first_does(self._names, slow=True):
            found = self._ranks.first_does(lambda name=name: self._read(name), slow=True)  # type: ignore[misc]
            if isinstance(found, Manifest):
                reason = self._unusable(found, strategy, portable) or self._first_damage(name, found)
                if reason is None:
                    self._ranks.first_does(self._remove_unfinished, slow=True)
                    return ValidCheckpoint(self.of(name), name, found), skipped
            else:
                reason = found
            self._damaged.add(name)
            skipped.append(SkippedCheckpoint(uri=self.of(name).uri, reason=reason[:4096]))
        self._ranks.first_does(self._remove_unfinished, slow=True)
        return None, skipped

    def _names(self) -> list[CheckpointName]:
        found = (CheckpointName.parse(text) for text in self.storage.list())
        return sorted((name for name in found if name is not None), reverse=True)

    def _committed(self, name: CheckpointName) -> bool:
        return self.of(name).exists(MARKER)

    def _read(self, name: CheckpointName) -> Manifest | str:
        """The manifest, or what is wrong."""
        directory = self.of(name)
        try:
            marker = directory.read_bytes(MARKER)
        except FileNotFoundError:
            return f"{MARKER} is missing: it was never finished"
        try:
            data = directory.read_bytes(MANIFEST)
        except FileNotFoundError:
            return f"{MANIFEST} is missing"
        if marker.strip() != hashlib.sha256(data).hexdigest().encode():
            return f"{MANIFEST} does not have the digest that {MARKER} says"
        try:
            return Manifest.decode(data)
        except ValueError as error:
            return f"{MANIFEST}: {error}"

    def _unusable(self, manifest: Manifest, strategy: str, portable: bool) -> str | None:
        """Why a whole checkpoint is not this run's."""
        if manifest.uid != self._uid:
            return f"{MANIFEST}: it belongs to another job ({manifest.uid})"
        if manifest.strategy != strategy:
            return f"{MANIFEST}: strategy {manifest.strategy} wrote it, this run uses {strategy}"
        world = self._ranks.context.world_size
        if not portable and manifest.world_size != world:
            return f"{MANIFEST}: {manifest.world_size} ranks wrote it, and {strategy} cannot share it among {world}"
        return None

    def _first_damage(self, name: CheckpointName, manifest: Manifest) -> str | None:
        """What is wrong with its files, each rank looking at its part of them."""
        context = self._ranks.context
        mine = manifest.files[context.rank :: context.world_size]
        directory = self.of(name)

        def look() -> str | None:
            for record in mine:
                try:
                    with directory.open(record.path) as stream:
                        size, digest = sha256_of(stream)
                except FileNotFoundError:
                    return f"{record.path} is missing"
                except OSError as error:
                    raise InfrastructureError(
                        "StorageFailed", f"cannot read {directory.uri}/{record.path}: {error}"
                    ) from error
                if size != record.size:
                    return f"{record.path} has {size} bytes, {MANIFEST} says {record.size}"
                if digest != record.sha256:
                    return f"{record.path} does not have the digest that {MANIFEST} says"
            return None

        return next((damage for damage in self._ranks.all_do(look, slow=True) if damage is not None), None)

    # --- writing: rank 0 ------------------------------------------------------------------------------------------

    def clear(self, name: CheckpointName) -> None:
        """Make room for a new checkpoint of that name. The marker goes first: half a deletion is no checkpoint."""
        self.of(name).delete(MARKER)
        self.of(name).delete()

    def commit(self, name: CheckpointName, manifest: Manifest) -> None:
        """Make it visible. From here on it is a checkpoint."""
        directory = self.of(name)
        data = manifest.encode()
        directory.write_bytes_atomic(MANIFEST, data)
        directory.write_bytes_atomic(MARKER, hashlib.sha256(data).hexdigest().encode())

    def prune(self) -> None:
        """Remove committed checkpoints beyond the newest `keep_last`, and the damaged ones that they outlive.

        A writer that finds checkpoints of a newer attempt is a leftover of an older one: it removes nothing.
        """
        names = self._names()
        if any(name.attempt > self.attempt for name in names):
            return
        good = [name for name in names if name not in self._damaged and self._committed(name)]
        keep = set(good[: self._keep_last])
        for name in names:
            if name not in keep and (name in good or (name in self._damaged and name < good[0])):
                self.clear(name)
                self._damaged.discard(name)

    def wrote(self, name: CheckpointName) -> None:
        """A checkpoint of that name was written anew: what was known about an earlier one no longer counts."""
        self._damaged.discard(name)

    def _remove_unfinished(self) -> None:
        """Remove what this and older attempts began to write and never committed."""
        for name in self._names():
            if name.attempt <= self.attempt and not self._committed(name):
                self.clear(name)
