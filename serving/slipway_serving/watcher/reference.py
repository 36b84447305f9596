"""Finds the reference of a version: beside the model, or built from documents and kept in storage by digest."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_api.references import ModelReference
from slipway_api.serving import WatcherConfig
from slipway_jobs.data.documents import documents
from slipway_jobs.data.fingerprints import Fingerprints
from slipway_jobs.data.sources import Source, resolve
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.profile import ARRAYS, DOCUMENT, VERSION, ReferenceProfile, read_profile
from slipway_jobs.drift.reference import FOLDER, TextReader, build_profile, tokenizer_digest
from slipway_jobs.errors import UserError
from slipway_jobs.model_files import hub_snapshot
from slipway_jobs.storage import Storage

log = logging.getLogger("slipway.watcher")
_FIELD = "spec.drift.reference.sources"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_PROFILE_FILES = (f"{FOLDER}/{DOCUMENT}", f"{FOLDER}/{ARRAYS}")


@dataclass(frozen=True)
class Reference:
    """The profile, and what reads texts as it was made. `directory` holds the tokenizer's files."""

    profile: ReferenceProfile
    reader: TextReader
    backend: Any
    directory: Path


def open_reference(config: WatcherConfig) -> Reference:
    """Raises ProfileError where there is none that fits, and UserError or InfrastructureError for files and storage."""
    directory = _small_files(config.model)
    if not (directory / "tokenizer.json").is_file():
        raise ProfileError("the model has no tokenizer.json.", "Save it with a fast tokenizer.")
    backend = load_backend(directory)
    digest = tokenizer_digest(backend.get_vocab(with_added_tokens=True))
    if config.sources:
        profile = _of_documents(config, backend, digest)
    else:
        try:
            profile = read_profile(directory / FOLDER, digest)
        except ProfileError as error:
            raise ProfileError(error.message, "Name documents in spec.drift.reference.sources.") from error
    return Reference(profile, TextReader(backend, profile.vocabulary), backend, directory)


def _small_files(model: ModelReference) -> Path:
    """The tokenizer and the profile; no weights, except from a hub, whose cache holds them anyway."""
    if model.hub is not None:
        return hub_snapshot(model.hub)[0]
    if model.uri is None:
        raise UserError("ModelNotFound", "model: neither a uri nor a hub repository is named")
    storage = Storage(model.uri, field="model.uri")
    if storage.local_path is not None:
        return storage.local_path
    target = Path(tempfile.mkdtemp(prefix="slipway-watcher-"))
    storage.download("", target, [name for name in (*_TOKENIZER_FILES, *_PROFILE_FILES) if storage.exists(name)])
    return target


def _of_documents(config: WatcherConfig, backend: Any, digest: str) -> ReferenceProfile:
    """The profile of the sources as they are now; made once."""
    storage = Storage(config.storage, field="storage")
    sources = resolve(config.sources, _FIELD, Fingerprints(storage.join("fingerprints")), log.info)
    key = json.dumps([VERSION, digest, [source.digest for source in sources]])
    kept = storage.join("references", hashlib.sha256(key.encode()).hexdigest()[:16])
    with tempfile.TemporaryDirectory(prefix="slipway-profile-") as scratch:
        if kept.exists(DOCUMENT):
            kept.download("", Path(scratch), [DOCUMENT, ARRAYS])
            return read_profile(Path(scratch), digest)
        profile = build_profile(backend, _texts(sources))
        profile.write(Path(scratch))
        kept.upload(Path(scratch), "", commit=DOCUMENT)
    return profile


def _texts(sources: list[Source]) -> Iterator[tuple[str, str]]:
    """Whole documents. Long ones come in pieces, each of which is one here."""
    for number, piece in enumerate(documents(sources)):
        yield str(number), piece.text
