"""From `data.sources` in a manifest to a sorted list of files and a digest of their content.

Rules that a user can rely on:
- The order is by relative path (code points), whatever order the file system lists in. Two machines see the same.
- Names that start with a dot are left out of a directory (.git, .ipynb_checkpoints, a mounted ConfigMap's ..data).
- Links are followed. A directory that was seen already is not entered again, so a loop ends and nothing comes twice.
- Empty files inside a directory are left out; a `uri` that is itself an empty file is an error.
- `python://stdlib` is the standard library of the interpreter that runs the job: *.py only, never installed packages.

The digest covers what the documents are made from (kind, format, field, relative paths and content), not where it
lies: moving a directory, or copying it to a bucket, finds the same token shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from slipway_api.trainjob import DataSource
from slipway_jobs.data.fingerprints import FileToHash, Fingerprints, Identity
from slipway_jobs.data.globs import GlobSet
from slipway_jobs.data.places import content_of
from slipway_jobs.data.sample import Draw
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage

if TYPE_CHECKING:
    from slipway_jobs.data.split import Part

STDLIB = "python://stdlib"
_SAY_ABOVE = 1 << 30  # bytes: below, a second at most
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    storage: Storage
    relative: str
    identity: Identity

    @property
    def where(self) -> str:
        """How errors name it."""
        return self.storage.join(self.relative).uri

    @property
    def path(self) -> Path | None:
        """The path where the file is local."""
        return None if self.storage.local_path is None else self.storage.local_path / self.relative

    def open(self) -> IO[bytes]:
        """The file as it lies there, still compressed."""
        return self.storage.open(self.relative)

    def check_unchanged(self) -> None:
        """Raise InfrastructureError DataChanged where a local file is not the one any more whose digest was taken."""
        if self.path is not None and Identity.of_stat(self.path.stat()) != self.identity:
            raise InfrastructureError(
                "DataChanged", f"{self.storage.field}: {self.where} was changed while the job read it; it is read anew"
            )


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one `data.sources[]` item, in order, with the digest of their content."""

    field: str  # data.sources[0]
    kind: Literal["files", "stdlib"]
    format: Literal["text", "jsonl", "parquet"]
    text_field: str
    files: tuple[SourceFile, ...]
    file_digests: tuple[str, ...]
    part: Part | None = None  # of a split: only its documents count
    draw: Draw | None = None  # of a sample: likewise

    @property
    def size(self) -> int:
        """Bytes on disk, compressed where the files are."""
        return sum(file.identity.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides which documents come out, in which order."""
        header = [self.kind, self.format, "" if self.format == "text" else self.text_field]
        digest = hashlib.sha256(json.dumps(header).encode())
        for file, content in zip(self.files, self.file_digests, strict=True):
            digest.update(json.dumps([file.relative, file.identity.size, content]).encode())
        if self.part is not None:
            digest.update(json.dumps(self.part.key).encode())
        if self.draw is not None:
            digest.update(json.dumps(self.draw.key).encode())
        return digest.hexdigest()

    def takes_text(self, text: str) -> bool:
        """Whether the document that a row's text is belongs to the part and to the sample."""
        content = content_of(text) if self.part or self.draw else ""
        return (self.part is None or self.part.takes(content)) and (self.draw is None or self.draw.takes(content))

    def takes_row(self, fields: dict[str, Any]) -> bool:
        """The same for a row of an evaluation, which may have no text: then all of its fields are its content."""
        text = fields.get(self.text_field)
        if (self.part or self.draw) and (not isinstance(text, str) or not text):
            text = json.dumps(fields, sort_keys=True, default=str)
        return self.takes_text(str(text))

    def describe(self) -> dict[str, Any]:
        """For index.json and lineage."""
        return {
            "kind": self.kind,
            "format": self.format,
            "textField": "" if self.format == "text" else self.text_field,
            "files": len(self.files),
            "bytes": self.size,
            "sha256": self.digest,
            **({"part": self.part.key} if self.part else {}),
            **({"sample": self.draw.key} if self.draw else {}),
        }


def resolve(
    sources: Sequence[DataSource], field: str, fingerprints: Fingerprints, progress: Callable[[str], None]
) -> list[Source]:
    """Find and hash the files of every source. `field` is the list's path in the spec, e.g. "data.sources".

    Raises UserError DataNotFound, DataEmpty, DataNoMatch, DataUriInvalid or what Storage raises.
    """
    return [_resolve(source, f"{field}[{index}]", fingerprints, progress) for index, source in enumerate(sources)]


def _resolve(source: DataSource, field: str, fingerprints: Fingerprints, progress: Callable[[str], None]) -> Source:
    stdlib = source.uri.startswith("python://")
    if stdlib and source.format != "text":
        raise UserError("DataUriInvalid", f"{field}.format: {source.uri} holds text files; leave format out")
    globs = GlobSet(source.include, source.exclude)
    files = _stdlib_files(source, field, globs) if stdlib else _files(source, field, globs, progress)
    kept = [file for file in files if file.identity.size > 0]
    if not kept:
        raise _nothing(source, field, found=len(files), globs=globs)
    for pattern in globs.unused():
        progress(f"{field}: the pattern {pattern!r} matches no file; patterns are relative to {source.uri}")
    size = sum(file.identity.size for file in kept)
    if size > _SAY_ABOVE:
        progress(f"{field}: finding the digests of {len(kept):,} files, {size / 1e9:,.1f} GB (only of new ones)")
    kept.sort(key=lambda file: file.relative)
    digests = fingerprints.sha256(
        source.uri, [FileToHash(file.relative, file.identity, file.path, file.open) for file in kept]
    )
    draw = Draw(source.sample) if source.sample else None
    taken = list(zip(kept, digests, strict=True))
    if draw is not None and source.format == "text":  # of rows the others are left out when they are read
        taken = [(file, digest) for file, digest in taken if draw.takes(digest)]
    return Source(
        field=field,
        kind="stdlib" if stdlib else "files",
        format=source.format,
        text_field=source.text_field,
        files=tuple(file for file, _ in taken),
        file_digests=tuple(digest for _, digest in taken),
        draw=draw,
    )


def _nothing(source: DataSource, field: str, *, found: int, globs: GlobSet) -> UserError:
    if found:
        return UserError("DataEmpty", f"{field}.uri: every file that {source.uri} offers is empty; check what wrote it")
    if source.include or source.exclude:
        patterns = f"include {list(source.include) or ['**']}, exclude {list(source.exclude)}"
        return UserError(
            "DataNoMatch",
            f"{field}.include: no file below {source.uri} matches ({patterns}); patterns are relative to that "
            "directory, '*' stays within one directory and '**/' crosses them",
        )
    return UserError("DataEmpty", f"{field}.uri: there is no file below {source.uri}; check the path")


def _stdlib_files(source: DataSource, field: str, globs: GlobSet) -> list[SourceFile]:
    if source.uri.rstrip("/") != STDLIB:
        raise UserError(
            "DataUriInvalid", f"{field}.uri: {source.uri!r} is not known; the only python:// URI is {STDLIB}"
        )
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise UserError(
            "DataNotFound", f"{field}.uri: this Python has no standard library on disk ({root}); name a directory"
        )
    storage = Storage(root, field=f"{field}.uri")
    return [
        file
        for file in _walk(storage, root, globs, skip=_NOT_STDLIB)
        if isinstance(file, SourceFile) and file.relative.endswith(".py")
    ]


def _files(source: DataSource, field: str, globs: GlobSet, progress: Callable[[str], None]) -> list[SourceFile]:
    storage = Storage(source.uri, field=f"{field}.uri")
    try:
        info = storage.info()
    except FileNotFoundError as error:
        raise UserError(
            "DataNotFound",
            f"{field}.uri: {source.uri} does not exist where the job runs; check the path, and that the volume that "
            "holds it is mounted",
        ) from error
    if info["type"] == "file":
        if source.include or source.exclude:
            raise UserError(
                "DataUriInvalid", f"{field}.include: {source.uri} is a file; patterns need a directory: leave them out"
            )
        return [_single(source, field, info)]
    if info["type"] != "directory":
        raise UserError("DataUriInvalid", f"{field}.uri: {source.uri} is neither a file nor a directory")
    root = storage.local_path
    if root is None:
        return [
            SourceFile(storage, relative, Identity.of_object(details))
            for relative, details in storage.find().items()
            if not any(part.startswith(".") for part in relative.split("/")) and globs.accepts(relative)
        ]
    files = []
    for file in _walk(storage, root, globs):
        if isinstance(file, SourceFile):
            files.append(file)
        else:
            progress(f"{field}: left out {file}: a link that leads nowhere, or not a regular file")
    return files


def _single(source: DataSource, field: str, info: dict[str, Any]) -> SourceFile:
    folder, _, name = source.uri.rstrip("/").rpartition("/")
    # A file at the very root of a path or of a file system that knows no buckets: "/x", "memory://x".
    if not folder:
        folder = "/"
    elif folder.endswith(":/"):
        folder += "/"
    storage = Storage(folder, field=f"{field}.uri")
    local = storage.local_path
    identity = Identity.of_object(info) if local is None else Identity.of_stat((local / name).stat())
    if identity.size == 0:
        raise UserError("DataEmpty", f"{field}.uri: {source.uri} is empty; check what wrote it")
    return SourceFile(storage, name, identity)


def _walk(
    storage: Storage, root: Path, globs: GlobSet, *, skip: frozenset[str] = frozenset()
) -> Iterator[SourceFile | str]:
    """The wanted files below a local directory, in no order; a string names what could not be taken.

    Real directories first, links to directories after them: a link to a place inside the tree never hides that place.
    """
    linked: list[tuple[Path, str]] = []
    seen: set[tuple[int, int]] = set()
    pending = [(root, "")]
    while pending or linked:
        if not pending:
            linked.sort(key=lambda item: item[1], reverse=True)
            pending.append(linked.pop())
        folder, prefix = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(
                "DataUnreadable", f"{storage.field}: cannot list {folder} ({error.strerror}); check its permissions"
            ) from error
        for entry in entries:
            relative = prefix + entry.name
            if entry.name.startswith(".") or entry.name in skip:
                continue
            kind = _kind(entry)
            if kind == "directory":
                if globs.enters(relative):
                    (linked if entry.is_symlink() else pending).append((Path(entry.path), relative + "/"))
            elif globs.accepts(relative):
                if kind == "file":
                    yield SourceFile(storage, relative, Identity.of_stat(entry.stat()))
                else:
                    yield relative


def _kind(entry: os.DirEntry[str]) -> Literal["directory", "file", "other"]:
    """What a name leads to, links followed. A link to nothing or to itself is "other"."""
    try:
        return "directory" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:
        return "other"
