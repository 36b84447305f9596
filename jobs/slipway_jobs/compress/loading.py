"""Compressed models from directories to memory: `load_compressed` is what an engine calls.

It believes slipway.json for what the model should be and nothing for what it is: file digests are compared before and
the layers are looked at after loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slipway_api.compression import SCHEMES
from slipway_jobs.compress.dense import default_device, from_pretrained
from slipway_jobs.compress.schemes import scheme_of
from slipway_jobs.compress.schemes.base import Applied, Scheme
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.lean_transformers import whole_transformers
from slipway_jobs.model_files import directory_digest
from slipway_jobs.train.lineage import LINEAGE


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, and how it runs."""

    lm: Any
    applied: Applied


def load_compressed(
    directory: str | Path, device: torch.device | None = None, *, verify: bool = True
) -> tuple[Any, Any]:
    """The model and the tokenizer of a directory that `compress` made, ready to serve.

    `verify` compares every file with slipway.json first. Raises InfrastructureError ModelDamaged (make it again),
    UserError NotCompressed, SchemeNotApplied, and what `load_dense` raises.
    """
    loaded, tokenizer = open_compressed(directory, device, verify=verify)
    return loaded.lm, tokenizer


def open_compressed(
    directory: str | Path, device: torch.device | None = None, *, verify: bool = True
) -> tuple[LoadedModel, Any]:
    """As `load_compressed`, and how the model runs."""
    whole_transformers()
    from transformers import AutoTokenizer  # noqa: PLC0415

    path = Path(directory)
    device = device or default_device()
    document = read_lineage(path)
    if verify and directory_digest(path) != document["digest"]:
        raise InfrastructureError(
            "ModelDamaged", f"model: the files at {path} are not those that {LINEAGE} names; compress the model again"
        )
    made = document["compression"]
    scheme = scheme_of(made["scheme"], made["settings"])
    loaded = load_with(path, scheme, made["layers"], device)
    return loaded, AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_with(directory: Path, scheme: Scheme, layers: list[str], device: torch.device) -> LoadedModel:
    """A compressed directory by its scheme, verified layer by layer."""
    lm = from_pretrained(directory, str(directory), device, scheme.load_options(device))
    with torch.no_grad():
        return LoadedModel(lm, scheme.finish(lm, layers, device))


def read_lineage(directory: Path) -> dict[str, Any]:
    """slipway.json of a compressed model. Raises UserError NotCompressed; InfrastructureError ModelDamaged."""
    try:
        document: dict[str, Any] = json.loads((directory / LINEAGE).read_bytes())
        if "compression" not in document:
            raise UserError("NotCompressed", f"model: {directory} was not made by compression; load it as any model")
        if document["compression"]["scheme"] not in SCHEMES:
            raise ValueError(f"unknown scheme {document['compression']['scheme']!r}")
        return document
    except FileNotFoundError as error:
        raise UserError("NotCompressed", f"model: {directory} has no {LINEAGE}, so nothing says what it is") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InfrastructureError(
            "ModelDamaged", f"model: {directory / LINEAGE} is malformed ({error}); compress the model again"
        ) from error
