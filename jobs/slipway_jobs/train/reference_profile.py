"""The reference profile that a trained model is given on its way: what its requests should look like (drift/reference).

One half of its requests is cut from the held-out documents, the other from training documents; the vocabulary is
counted on training documents that give no requests. Held-out documents alone are often a few files, which differ from
the rest of their kind: then traffic like the training documents would count as drifted.

The exported model itself says how well it knows the held-out requests (`input.loss`), and what it writes after some of
them (`outputs`). The latter is for people to read: lengths, ends and, through the text that it goes on with, entropies
of answers follow from what clients ask for (max_tokens, temperature), so the watcher learns them from the first answers
that a version gives.

A profile is no condition for a model, nor is the model's part one for a profile: slipway.json says what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.data import PreparedData, TokenDataset
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.profile import LEAST, ReferenceProfile, half_of
from slipway_jobs.drift.reference import FOLDER, Model, build_profile
from slipway_jobs.train.exported_model import ExportedModel

_BLOCK = 1 << 16  # tokens
_MOST_BLOCKS = 24  # 1.5 million tokens: about two seconds


def write_profile(directory: Path, prepared: PreparedData, *, gpu: bool = False) -> dict[str, Any]:
    """Write the profile below a model's directory; what slipway.json says of it: its digest, or the problem."""
    problem = ""
    try:
        try:
            profile = profile_of(prepared, ExportedModel(directory, gpu=gpu))
        except ProfileError:
            raise
        except Exception as error:  # of the model: too large for this device, most likely
            problem = f"{type(error).__name__}: {error}"[:1000]
            sys.stderr.write(f"warning: the reference profile for drift has no losses: {problem}\n")
            profile = profile_of(prepared)
        (directory / FOLDER).mkdir()
        profile.write(directory / FOLDER)
    except Exception as error:  # whatever it is, the model is good without
        problem = f"{error}" if isinstance(error, ProfileError) else f"{type(error).__name__}: {error}"
        sys.stderr.write(f"warning: no reference profile for drift: {problem}\n")
        return {"problem": problem[:1000]}
    losses = int(np.isfinite(profile.sample.numbers.get("input.loss", np.zeros(0))).sum())
    if not losses:
        problem = problem or f"fewer than {LEAST} requests are held out"
    told = {"digest": profile.digest, "requests": profile.sample.rows, "losses": losses}
    return told | ({"lossProblem": problem} if problem else {})


def profile_of(prepared: PreparedData, model: Model | None = None) -> ReferenceProfile:
    """Raises ProfileError where the documents are too few, and what the model raises."""
    backend = load_backend(prepared.tokenizer_dir)
    counts = np.zeros(prepared.vocab_size, dtype=np.int64)
    documents: list[tuple[str, str]] = []
    for name, ids in _documents(prepared.train, prepared.eos_id):
        if half_of(name, 0):
            counts += np.bincount(ids, minlength=prepared.vocab_size)
        else:
            documents.append((name, _text(backend, ids)))
    held_out = _documents(prepared.eval, prepared.eos_id) if prepared.eval is not None else iter(())
    return build_profile(
        backend,
        documents,
        counts=counts,
        held_out=((f"held-out/{name}", _text(backend, ids)) for name, ids in held_out),
        model=model,
    )


def _blocks(data: TokenDataset) -> Iterator[NDArray[np.int64]]:
    """Parts of the stream, evenly spread over it."""
    count = -(-len(data) // _BLOCK)
    for number in sorted({count * place // _MOST_BLOCKS for place in range(_MOST_BLOCKS)}):
        start = number * _BLOCK
        if start < len(data):
            yield data.tokens(start, min(start + _BLOCK, len(data)))


def _documents(data: TokenDataset, eos_id: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Whole documents, and the parts of documents at the ends of blocks, each with a name."""
    for number, block in enumerate(_blocks(data)):
        for place, ids in enumerate(np.split(block, np.flatnonzero(block == eos_id))):
            tokens = ids[ids != eos_id]  # no request has it
            if tokens.size:
                yield f"{number}/{place}", tokens


def _text(backend: Any, ids: NDArray[np.int64]) -> str:
    return str(backend.decode(ids.tolist(), skip_special_tokens=True))
