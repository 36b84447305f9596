"""The one seam between a run and where its files live: a prefix on a local disk or on any fsspec file system.

A local prefix is served with plain system calls, because checkpoints and token shards live or die by their speed and
need rename and fsync, which fsspec does not offer. Everything else goes through fsspec and the plugin for its
protocol. A prefix is a wall: no relative path leads out of it. (The check is lexical. Symbolic links inside a prefix
are followed, since whoever can write there needs no trick to put other content in.)

It never retries: whoever calls knows what a second try would cost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from slipway_jobs.errors import InfrastructureError, JobError, UserError

_LOCAL_PROTOCOLS = ("file", "local")
_TRANSFERS = 8  # parallel copies to or from an object store: latency-bound, so more than cores


class Storage:
    """A prefix: a local path, `file://...`, or any URI whose fsspec plugin is installed (`s3://bucket/prefix`).

    `field` is the manifest's field that the URI came from; errors name it. Nothing is contacted before the first use.
    Every method takes paths relative to the prefix, with forward slashes. They raise FileNotFoundError as it is;
    UserError StorageProtocolMissing, StorageProtocolUnknown, StorageUriInvalid, PathEscapes or StorageDenied;
    InfrastructureError StorageFull or StorageFailed.
    """

    def __init__(self, uri: str | os.PathLike[str], *, field: str = "storage") -> None:
        text = os.fspath(uri)
        self.field = field
        self._root: Path | None = None
        protocol, separator, rest = text.partition("://")
        if not separator:
            self._root = Path(os.path.abspath(text))  # noqa: PTH100 - lexical: links stay as they were named
        elif protocol in _LOCAL_PROTOCOLS:
            rest = rest.removeprefix("localhost")
            if not rest.startswith("/"):
                raise UserError(
                    "StorageUriInvalid",
                    f"{field}: {text!r} names a host; write file:///path for a path of this machine",
                )
            self._root = Path(os.path.abspath(rest))  # noqa: PTH100
        elif ".." in rest.split("/"):
            raise UserError("PathEscapes", f"{field}: {text!r} must not contain '..'; write the resolved path")
        self.uri = str(self._root) if self._root is not None else f"{protocol}://{rest.rstrip('/')}"

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A file system object holds sockets and a thread: the other process opens its own.
        return {key: value for key, value in self.__dict__.items() if key != "_remote"}

    @property
    def local_path(self) -> Path | None:
        """The real path where the prefix is on a local (or mounted) file system, else None."""
        return self._root

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """The fsspec file system and the prefix in its own notation."""
        import fsspec  # noqa: PLC0415 - a local run never needs it

        protocol = self.uri.partition("://")[0]
        try:
            system, prefix = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            raise UserError(
                "StorageProtocolMissing",
                f"{self.field}: {self.uri!r} needs a Python package that this environment lacks ({error}); "
                f"add the fsspec plugin for {protocol}:// to the image",
            ) from error
        except ValueError as error:
            raise UserError(
                "StorageProtocolUnknown",
                f"{self.field}: fsspec cannot open {self.uri!r} ({error}); use a path or a protocol such as file://, "
                "s3:// or gs://",
            ) from error
        except Exception as error:
            raise InfrastructureError("StorageFailed", f"{self.field}: cannot open {self.uri!r}: {error}") from error
        return system, str(prefix).rstrip("/")

    # --- paths ----------------------------------------------------------------------------------------------------

    def join(self, *parts: str) -> Storage:
        """The prefix below this one. Raises UserError PathEscapes."""
        relative = self._checked("/".join(parts))
        return Storage(self._uri_of(relative), field=self.field)

    def _uri_of(self, relative: str) -> str:
        if not relative:
            return self.uri
        return f"{self.uri}{relative}" if self.uri.endswith("/") else f"{self.uri}/{relative}"

    def _checked(self, relative: str) -> str:
        """The relative path in normal form, or UserError where it would leave the prefix."""
        path = PurePosixPath(relative)
        if path.is_absolute() or ".." in path.parts or "\x00" in relative:
            raise UserError("PathEscapes", f"{self.field}: {relative!r} leads out of {self.uri}; use a path below it")
        return "" if path == PurePosixPath() else path.as_posix()

    def _local(self, relative: str) -> Path | None:
        checked = self._checked(relative)
        return None if self._root is None else self._root / checked

    def _key(self, relative: str) -> str:
        checked = self._checked(relative)
        prefix = self._remote[1]
        return f"{prefix}/{checked}" if checked else prefix

    @contextlib.contextmanager
    def _guard(self, verb: str, relative: str) -> Iterator[None]:
        """Turns what a file system throws into our errors. A missing file stays FileNotFoundError."""
        try:
            yield
        except (JobError, FileNotFoundError):
            raise
        except PermissionError as error:
            raise UserError(
                "StorageDenied",
                f"{self.field}: no permission to {verb} {self.uri}/{relative} ({error}); "
                "check the volume's ownership or the credentials of the job",
            ) from error
        except OSError as error:
            if isinstance(error, NotADirectoryError) and verb != "write":  # a file stands where a directory should
                raise FileNotFoundError(error.errno, f"no such file: {self.uri}/{relative}") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InfrastructureError(
                    "StorageFull", f"{self.field}: no space left to {verb} {self.uri}/{relative}; free or enlarge it"
                ) from error
            raise InfrastructureError(
                "StorageFailed", f"{self.field}: cannot {verb} {self.uri}/{relative}: {error}"
            ) from error
        except Exception as error:  # each plugin has its own tree
            raise InfrastructureError(
                "StorageFailed", f"{self.field}: cannot {verb} {self.uri}/{relative}: {type(error).__name__}: {error}"
            ) from error

    # --- one file -------------------------------------------------------------------------------------------------

    def exists(self, relative: str = "") -> bool:
        """Whether a file or directory is there."""
        local = self._local(relative)
        with self._guard("look for", relative):
            return local.exists() if local is not None else bool(self._remote[0].exists(self._key(relative)))

    def info(self, relative: str = "") -> dict[str, Any]:
        """What fsspec says about a file or directory: at least `type` ("file", "directory" or "other") and `size` in
        bytes."""
        local = self._local(relative)
        with self._guard("look at", relative):
            if local is None:
                return dict(self._remote[0].info(self._key(relative)))
            status = local.stat()
            kind = "directory" if local.is_dir() else "file" if local.is_file() else "other"
            return {"name": str(local), "type": kind, "size": status.st_size}

    def open(self, relative: str, mode: Literal["rb", "wb"] = "rb") -> IO[bytes]:
        """A binary stream. Writing makes the directories above and is not atomic."""
        local = self._local(relative)
        with self._guard("open", relative):
            if local is None:
                stream: IO[bytes] = self._remote[0].open(self._key(relative), mode)
                return stream
            if mode == "wb":
                local.parent.mkdir(parents=True, exist_ok=True)
            return local.open(mode)

    def read_bytes(self, relative: str) -> bytes:
        """The whole content of a file."""
        local = self._local(relative)
        with self._guard("read", relative):
            return local.read_bytes() if local is not None else bytes(self._remote[0].cat_file(self._key(relative)))

    def write_bytes_atomic(self, relative: str, data: bytes) -> None:
        """Replace a file so that a reader sees the old content or the new, never a part, even after a power cut.

        An object store's put has that property by itself.
        """
        local = self._local(relative)
        with self._guard("write", relative):
            if local is not None:
                _replace_file(local, data)
            else:
                self._remote[0].pipe_file(self._key(relative), data)

    # --- trees ----------------------------------------------------------------------------------------------------

    def list(self, relative: str = "") -> Sequence[str]:
        """Names of the files and directories directly below, sorted. Empty where there is nothing."""
        local = self._local(relative)
        with self._guard("list", relative):
            try:
                if local is not None:
                    return sorted(os.listdir(local))  # noqa: PTH208 - names only, no Path objects
                key = self._key(relative)
                entries = self._remote[0].ls(key, detail=False)
            except FileNotFoundError:
                return []
        return sorted(name for name in {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry != key})

    def find(self, relative: str = "") -> dict[str, dict[str, Any]]:
        """Every file below, by its path relative to `relative`, sorted, with fsspec's details (at least `size`)."""
        local = self._local(relative)
        with self._guard("list", relative):
            if local is None:
                key = self._key(relative)
                found = self._remote[0].find(key, detail=True)
                return {_below(name, key): dict(info) for name, info in sorted(found.items())}
            files: dict[str, dict[str, Any]] = {}
            for folder, _, names in os.walk(local):
                for name in names:
                    path = Path(folder, name)
                    files[path.relative_to(local).as_posix()] = {"type": "file", "size": path.stat().st_size}
            return dict(sorted(files.items()))

    def delete(self, relative: str = "") -> None:
        """Delete a file or a whole tree. What is not there is no error. The root of a file system is refused."""
        local = self._local(relative)
        with self._guard("delete", relative):
            if local is None:
                with contextlib.suppress(FileNotFoundError):
                    self._remote[0].rm(self._key(relative), recursive=True)
                return
            if len(local.parts) < 3:
                raise UserError("PathEscapes", f"{self.field}: refusing to delete {local}; name a directory of its own")
            if local.is_dir() and not local.is_symlink():
                shutil.rmtree(local)
            else:
                local.unlink(missing_ok=True)

    def download(self, relative: str, destination: Path, names: Iterable[str] | None = None) -> None:
        """Copy the tree (or the named files) below `relative` into a local directory, which is made if need be."""
        wanted = sorted(self.find(relative)) if names is None else [self._checked(name) for name in names]
        source = self.join(relative)

        def fetch(name: str) -> None:
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with source._guard("read", name):
                if source._root is not None:
                    shutil.copyfile(source._root / name, target)
                else:
                    source._remote[0].get_file(source._key(name), str(target))

        destination.mkdir(parents=True, exist_ok=True)
        _each(fetch, wanted, parallel=self._root is None)

    def upload(self, source: Path, relative: str, *, commit: str | None = None) -> None:
        """Copy a local directory's tree below `relative`, durably. The file named by `commit` arrives last,
        atomically."""
        names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
        target = self.join(relative)

        def send(name: str) -> None:
            with target._guard("write", name):
                if target._root is None:
                    target._remote[0].put_file(str(source / name), target._key(name))
                    return
                path = target._root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with (source / name).open("rb") as reader, path.open("wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                    writer.flush()
                    os.fsync(writer.fileno())

        _each(send, [name for name in names if name != commit], parallel=target._root is None)
        if commit is not None:
            target.write_bytes_atomic(commit, (source / commit).read_bytes())


def _each(action: Any, names: list[str], *, parallel: bool) -> None:
    if not parallel or len(names) < 2:
        for name in names:
            action(name)
        return
    with ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="storage") as pool:
        for _ in pool.map(action, names):
            pass


def _below(name: str, prefix: str) -> str:
    """The part of a file system's own name that comes after the prefix; a file's own name where it is the prefix."""
    trimmed = name.removeprefix(prefix).lstrip("/")
    return trimmed or name.rsplit("/", 1)[-1]


def _replace_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename or a new name in a local directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
