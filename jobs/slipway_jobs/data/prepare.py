"""From the `data` and `tokenizer` of a manifest to token shards on this machine's disk.

`prepare` runs in one process, the driver; it is the only one that reads the user's files. What it leaves is a small
descriptor in the cache, and every rank opens that with `PreparedData.load`. The tokenizer and the shards of each
split are cache entries addressed by content, so a second job, or the next attempt, finds them and only hashes the
files.

Nothing here needs torch or Ray.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_api.references import TrainingModel
from slipway_api.trainjob import Data, Tokenizer
from slipway_jobs.data import shards
from slipway_jobs.data.cache import Cache, Entry
from slipway_jobs.data.documents import documents
from slipway_jobs.data.shards import TokenDataset, write_shards
from slipway_jobs.data.sources import Source, resolve
from slipway_jobs.data.split import nothing_in, part_of
from slipway_jobs.data.tokenizer import KIND as TOKENIZERS
from slipway_jobs.data.tokenizer import TokenizerInfo, load_backend, resolve_tokenizer
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage

DESCRIPTORS = "prepared"
_FORMAT = 1
_TRAIN, _EVAL, _SPLIT = "data.sources", "data.evalSources", "data.split"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of a run, ready to read on this machine. Pickles; also travels as the URI of its descriptor."""

    train: TokenDataset
    eval: TokenDataset | None
    tokenizer_dir: Path  # a Hugging Face tokenizer directory
    vocab_size: int  # largest token id plus one
    eos_id: int
    pad_id: int
    digest: str  # sha256:... over tokenizer, training and held-out documents
    descriptor_uri: str

    @property
    def train_tokens(self) -> int:
        """Tokens in the training stream."""
        return len(self.train)

    @property
    def eval_tokens(self) -> int:
        """Tokens in the held-out stream; 0 without one."""
        return 0 if self.eval is None else len(self.eval)

    @property
    def train_documents(self) -> int:
        """Documents in the training stream."""
        return self.train.documents

    @property
    def eval_documents(self) -> int:
        """Documents in the held-out stream; 0 without one."""
        return 0 if self.eval is None else self.eval.documents

    @classmethod
    def load(cls, descriptor_uri: str, *, scratch: Path | None = None) -> PreparedData:
        """Open what another process has prepared, from its `descriptor_uri`.

        A cache that is not on a local (or mounted) file system is copied to `scratch` first, once per machine;
        default: a directory of this user's below TMPDIR. Raises InfrastructureError CacheEntryMissing or
        CacheEntryDamaged.
        """
        root, _, name = descriptor_uri.rpartition(f"/{DESCRIPTORS}/")
        storage = Storage(f"{root}/" if root.endswith(":/") else root, field="cache")
        try:
            document = json.loads(storage.read_bytes(f"{DESCRIPTORS}/{name}"))
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r}")
            kinds = (document["tokenizer"], document["train"], document["eval"])
        except FileNotFoundError as error:
            raise InfrastructureError(
                "CacheEntryMissing",
                f"cache: {descriptor_uri} is not there; every worker must see the cache that the driver wrote "
                "(a shared volume or an object store)",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InfrastructureError("CacheEntryDamaged", f"cache: {descriptor_uri} is malformed: {error}") from error
        cache = Cache(storage, scratch=scratch, progress=lambda _: None)
        tokenizer, train, held_out = kinds
        return _prepared(
            cache.open(TOKENIZERS, tokenizer),
            cache.open(shards.KIND, train),
            None if held_out is None else cache.open(shards.KIND, held_out),
            descriptor_uri,
        )


def prepare(
    data: Data,
    tokenizer: Tokenizer | None,
    model: TrainingModel,
    cache: Storage,
    *,
    progress: Callable[[str], None],
    scratch: Path | None = None,
) -> PreparedData:
    """Make (or find) the tokenizer and the token shards. `progress` is told, in words, what takes long or looks odd.

    Raises UserError for anything that the manifest or the data has wrong (each names the field, and the file and
    line), and InfrastructureError for storage and network. What was half done is removed or never used.
    """
    store = Cache(cache, scratch=scratch, progress=progress)
    train_sources, eval_sources = _both_parts(data, store, progress)
    tokenizer_entry = resolve_tokenizer(tokenizer, model, train_sources, store, progress)
    train = _tokenized(train_sources, _TRAIN, tokenizer_entry, store, progress)
    held_out = _tokenized(eval_sources, _EVAL, tokenizer_entry, store, progress) if eval_sources else None

    entries = {
        "format": _FORMAT,
        "tokenizer": tokenizer_entry.digest,
        "train": train.digest,
        "eval": None if held_out is None else held_out.digest,
    }
    document = json.dumps(entries, sort_keys=True).encode()
    name = f"{DESCRIPTORS}/{hashlib.sha256(document).hexdigest()}.json"
    cache.write_bytes_atomic(name, document)
    prepared = _prepared(tokenizer_entry, train, held_out, cache.join(name).uri)
    prepared.train.n_sequences(data.sequence_length)  # says so where there is not even one
    if prepared.eval is not None and len(prepared.eval) < 2:
        raise UserError("DataTooShort", f"{_EVAL}: the held-out documents leave nothing to predict; add some")
    return prepared


def _both_parts(data: Data, cache: Cache, progress: Callable[[str], None]) -> tuple[list[Source], list[Source]]:
    """What is trained on and what is held out. A tokenizer is trained on the first alone, as everything else."""
    sources = resolve(data.sources, _TRAIN, cache.fingerprints, progress)
    if data.split is not None:
        return (
            part_of(sources, data.split, held_out=False, field=_SPLIT),
            part_of(sources, data.split, held_out=True, field=_SPLIT),
        )
    held_out = resolve(data.eval_sources, _EVAL, cache.fingerprints, progress)
    _warn_of_overlap(sources, held_out, progress)
    return sources, held_out


def _tokenized(
    sources: Sequence[Source], field: str, tokenizer_entry: Entry, cache: Cache, progress: Callable[[str], None]
) -> Entry:
    info = TokenizerInfo.of(tokenizer_entry)
    key = json.dumps(["tokens", shards.FORMAT, info.digest, info.eos_id, [source.digest for source in sources]])

    def build(directory: Path) -> dict[str, Any]:
        started = time.monotonic()
        size = sum(source.size for source in sources)
        progress(f"{field}: tokenizing {sum(len(source.files) for source in sources):,} files, {size / 1e6:,.1f} MB")
        meta = write_shards(
            documents(sources),
            load_backend(info.path),
            eos_id=info.eos_id,
            vocab_size=info.vocab_size,
            directory=directory,
            progress=progress,
        )
        if meta["documents"] == 0 and sources[0].part is not None:
            raise nothing_in(sources[0].part, _SPLIT)
        if meta["documents"] == 0:
            sampled = any(source.draw for source in sources)
            todo = "take a larger sample.fraction or another sample.seed" if sampled else "check what wrote them"
            raise UserError("DataEmpty", f"{field}: the files hold no document; {todo}")
        seconds = time.monotonic() - started
        progress(f"{field}: {meta['tokens']:,} tokens of {meta['documents']:,} documents in {seconds:.1f} s")
        return {**meta, "tokenizer": info.digest, "sources": [source.describe() for source in sources]}

    return cache.get_or_build(shards.KIND, hashlib.sha256(key.encode()).hexdigest(), build)


def _prepared(tokenizer: Entry, train: Entry, held_out: Entry | None, descriptor_uri: str) -> PreparedData:
    info = TokenizerInfo.of(tokenizer)
    identity = json.dumps([info.digest, train.digest, held_out.digest if held_out else None])
    return PreparedData(
        train=TokenDataset.of(train, pad_id=info.pad_id, field=_TRAIN),
        eval=None if held_out is None else TokenDataset.of(held_out, pad_id=info.pad_id, field=_EVAL),
        tokenizer_dir=info.path,
        vocab_size=info.vocab_size,
        eos_id=info.eos_id,
        pad_id=info.pad_id,
        digest=f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}",
        descriptor_uri=descriptor_uri,
    )


def _warn_of_overlap(train: Sequence[Source], held_out: Sequence[Source], progress: Callable[[str], None]) -> None:
    """A file that is trained on says nothing about what the model has learned. It may be meant; it must not go
    unsaid."""
    seen = {digest for source in train for digest in source.file_digests}
    shared = [
        file.relative
        for source in held_out
        for file, digest in zip(source.files, source.file_digests, strict=True)
        if digest in seen
    ]
    if shared:
        progress(
            f"{_EVAL}: {len(shared)} held-out file(s) are also trained on ({', '.join(shared[:3])}"
            f"{', ...' if len(shared) > 3 else ''}): held-out figures will look better than they are"
        )
