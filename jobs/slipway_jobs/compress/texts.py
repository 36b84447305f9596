"""The calibration and held-out texts of a compression, as token streams made with the model's own tokenizer.

They come through slipway_jobs.data, so they are cached by content and errors name file and line.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slipway_api.compression import Calibration, HeldOut
from slipway_api.references import ModelReference, TrainingModel
from slipway_api.trainjob import Data, DataSource
from slipway_jobs.data import TokenDataset, prepare
from slipway_jobs.errors import JobError, UserError
from slipway_jobs.storage import Storage

_TRAIN = "data.sources"  # what slipway_jobs.data calls the stream


@dataclass(frozen=True)
class Texts:
    """What a compression reads. `tokenizer` is the directory of the model's tokenizer."""

    held_out: TokenDataset
    calibration: TokenDataset | None
    tokenizer: Path
    vocab_size: int


def open_texts(
    model: ModelReference,
    calibration: Calibration | None,
    held_out: HeldOut,
    cache: Storage,
    progress: Callable[[str], None],
) -> Texts:
    """Tokenize (or find) both streams.

    Raises UserError CalibrationTooSmall, CalibrationOverlapsHeldOut, and what slipway_jobs.data raises.
    """
    prepare_one = _Preparer(model, cache, progress)
    measured = prepare_one(held_out.sources, "compression.heldOut.sources", 2)
    calibrated = None
    if calibration is not None:
        calibrated = prepare_one(calibration.sources, "compression.calibration.sources", 2)[0]
        if calibrated.digest == measured[0].digest:
            raise UserError(
                "CalibrationOverlapsHeldOut",
                "compression.calibration.sources: these are the held-out texts; a model that is fitted to what it is "
                "measured on looks better than it is: name other documents",
            )
        available = len(calibrated) // calibration.sequence_length
        if available < calibration.samples:
            raise UserError(
                "CalibrationTooSmall",
                f"compression.calibration: {calibration.samples} samples of {calibration.sequence_length} tokens are "
                f"asked for, but the sources have {len(calibrated)} tokens, enough for {available}; add documents, "
                "or lower samples or sequenceLength",
            )
    return Texts(measured[0], calibrated, measured[1], measured[2])


def draw(dataset: TokenDataset, calibration: Calibration) -> Tensor:
    """The calibration sequences, [samples, sequence length] int64: distinct blocks, drawn by seed."""
    blocks = dataset.n_sequences(calibration.sequence_length)
    chosen = random.Random(calibration.seed).sample(range(blocks), calibration.samples)
    return torch.from_numpy(dataset.sequences(sorted(chosen), calibration.sequence_length))


class _Preparer:
    """slipway_jobs.data.prepare for one stream at a time; errors name the field that the stream came from."""

    def __init__(self, model: ModelReference, cache: Storage, progress: Callable[[str], None]) -> None:
        self._model = TrainingModel(uri=model.uri, hub=model.hub)
        self._cache = cache
        self._progress = progress

    def __call__(self, sources: Sequence[DataSource], field: str, least: int) -> tuple[TokenDataset, Path, int]:
        data = Data(sources=list(sources), sequence_length=8)
        try:
            prepared = prepare(
                data,
                None,
                self._model,
                self._cache,
                progress=lambda text: self._progress(text.replace(_TRAIN, field)),
            )
        except JobError as error:
            raise type(error)(error.reason, error.message.replace(_TRAIN, field)) from error
        return prepared.train, prepared.tokenizer_dir, prepared.vocab_size
