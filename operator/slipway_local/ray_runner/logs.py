"""Keeps a job's output: copies what Ray writes into `<state>/logs/<namespace>/<rayjob>.log`, where it outlives Ray.

No line is lost or doubled when the runner dies at any point, because the place to go on from is not written down: it is
the size of the copy, plus an offset that changes only when a file is begun. The offset is kept by inode, so that it
also stays right in the middle of a rotation.

A log has at most two files, `NAME.log` and the older `NAME.log.1`, each of half the limit. A RayJob that is suspended
and resumed goes on in the same log; a new RayJob of an old name begins a new one.
"""

from __future__ import annotations

from pathlib import Path

from slipway_local.processes import read_json, write_json

LIMIT = 64 * 1024**2
_CHUNK = 1024**2


class JobLog:
    """The copy of one run's output. Not thread-safe; the files are local, so it does not wait."""

    def __init__(self, target: Path, source: Path, *, owner: str, run: str, limit: int = LIMIT) -> None:
        """`source` is Ray's file, `owner` the RayJob's UID, `run` tells its runs apart; `limit` is in bytes."""
        self._target = target
        self._source = source
        self._identity = {"owner": owner, "run": run}
        self._half = max(1, limit // 2)
        self._next = target.with_name(f"{target.name}.new")
        self._state = target.with_name(f".{target.name}.state")
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = read_json(self._state)
        if not isinstance(state, dict) or state.get("owner") != owner:
            remove(target)
        if not target.exists() and self._next.exists():
            self._next.rename(target)  # died between the two renames of a rotation
        target.touch(mode=0o600)
        self._load()

    def pump(self) -> int:
        """Copies what is new; returns how many bytes that were."""
        copied = 0
        try:
            with self._source.open("rb") as source:
                while True:
                    size = self._target.stat().st_size
                    source.seek(size + self._offset)
                    chunk = source.read(min(_CHUNK, max(1, self._half - size)))
                    if not chunk:
                        return copied
                    with self._target.open("ab", buffering=0) as target:
                        target.write(chunk)
                    copied += len(chunk)
                    if size + len(chunk) >= self._half:
                        self._rotate()
        except FileNotFoundError:
            return copied

    def _load(self) -> None:
        state = read_json(self._state)
        status = self._target.stat()
        offset = None
        if isinstance(state, dict) and self._identity.items() <= state.items():
            offset = state.get("offsets", {}).get(str(status.st_ino))
        if offset is None:
            offset = -status.st_size  # the first byte of the source follows what is there
            self._save({status.st_ino: offset})
        self._offset = int(offset)

    def _rotate(self) -> None:
        old = self._target.stat()
        self._next.unlink(missing_ok=True)
        self._next.touch(mode=0o600)
        offset = old.st_size + self._offset
        self._save({old.st_ino: self._offset, self._next.stat().st_ino: offset})
        self._target.replace(self._target.with_name(f"{self._target.name}.1"))
        self._next.rename(self._target)
        self._offset = offset

    def _save(self, offsets: dict[int, int]) -> None:
        write_json(self._state, {**self._identity, "offsets": {str(inode): at for inode, at in offsets.items()}})


def source_of(session_dir: Path, job_id: str) -> Path:
    """Where Ray writes the output of a job's driver."""
    return session_dir / "logs" / f"job-driver-{job_id}.log"


def remove(target: Path) -> None:
    """Removes a log with all that belongs to it."""
    for name in (target.name, f"{target.name}.1", f"{target.name}.new", f".{target.name}.state"):
        target.with_name(name).unlink(missing_ok=True)
