"""Content digests of files, computed as seldom as is safe.

Everything in the cache is addressed by content, so every run needs the digest of every file. Small files are always
read: hashing ten megabytes costs less than deciding not to. For large files the digest is remembered together with
what the file system says about the file (inode, size, modification and change time; an object's etag or generation),
and taken from there while all of that is unchanged. The change time cannot be set by a program, and a file that was
touched within the clock's grain of being read is never remembered, so a stale memo needs a file system that lies or a
clock that jumps.

What could still slip through is content that rots under an unchanged inode: that is the file system's own affair.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slipway_jobs.storage import Storage

ALWAYS_READ_BELOW = 64 << 20  # bytes: about 50 ms of SHA-256
_GRAIN_NS = 2_000_000_000  # coarser than any file system's timestamps
_FORMAT = 1
# What object stores say that changes whenever the content does.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "crc32c",
    "generation",
    "version_id",
    "VersionId",
    "checksum",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What can be known of a file's content without reading it. `token` is None where that proves nothing."""

    size: int
    token: str | None
    touched_ns: int = 0  # newest of modification and change time; 0 for an object store, whose versions are exact

    @classmethod
    def of_stat(cls, status: os.stat_result) -> Identity:
        """Of a local file. The device number is left out: it differs from mount to mount of the same volume."""
        token = f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        return cls(status.st_size, token, max(status.st_mtime_ns, status.st_ctime_ns))

    @classmethod
    def of_object(cls, info: dict[str, Any]) -> Identity:
        """Of an object in a store, from fsspec's details."""
        versions = [f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key)]
        size = int(info.get("size") or 0)
        return cls(size, f"{size}:{'|'.join(versions)}" if versions else None)


@dataclass(frozen=True, slots=True)
class FileToHash:
    """One file: the key that a memo knows it by, what it looks like, and how to read it."""

    key: str
    identity: Identity
    path: Path | None  # where it is local
    open: Callable[[], IO[bytes]]


class Fingerprints:
    """SHA-256 of many files, with a memo at `memo` (one small JSON file per scope) for the large ones."""

    def __init__(
        self,
        memo: Storage,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        always_read_below: int = ALWAYS_READ_BELOW,
        threads: int = min(8, os.cpu_count() or 1),
    ) -> None:
        self._memo = memo
        self._now_ns = now_ns
        self._always_read_below = always_read_below
        self._threads = threads

    def sha256(self, scope: str, files: Iterable[FileToHash]) -> list[str]:
        """Hexadecimal digests in the order of the files. `scope` names the set, e.g. the source's URI."""
        listed = list(files)
        small = [file for file in listed if not self._worth_remembering(file)]
        large = [file for file in listed if self._worth_remembering(file)]
        digests = {file.key: _digest(file) for file in small}
        if large:
            digests.update(self._large(scope, large))
        return [digests[file.key] for file in listed]

    def _worth_remembering(self, file: FileToHash) -> bool:
        # Reading an object means downloading it: there the size does not matter.
        return file.identity.token is not None and (file.path is None or file.identity.size >= self._always_read_below)

    def _large(self, scope: str, files: list[FileToHash]) -> dict[str, str]:
        name = f"{hashlib.sha256(scope.encode()).hexdigest()}.json"
        known = self._recall(name)
        digests: dict[str, str] = {}
        remembered: dict[str, list[str]] = {}
        unknown: list[FileToHash] = []
        for file in files:
            entry = known.get(file.key)
            if entry is not None and entry[0] == file.identity.token:
                digests[file.key] = entry[1]
                remembered[file.key] = entry
            else:
                unknown.append(file)
        if not unknown:
            return digests
        started = self._now_ns()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="sha256") as pool:
            for file, digest in zip(unknown, pool.map(_digest, unknown), strict=True):
                digests[file.key] = digest
                settled = file.identity.touched_ns + _GRAIN_NS < started
                if file.identity.token is not None and settled and _unchanged(file):
                    remembered[file.key] = [file.identity.token, digest]
        if remembered != known:
            self._memo.write_bytes_atomic(name, json.dumps({"format": _FORMAT, "files": remembered}).encode())
        return digests

    def _recall(self, name: str) -> dict[str, list[str]]:
        try:
            document = json.loads(self._memo.read_bytes(name))
            if document["format"] != _FORMAT:
                return {}
            return {str(key): [str(token), str(digest)] for key, (token, digest) in document["files"].items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # a memo that cannot be read costs a read of the files, nothing else


def _unchanged(file: FileToHash) -> bool:
    return file.path is None or Identity.of_stat(file.path.stat()) == file.identity


def _digest(file: FileToHash) -> str:
    with file.open() as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # any readable stream will do
