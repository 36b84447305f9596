"""The tokenizer of a run: trained on its documents, or taken from a directory, the hub or the model itself.

Either way it ends as a Hugging Face tokenizer directory in the cache (kind "tokenizers"), so that everything after
this point sees one form and needs only the small `tokenizers` library: transformers takes seconds to import and is
used once per tokenizer, to load what others wrote. Code that comes with a tokenizer is never run.

Training: byte-level BPE, no normalizer, no unknown token: every text comes back exactly as it went in. The same
documents give the same tokenizer. It sees a bounded sample (SAMPLE_BYTES_PER_TOKEN of text for each entry of the
vocabulary, at least MIN_SAMPLE_BYTES): merges of a vocabulary of that size do not change noticeably with more.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_api.references import HubModel, TrainingModel
from slipway_api.trainjob import Tokenizer, TrainTokenizer
from slipway_jobs.data.cache import Cache, Entry
from slipway_jobs.data.documents import Piece, documents
from slipway_jobs.data.sources import Source
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.lean_transformers import lean_transformers
from slipway_jobs.storage import Storage

KIND = "tokenizers"
FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES_PER_TOKEN = 1024
MIN_SAMPLE_BYTES = 4 << 20
_SAMPLE_UNIT = 64 << 10  # characters: long documents are sampled in parts
_FOLDER = "tokenizer"  # inside the entry, so that index.json does not travel with the tokenizer
# What transformers may read to make a tokenizer. No *.py, no weights.
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken",
    "chat_template.jinja",
)  # fmt: skip
_VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "*.tiktoken",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A tokenizer that is ready. `vocab_size` is the largest id plus one: the smallest embedding that serves it."""

    path: Path
    digest: str
    vocab_size: int
    eos_id: int
    pad_id: int

    @classmethod
    def of(cls, entry: Entry) -> TokenizerInfo:
        """From its cache entry."""
        meta = entry.meta
        return cls(
            entry.path / _FOLDER, str(meta["sha256"]), int(meta["vocabSize"]), int(meta["eosId"]), int(meta["padId"])
        )


def check_vocabulary(tokenizer_size: int, model_vocab_size: int) -> None:
    """Raise UserError VocabularyMismatch where the tokenizer can produce an id that the model has no embedding for.

    A model's embedding may be larger (models pad it to a round number), never smaller.
    """
    if tokenizer_size > model_vocab_size:
        raise UserError(
            "VocabularyMismatch",
            f"tokenizer: it has {tokenizer_size} entries, the model only {model_vocab_size}; use the tokenizer that "
            "the model was trained with (leave tokenizer out)",
        )


def resolve_tokenizer(
    tokenizer: Tokenizer | None,
    model: TrainingModel,
    train_sources: Sequence[Source],
    cache: Cache,
    progress: Callable[[str], None],
) -> Entry:
    """The cache entry of the run's tokenizer, made if need be.

    Raises UserError TokenizerMissing, TokenizerNotFound, TokenizerUnusable, TokenizerWithoutEnd, HubNotFound,
    ModelUnresolved or InfrastructureError HubUnreachable, and what reading the documents raises.
    """
    if tokenizer is not None and tokenizer.train is not None:
        return _trained(tokenizer.train, train_sources, cache, progress)
    if tokenizer is not None and tokenizer.uri is not None:
        return _from_uri(tokenizer.uri, "tokenizer.uri", cache, progress)
    if tokenizer is not None and tokenizer.hub is not None:
        return _from_hub(tokenizer.hub, "tokenizer.hub", cache, progress)
    if model.uri is not None:
        return _from_uri(model.uri, "model.uri", cache, progress)
    if model.hub is not None:
        return _from_hub(model.hub, "model.hub", cache, progress)
    if model.train_job is not None:
        raise UserError(
            "ModelUnresolved",
            f"model.trainJob: the run was given the name {model.train_job.name!r} instead of where that model lies; "
            "outside of Slipway's operator, set model.uri to the directory that it was saved in",
        )
    raise UserError(
        "TokenizerMissing",
        "tokenizer: a fresh model has none of its own; set tokenizer.train, tokenizer.uri or tokenizer.hub",
    )


# --- training -----------------------------------------------------------------------------------------------------


def _trained(spec: TrainTokenizer, sources: Sequence[Source], cache: Cache, progress: Callable[[str], None]) -> Entry:
    import tokenizers  # noqa: PLC0415 - its version is part of the key: merges may depend on it

    key = _sha256(
        ["bpe", FORMAT, tokenizers.__version__, spec.vocab_size, SAMPLE_BYTES_PER_TOKEN, MIN_SAMPLE_BYTES],
        [source.digest for source in sources],
    )

    def build(directory: Path) -> dict[str, Any]:
        progress(f"training a tokenizer of {spec.vocab_size} entries")
        bound = max(MIN_SAMPLE_BYTES, spec.vocab_size * SAMPLE_BYTES_PER_TOKEN)
        folder = directory / _FOLDER
        size = train_bpe(sample(documents(sources), bound), spec.vocab_size, folder)
        if size < spec.vocab_size:
            progress(f"tokenizer.train.vocabSize: the documents gave only {size} of {spec.vocab_size} entries")
        return {"sha256": _directory_digest(folder), "vocabSize": size, "eosId": 0, "padId": 0}

    return cache.get_or_build(KIND, key, build)


def sample(pieces: Iterable[Piece], bound: int) -> list[str]:
    """Texts spread evenly over all pieces, at most `bound` bytes together (and more than half of it, if there is that
    much).

    One pass in bounded memory, the same for the same pieces: every k-th unit is kept, and whenever the kept ones
    outgrow the bound every second of them is dropped and k doubled.
    """
    kept: list[str] = []
    size, stride, number = 0, 1, 0
    for piece in pieces:
        for start in range(0, len(piece.text), _SAMPLE_UNIT):
            if number % stride == 0:
                unit = piece.text[start : start + _SAMPLE_UNIT]
                kept.append(unit)
                size += len(unit.encode())
                while size > bound and len(kept) > 1:
                    kept = kept[::2]
                    stride *= 2
                    size = sum(len(text.encode()) for text in kept)
            number += 1
    return kept


def train_bpe(texts: Sequence[str], vocab_size: int, directory: Path) -> int:
    """Train a byte-level BPE and write it to a directory that transformers.AutoTokenizer loads. Returns its real size.

    `<|endoftext|>` has id 0 and serves as beginning, end and padding; the 256 bytes follow, then the merges.
    """
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415
    from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, also those that the sample lacks
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return int(backend.get_vocab_size())


# --- loading ------------------------------------------------------------------------------------------------------


def _from_uri(uri: str, field: str, cache: Cache, progress: Callable[[str], None]) -> Entry:
    storage = Storage(uri, field=field)
    names = [name for name in storage.list() if _matches(name, _FILES)]
    if not any(_matches(name, _VOCABULARIES) for name in names):
        raise UserError(
            "TokenizerNotFound",
            f"{field}: {uri} holds no tokenizer.json (nor another vocabulary); name a directory that does"
            + ("" if field.startswith("tokenizer") else ", or set tokenizer"),
        )
    with tempfile.TemporaryDirectory(prefix="slipway-tokenizer-") as temporary:
        storage.download("", Path(temporary), names)
        return _loaded(Path(temporary), uri, field, cache, progress)


def _from_hub(hub: HubModel, field: str, cache: Cache, progress: Callable[[str], None]) -> Entry:
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - a run without the hub never needs it

    where = f"{hub.repo}@{hub.revision}"
    try:
        snapshot = Path(snapshot_download(hub.repo, revision=hub.revision, allow_patterns=list(_FILES)))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            "HubNotFound",
            f"{field}: the hub has no {where} that this job may read; check repo and revision, and that HF_TOKEN is "
            "set where the repository is private or gated",
        ) from error
    except Exception as error:  # no network, a proxy, the hub itself: httpx, requests and hub errors by version
        raise InfrastructureError(
            "HubUnreachable",
            f"{field}: cannot fetch {where} from the hub, and the local hub cache lacks it ({type(error).__name__}); "
            f"without a network, put the files in a directory and name it in {field.partition('.')[0]}.uri",
        ) from error
    with tempfile.TemporaryDirectory(prefix="slipway-tokenizer-") as temporary:
        names = [path.name for path in snapshot.iterdir() if path.is_file() and _matches(path.name, _FILES)]
        for name in names:
            shutil.copyfile(snapshot / name, Path(temporary, name))
        if not any(_matches(name, _VOCABULARIES) for name in names):
            raise UserError(
                "TokenizerNotFound", f"{field}: {where} holds no tokenizer; name another repository in tokenizer.hub"
            )
        return _loaded(Path(temporary), where, field, cache, progress)


def _loaded(source: Path, where: str, field: str, cache: Cache, progress: Callable[[str], None]) -> Entry:
    from importlib.metadata import version  # noqa: PLC0415

    key = _sha256(["loaded", FORMAT, version("transformers")], [_directory_digest(source)])

    def build(directory: Path) -> dict[str, Any]:
        progress(f"loading the tokenizer of {where}")
        return _convert(source, directory / _FOLDER, where, field)

    return cache.get_or_build(KIND, key, build)


def _convert(source: Path, target: Path, where: str, field: str) -> dict[str, Any]:
    """Load with transformers, check what training needs, save as a fast tokenizer."""
    lean_transformers()
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds; once per tokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise UserError(
            "TokenizerUnusable",
            f"{field}: transformers cannot load the tokenizer of {where} ({type(error).__name__}: {str(error)[:300]}); "
            "code that comes with a tokenizer is never run: name one that transformers knows",
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise UserError(
            "TokenizerUnusable",
            f"{field}: {where} has no fast tokenizer (tokenizer.json); save one with transformers first",
        )
    if loaded.eos_token_id is None:
        raise UserError(
            "TokenizerWithoutEnd",
            f"{field}: the tokenizer of {where} names no eos_token, which has to stand between documents; "
            "add eos_token to its tokenizer_config.json",
        )
    target.mkdir(parents=True)
    for leftover in ("is_local", "local_files_only"):  # how it was loaded here is no business of whoever loads it next
        loaded.init_kwargs.pop(leftover, None)
    loaded.save_pretrained(str(target))
    if not (target / "tokenizer.json").is_file():
        raise UserError("TokenizerUnusable", f"{field}: {where} does not save as tokenizer.json; name a fast tokenizer")
    pad = loaded.pad_token_id if loaded.pad_token_id is not None else loaded.eos_token_id
    return {
        "sha256": _directory_digest(target),
        "vocabSize": max(loaded.get_vocab().values()) + 1,
        "eosId": int(loaded.eos_token_id),
        "padId": int(pad),
    }


def load_backend(directory: Path) -> Any:
    """The `tokenizers.Tokenizer` of a directory, set up for whole documents.

    No truncation and no padding (tokenizer.json may ask for both), and a special token written out in a document is
    encoded as the plain text that it is: data must not be able to say "end of text".
    """
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415

    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _directory_digest(directory: Path) -> str:
    return _sha256(
        [], [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in sorted(directory.iterdir())]
    )


def _sha256(header: list[Any], items: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([header, list(items)]).encode()).hexdigest()
