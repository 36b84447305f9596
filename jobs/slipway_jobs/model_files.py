"""A model as files: where they are, whether they may be read, and what they are, before anything heavy is imported.

Only safetensors count as weights, because pickled ones can run code; code of a repository is never read at all.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipway_api.references import HubModel, ModelReference
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import FileRecord, sha256_of
from slipway_jobs.train.lineage import LINEAGE, model_digest

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# What decides what a model computes: weights, configuration, tokenizer. Not a README.
_DECIDING = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")


@contextlib.contextmanager
def model_directory(reference: ModelReference, *, field: str = "model") -> Iterator[tuple[Path, str]]:
    """The directory of a model's files on this machine, and how messages name it.

    Raises UserError ModelNotFound, NoSafetensors; InfrastructureError HubUnreachable, StorageFailed.
    """
    with contextlib.ExitStack() as stack:
        if reference.hub is not None:
            where = f"{reference.hub.repo}@{reference.hub.revision}"
            directory = hub_snapshot(reference.hub, field=field)[0]
        elif reference.uri is not None:
            where = reference.uri
            directory = stack.enter_context(local_copy(reference.uri, field=field))
        else:
            # The operator replaces trainJob by the uri of that job's result before it writes the run.
            raise UserError("ModelNotFound", f"{field}: the run names no model that it can load (uri or hub)")
        check_model_files(directory, where, field=field)
        yield directory, where


def directory_digest(directory: Path) -> str:
    """The digest over a model directory's files, as sha256:...

    Where slipway.json lists the files and they are what it says, it is that document's digest; else it is computed in
    the same way over every file that decides what the model does. Every byte is read: a digest that is believed
    without looking would hand one model's scores to another.
    """
    deciding = {
        path.name
        for path in directory.iterdir()
        if path.is_file() and path.name.endswith(_DECIDING) and path.name != LINEAGE
    }
    listed = _listed(directory)
    records = []
    for name in listed if deciding <= set(listed) else sorted(deciding):
        with (directory / name).open("rb") as stream:
            size, digest = sha256_of(stream)
        records.append(FileRecord(name, size, digest))
    return model_digest(records)


def sort_metadata(file: Path) -> None:
    """Give a safetensors file's metadata an order, in place: the same weights then are the same bytes.

    The library writes a dictionary of several entries (torchao's, of each quantized tensor) in another order each time.
    Format: 8 bytes length, JSON that may end in spaces, data (huggingface.co/docs/safetensors).
    """
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
        metadata = header.pop("__metadata__", None)
        if not metadata:
            return
        ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise ValueError(f"{file}: its header of {size} bytes has no room for {len(text)}")
        stream.seek(8)
        stream.write(text.ljust(size))


def _listed(directory: Path) -> list[str]:
    """The files that slipway.json names, where all of them are there."""
    try:
        names = [str(record["path"]) for record in json.loads((directory / LINEAGE).read_bytes())["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    inside = all(".." not in name.split("/") and not name.startswith("/") for name in names)
    return names if inside and all((directory / name).is_file() for name in names) else []


def count_parameters(directory: Path) -> int:
    """Elements of all tensors, from the headers of the safetensors files: tied parameters once, no weight is read."""
    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                header = json.loads(stream.read(length) if length < 1 << 28 else b"")
                for name, tensor in header.items():
                    if name != "__metadata__":
                        elements = 1
                        for size in tensor["shape"]:
                            elements *= int(size)
                        total += elements
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    "ModelUnreadable", f"model: {path} is not a safetensors file ({error}); write it anew"
                ) from error
    return total


@contextlib.contextmanager
def local_copy(uri: str, *, field: str = "model") -> Iterator[Path]:
    """The directory of a model at a URI; a copy of it where it is not on a local file system.

    Raises UserError ModelNotFound and what Storage raises.
    """
    storage = Storage(uri, field=f"{field}.uri")
    if storage.local_path is not None:
        yield storage.local_path
        return
    import tempfile  # noqa: PLC0415 - remote models only

    with tempfile.TemporaryDirectory(prefix="slipway-model-") as scratch:
        try:
            storage.download("", Path(scratch))
        except FileNotFoundError as error:
            raise UserError("ModelNotFound", f"{field}.uri: there is nothing at {uri}") from error
        yield Path(scratch)


def hub_snapshot(hub: HubModel, *, field: str = "model") -> tuple[Path, dict[str, Any]]:
    """The directory of a hub repository's files, fetched if need be, and where it comes from.

    Raises UserError ModelNotFound; InfrastructureError HubUnreachable.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt"]
    try:
        directory = Path(snapshot_download(hub.repo, revision=hub.revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UserError(
            "ModelNotFound",
            f"{field}.hub: {hub.repo} is gated; accept its terms and give the worker a token (HF_TOKEN)",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError("ModelNotFound", f"{field}.hub: {hub.repo} has no revision {hub.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise UserError("ModelNotFound", f"{field}.hub: no repository {hub.repo} on {_endpoint()}") from error
    except LocalEntryNotFoundError as error:
        raise InfrastructureError(
            "HubUnreachable", f"{field}.hub: cannot reach {_endpoint()} for {hub.repo}"
        ) from error
    except OSError as error:
        raise InfrastructureError("HubUnreachable", f"{field}.hub: cannot fetch {hub.repo}: {error}") from error
    # A snapshot's directory is named after the commit that the revision stood for.
    return directory, {"hub": {"repo": hub.repo, "revision": hub.revision, "commit": directory.name}}


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "the Hugging Face hub")


def check_model_files(directory: Path, where: str, *, field: str = "model") -> None:
    """Raises UserError ModelNotFound or NoSafetensors before transformers says it less clearly."""
    if not directory.is_dir():
        raise UserError("ModelNotFound", f"{field}: there is no directory at {where}")
    names = sorted(path.name for path in directory.iterdir())
    if "config.json" not in names:
        raise UserError(
            "ModelNotFound", f"{field}: {where} has no config.json; it must be a Hugging Face model directory"
        )
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith(_PICKLED)]
        found = f"only {', '.join(pickled[:5])}" if pickled else "no weights at all"
        raise UserError(
            "NoSafetensors",
            f"{field}: {where} has {found}. Pickled weights can run code, so only safetensors are read: load the model "
            "where you trust it and write it again with save_pretrained(), which makes safetensors",
        )
