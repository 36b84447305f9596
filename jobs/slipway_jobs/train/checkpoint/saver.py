"""Saves checkpoints next to training: one at a time, in a thread, and reports what became of each.

What a job's `checkpoint.everySteps` promises is a bound: a failure repeats at most that many steps. A snapshot that is
still being written protects nothing, so one is begun every half of the bound, and training waits for the write rather
than go beyond it. Where writing takes less than half an interval, which is the point of doing it next to training,
nobody ever waits.

A save that fails (a full disk, an outage) costs nothing but itself: the files are removed, the checkpoint before is as
it was, training goes on, and the next one is tried at its time.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slipway_api.quantity import format_bytes
from slipway_jobs.errors import InfrastructureError, JobError
from slipway_jobs.train.checkpoint.manifest import CheckpointName, FileRecord, Manifest, TrainState, sha256_of
from slipway_jobs.train.checkpoint.store import CheckpointStore
from slipway_jobs.train.ranks import Ranks
from slipway_jobs.train.strategies.base import Snapshot


@dataclass(frozen=True)
class SaveEnd:
    """What became of one save, as rank 0 knows it."""

    step: int
    uri: str
    failure: str | None  # None: it is committed


class CheckpointSaver:
    """Writes snapshots. All ranks call `start` and `drain` at the same step; rank 0 calls `finished` at any time."""

    def __init__(
        self, store: CheckpointStore, ranks: Ranks, *, uid: str, strategy: str, every_steps: int, step: int
    ) -> None:
        """`every_steps`: at most so many steps may be at risk. `step`: where training begins, with nothing at risk."""
        self._store = store
        self._ranks = ranks
        self._uid = uid
        self._strategy = strategy
        self._every_steps = every_steps
        self._settled = step  # of the newest save that is no longer being written
        self._writing = step
        self._thread: threading.Thread | None = None
        self._ended: list[SaveEnd] = []
        self._broken: BaseException | None = None

    def due(self, step: int) -> bool:
        """Whether a save should begin after this step."""
        return step % -(-self._every_steps // 2) == 0

    def before_step(self, step: int) -> None:
        """Wait for what is being written, if this step would otherwise be one more than may be lost."""
        if step - self._settled > self._every_steps:
            self.drain()

    def start(self, snapshot: Snapshot, state: TrainState) -> None:
        """Write the snapshot, in a thread if it can be. Waits for the save before, if that is still going on."""
        self.drain()
        self._writing = state.step
        save = self._guarded(lambda: self._save(snapshot, state))
        if not snapshot.background:
            save()
            self.drain()
            return
        # A daemon: a peer that hangs must not keep this process from ending.
        self._thread = threading.Thread(target=save, name=f"checkpoint-{state.step}", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Wait until nothing is being written. Raises InfrastructureError where the ranks lost each other over it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._settled = self._writing
        if self._broken is not None:
            broken, self._broken = self._broken, None
            if isinstance(broken, JobError):
                raise broken
            raise InfrastructureError("PeerLost", f"the ranks lost each other while saving: {broken}") from broken

    def finished(self) -> list[SaveEnd]:
        """What has ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                action()
            except BaseException as error:  # raised again by drain(), in the thread that can act on it
                self._broken = error

        return run

    def _save(self, snapshot: Snapshot, state: TrainState) -> None:
        """All ranks. A failure of any one of them is known to all before the next collective begins."""
        name = self._store.name_of(state.step)
        scratch: list[Path] = []
        failure = self._agreed(lambda: self._store.clear(name) if self._ranks.is_first else None)
        failure = failure or self._agreed(lambda: scratch.append(self._scratch(name)))
        if failure is None:
            failure = self._agreed(lambda: snapshot.write(scratch[0], self._ranks.storage))
        records: list[FileRecord] = []
        failure = failure or self._agreed(lambda: records.extend(self._place(name, scratch[0])))
        everyone: list[list[FileRecord]] = self._ranks.gather(records, slow=True)
        if self._ranks.is_first:
            self._end(name, state, failure, [record for part in everyone for record in part])
        if scratch and self._store.storage.local_path is None:
            shutil.rmtree(scratch[0], ignore_errors=True)

    def _agreed(self, action: Callable[[], object]) -> str | None:
        """Do something on every rank; what went wrong on the lowest rank where it did, on all of them."""
        try:
            action()
            said = None
        except Exception as error:  # whatever storage or DCP throws, this save is over and training goes on
            said = f"rank {self._ranks.context.rank}: {_reason(error)}"
        return next((text for text in self._ranks.gather(said, slow=True) if text is not None), None)

    def _scratch(self, name: CheckpointName) -> Path:
        """This rank's own directory, so that it knows which files are its own."""
        local = self._store.of(name).local_path
        if local is None:
            return Path(tempfile.mkdtemp(prefix="slipway-checkpoint-"))
        directory = local / f".rank-{self._ranks.context.rank}"
        directory.mkdir(parents=True)
        return directory

    def _place(self, name: CheckpointName, scratch: Path) -> list[FileRecord]:
        """Digest this rank's files and put them where they belong."""
        directory = self._store.of(name)
        records = []
        for path in sorted(file for file in scratch.rglob("*") if file.is_file()):
            with path.open("rb") as stream:
                size, digest = sha256_of(stream)
            records.append(FileRecord(path.relative_to(scratch).as_posix(), size, digest))
        if directory.local_path is None:
            directory.upload(scratch, "")
            return records
        for record in records:
            target = directory.local_path / record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (scratch / record.path).rename(target)
        shutil.rmtree(scratch)
        return records

    def _end(self, name: CheckpointName, state: TrainState, failure: str | None, files: list[FileRecord]) -> None:
        """Rank 0: commit or clean up, and remember what happened."""
        if failure is None:
            world = self._ranks.context.world_size
            manifest = Manifest(
                self._uid, self._store.attempt, self._strategy, world, state, tuple(sorted(files, key=lambda f: f.path))
            )
            try:
                self._store.commit(name, manifest)
                self._store.wrote(name)
            except Exception as error:
                failure = f"cannot commit: {_reason(error)}"
        if failure is not None and (root := self._store.storage.local_path) is not None:
            # torch's writer hides what the file system said, and it is nearly always this.
            failure += f"; {format_bytes(shutil.disk_usage(root).free)} are free on that disk"
        self._ended.append(SaveEnd(state.step, self._store.of(name).uri, failure))
        try:
            if failure is None:
                self._store.prune()
            else:
                self._store.clear(name)
        except Exception as error:
            # What stays behind costs space and nothing else: it is tried again after the next save.
            self._ended.append(
                SaveEnd(state.step, self._store.of(name).uri, f"cannot remove old files: {_reason(error)}")
            )


def _reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
