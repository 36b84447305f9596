"""Directories that are addressed by a digest of what they were made from, shared by every job of a namespace.

    <cache>/<kind>/<digest>/        the entry: its files, and index.json, which is the commit marker
    <cache>/<kind>/.tmp-...         one that is being built, or was when its job died (swept after a day)
    <cache>/fingerprints/           memo of large files' digests (fingerprints.py)

An entry is built in a temporary directory and renamed into place, so it is there as a whole or not at all. Two jobs
that build the same one at once both do the work; the second to finish finds the first's and uses that. An entry is
trusted only after a look: index.json is well-formed and names this digest, every file has its size, and the job that
prepares data also compares every file's SHA-256. What fails that is put aside and built again. For that reason
nothing is fsynced: a power cut can cost an entry, not a run.

Where the cache is an object store the entry lives there with index.json uploaded last, and each machine works on a
copy in a local scratch directory. The scratch is this user's alone: what is memory-mapped there must not change
underneath.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slipway_jobs.data.fingerprints import FileToHash, Fingerprints, Identity
from slipway_jobs.errors import InfrastructureError
from slipway_jobs.storage import Storage

INDEX = "index.json"
FORMAT = 1
_STALE_SECONDS = 24 * 3600
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified entry on a local disk. `meta` is what its builder said about it."""

    kind: str
    digest: str
    path: Path
    meta: dict[str, Any]


class _DamagedError(Exception):
    """An entry that cannot be trusted; the message says why. Never leaves this file."""


class Cache:
    """Get-or-build over a storage prefix. `scratch` is where a cache that is not local is mirrored."""

    def __init__(self, storage: Storage, *, scratch: Path | None = None, progress: Callable[[str], None]) -> None:
        self.storage = storage
        self._local = storage.local_path
        self._progress = progress
        self._root = self._local if self._local is not None else _scratch(storage, scratch)
        self.fingerprints = Fingerprints(storage.join("fingerprints"))
        # Of the files on this machine, which in a mirror are not those that the storage holds.
        self._own_fingerprints = Fingerprints(Storage(self._root).join("fingerprints"))

    def get_or_build(self, kind: str, digest: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
        """The entry, verified byte by byte; built where it is missing or damaged.

        `build` fills an empty directory and returns `meta` (JSON). Raises what `build` raises, after removing what it
        left.
        """
        entry = self._find(kind, digest)
        if entry is not None:
            return entry
        self._sweep(kind)
        with self._temporary(kind, digest) as temporary:
            try:
                meta = build(temporary)
                _write_index(temporary, kind, digest, meta)
            except OSError as error:  # readers turn theirs into our errors, so this is the cache's disk
                raise InfrastructureError(
                    "StorageFull" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "StorageFailed",
                    f"cache: cannot write {kind} below {self._root} ({error}); free or enlarge it",
                ) from error
            path = self._place(temporary, kind, digest)
        if self._local is None:
            self.storage.upload(path, f"{kind}/{digest}", commit=INDEX)
        return Entry(kind, digest, path, _read_index(path, kind, digest)["meta"])

    def open(self, kind: str, digest: str) -> Entry:
        """An entry that another process has just verified: sizes are checked, content only when it must be downloaded.

        Raises InfrastructureError CacheEntryMissing or CacheEntryDamaged.
        """
        path = self._path(kind, digest)
        try:
            self._mirror(kind, digest)
            return Entry(kind, digest, path, _read_index(path, kind, digest)["meta"])
        except FileNotFoundError as error:
            raise InfrastructureError(
                "CacheEntryMissing",
                f"cache: {self.storage.uri}/{kind}/{digest} is not there; every worker must see the cache that the "
                "driver wrote (a shared volume or an object store)",
            ) from error
        except _DamagedError as error:
            raise InfrastructureError(
                "CacheEntryDamaged", f"cache: {path}: {error}; the next attempt builds it again"
            ) from error

    # --- finding --------------------------------------------------------------------------------------------------

    def _path(self, kind: str, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a SHA-256: {digest!r}")
        return self._root / kind / digest

    def _find(self, kind: str, digest: str) -> Entry | None:
        path = self._path(kind, digest)
        try:
            self._mirror(kind, digest)
            entry = Entry(kind, digest, path, self._verify(path, kind, digest)["meta"])
        except FileNotFoundError:
            return None
        except _DamagedError as damage:
            self._progress(f"cache: {kind}/{digest[:12]}: {damage}; building it again")
            # Both copies go. Another job that maps the files keeps them until it closes them.
            self._discard(path)
            if self._local is None:
                self.storage.delete(f"{kind}/{digest}")
            return None
        if self._local is None and not self.storage.exists(f"{kind}/{digest}/{INDEX}"):
            self.storage.upload(path, f"{kind}/{digest}", commit=INDEX)  # the store lost it; other machines need it
        return entry

    def _verify(self, path: Path, kind: str, digest: str) -> dict[str, Any]:
        """The index, after comparing every file with its SHA-256. Large unchanged files are not read twice."""
        index = _read_index(path, kind, digest)
        files = []
        for item in index["files"]:
            file = path / item["name"]
            files.append(FileToHash(item["name"], Identity.of_stat(file.stat()), file, partial(file.open, "rb")))
        for item, found in zip(index["files"], self._own_fingerprints.sha256(f"{kind}/{digest}", files), strict=True):
            if item["sha256"] != found:
                raise _DamagedError(f"{item['name']} does not have the content that index.json names")
        return index

    def _mirror(self, kind: str, digest: str) -> None:
        """Have a copy here of what lies in a remote cache; FileNotFoundError where it has no commit marker there."""
        if self._local is not None:
            return
        with self._lock(kind, digest):
            if not (self._path(kind, digest) / INDEX).is_file():
                self._download(kind, digest)

    def _download(self, kind: str, digest: str) -> None:
        remote = self.storage.join(kind, digest)
        index_bytes = remote.read_bytes(INDEX)
        index = _parse_index(index_bytes, kind, digest)
        with self._temporary(kind, digest) as temporary:
            try:
                remote.download("", temporary, [item["name"] for item in index["files"]])
            except FileNotFoundError as error:
                raise _DamagedError(f"a file that index.json names is missing ({error})") from error
            (temporary / INDEX).write_bytes(index_bytes)
            self._verify_copy(temporary, index)
            self._place(temporary, kind, digest)

    def _verify_copy(self, path: Path, index: dict[str, Any]) -> None:
        for item in index["files"]:
            with (path / item["name"]).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != item["sha256"]:
                    raise _DamagedError(f"{item['name']} does not have the content that index.json names")

    # --- building -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _temporary(self, kind: str, digest: str) -> Iterator[Path]:
        path = self._root / kind / f".tmp-{digest[:16]}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise InfrastructureError(
                "StorageFailed",
                f"cache: cannot make {path} ({error.strerror}); the job must be able to write its cache",
            ) from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)  # after the rename there is nothing here

    def _place(self, temporary: Path, kind: str, digest: str) -> Path:
        """Rename into place. Where another job was first, its entry stands if it verifies, else ours replaces it."""
        path = self._path(kind, digest)
        for _ in range(3):
            try:
                temporary.rename(path)
                return path
            except OSError:  # a directory with something in it is there
                try:
                    self._verify(path, kind, digest)
                    return path
                except (FileNotFoundError, _DamagedError):
                    self._discard(path)
        raise InfrastructureError("StorageFailed", f"cache: cannot rename {temporary} to {path}; check the file system")

    def _discard(self, path: Path) -> None:
        """Take an entry out of the way in one step, then delete it."""
        aside = path.with_name(f".tmp-discarded-{secrets.token_hex(6)}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self, kind: str) -> None:
        """Delete what jobs that were killed have left behind."""
        with contextlib.suppress(FileNotFoundError):
            for path in (self._root / kind).glob(".tmp-*"):
                with contextlib.suppress(FileNotFoundError):
                    newest = max(item.stat().st_mtime for item in (path, *path.iterdir()))
                    if time.time() - newest > _STALE_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, kind: str, digest: str) -> Iterator[None]:
        """One download per machine, shared by its ranks. The kernel frees the lock of a process that dies."""
        folder = self._root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{kind}-{digest}").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _write_index(path: Path, kind: str, digest: str, meta: dict[str, Any]) -> None:
    files = []
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append({"name": file.relative_to(path).as_posix(), "size": file.stat().st_size, "sha256": content})
    document = {"format": FORMAT, "kind": kind, "digest": digest, "files": files, "meta": meta}
    document["checksum"] = _checksum(document)
    (path / INDEX).write_bytes(json.dumps(document, indent=1, sort_keys=True).encode())


def _checksum(document: dict[str, Any]) -> str:
    """SHA-256 of the index without this field: a flipped bit in `meta` must not pass for a count of tokens."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_index(path: Path, kind: str, digest: str) -> dict[str, Any]:
    """The index with every file's size checked."""
    if not path.is_dir():
        raise FileNotFoundError(path)
    try:
        index = _parse_index((path / INDEX).read_bytes(), kind, digest)
    except FileNotFoundError:
        raise _DamagedError("index.json is missing: the entry was never finished") from None
    for item in index["files"]:
        try:
            size = (path / item["name"]).stat().st_size
        except FileNotFoundError:
            raise _DamagedError(f"{item['name']} is missing") from None
        if size != item["size"]:
            raise _DamagedError(f"{item['name']} has {size} bytes instead of {item['size']}")
    return index


def _parse_index(content: bytes, kind: str, digest: str) -> dict[str, Any]:
    try:
        index = json.loads(content)
        if (index["format"], index["kind"], index["digest"]) != (FORMAT, kind, digest):
            raise _DamagedError("index.json describes another entry")
        if index["checksum"] != _checksum(index):
            raise _DamagedError("index.json does not have the content that it was written with")
        names = [item["name"] for item in index["files"]]
        if any(".." in name.split("/") or name.startswith("/") for name in names):
            raise _DamagedError("index.json names a file outside the entry")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"index.json is malformed ({error})") from error
    return dict(index)


def _scratch(storage: Storage, scratch: Path | None) -> Path:
    """A directory that only this user can write to, one per remote cache."""
    if scratch is None:
        scratch = Path(tempfile.gettempdir()) / f"slipway-{os.getuid()}"
    root = scratch / hashlib.sha256(storage.uri.encode()).hexdigest()[:16]
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.mkdir(exist_ok=True, mode=0o700)
    for path in (scratch, root):
        status = path.lstat()
        if status.st_uid != os.getuid() or path.is_symlink():
            raise InfrastructureError(
                "ScratchUnsafe", f"cache: {path} belongs to somebody else; set TMPDIR to a directory of the job's own"
            )
    return root
