"""The final model: a Hugging Face directory with safetensors weights, the tokenizer, and its lineage.

It is built beside its place and moved there; slipway.json is written last. A directory without it is no model, and a
run that finds a complete one has nothing left to do. Rank 0 only: the strategy has gathered the weights before.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipway_api.run import RunSpec
from slipway_api.trainjob import TrainedModel
from slipway_jobs.data import PreparedData
from slipway_jobs.errors import InfrastructureError
from slipway_jobs.storage import Storage, sync_directory
from slipway_jobs.train.checkpoint.manifest import FileRecord, TrainState, sha256_of
from slipway_jobs.train.evaluate_loss import perplexity
from slipway_jobs.train.lineage import FOLDER, LINEAGE, VERSION, completed_model, model_digest
from slipway_jobs.train.model import BuiltModel

_SHARD_SIZE = "5GB"
_LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers", "deepspeed", "ray")


@dataclass(frozen=True)
class Export:
    """What a model directory is made of, besides the weights."""

    run: RunSpec
    prepared: PreparedData
    built: BuiltModel
    state: TrainState
    strategy: str  # in words, as in status.plan
    gpu: bool = False  # the ranks have one

    def write(self, storage: Storage, lm: nn.Module, weights: dict[str, Tensor]) -> TrainedModel:
        """Write the directory and make it visible. Raises InfrastructureError where storage fails."""
        from slipway_jobs.train.reference_profile import write_profile  # noqa: PLC0415 - imports scipy

        try:
            with self._beside(storage) as directory:
                self._fill(directory, lm, weights)
                reference = write_profile(directory, self.prepared, gpu=self.gpu)
                files = _records(directory)
                document = self._lineage(files) | {"reference": reference}
                (directory / LINEAGE).write_text(json.dumps(document, indent=2) + "\n")
                self._publish(storage, directory)
        except OSError as error:
            raise InfrastructureError(
                "StorageFailed", f"cannot write the model to {storage.uri}/{FOLDER}: {error}"
            ) from error
        model = completed_model(storage, uid=self.run.uid)
        if model is None:
            raise InfrastructureError(
                "StorageFailed", f"the model at {storage.uri}/{FOLDER} is not what was written there"
            )
        return model

    @contextlib.contextmanager
    def _beside(self, storage: Storage) -> Iterator[Path]:
        """A scratch directory: where storage is local, on the same file system, so that it can be moved."""
        root = storage.local_path
        if root is None:
            with tempfile.TemporaryDirectory(prefix="slipway-model-") as scratch:
                yield Path(scratch)
            return
        scratch_path = root / f".{FOLDER}-a{self.run.attempt}"
        shutil.rmtree(scratch_path, ignore_errors=True)
        scratch_path.mkdir(parents=True)
        try:
            yield scratch_path
        finally:
            shutil.rmtree(scratch_path, ignore_errors=True)

    def _publish(self, storage: Storage, directory: Path) -> None:
        storage.delete(f"{FOLDER}/{LINEAGE}")  # half a deletion must not look like a model
        storage.delete(FOLDER)
        if storage.local_path is None:
            storage.upload(directory, FOLDER, commit=LINEAGE)
            return
        for path in directory.rglob("*"):
            if path.is_file():
                _sync_file(path)
        sync_directory(directory)
        directory.rename(storage.local_path / FOLDER)
        sync_directory(storage.local_path)

    def _fill(self, directory: Path, lm: nn.Module, weights: dict[str, Tensor]) -> None:
        """config.json, generation_config.json, model*.safetensors and the tokenizer's files."""
        dtype = self.built.stored_dtype
        stored: dict[str, Tensor] = {}
        for name in sorted(weights):
            tensor = weights.pop(name)  # as it goes, so that two whole models are never in memory
            stored[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        _write_model(directory, lm, _without_ties(lm, stored), dtype)
        for path in sorted(self.prepared.tokenizer_dir.iterdir()):
            if path.is_file() and not (directory / path.name).exists():
                shutil.copyfile(path, directory / path.name)

    def _lineage(self, files: list[FileRecord]) -> dict[str, Any]:
        run, state = self.run, self.state
        return {
            "version": VERSION,
            "run": {"namespace": run.namespace, "name": run.name, "uid": run.uid, "attempt": run.attempt},
            "base": self.built.base,
            "data": {
                "digest": self.prepared.digest,
                "trainTokens": self.prepared.train_tokens,
                "evalTokens": self.prepared.eval_tokens,
            },
            "config": run.model_dump(
                mode="json",
                by_alias=True,
                exclude_none=True,
                include={"model", "tokenizer", "data", "training", "strategy", "workers", "checkpoint"},
            ),
            "strategy": self.strategy,
            "steps": state.step,
            "metrics": metrics_of(state),
            "parameters": self.built.parameters,
            "dtype": str(self.built.stored_dtype).removeprefix("torch."),
            "code": {"slipway": _version("slipway"), "python": platform.python_version()},
            "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files],
            "digest": model_digest(files),
        }


def metrics_of(state: TrainState) -> dict[str, str]:
    """The figures of a finished run, as decimal strings."""
    found: dict[str, float | None] = {
        "trainLoss": state.loss,
        "evalLoss": state.eval_loss,
        "perplexity": None if state.eval_loss is None else perplexity(state.eval_loss),
        "initialPerplexity": None if state.initial_eval_loss is None else perplexity(state.initial_eval_loss),
    }
    return {name: f"{value:.6g}" for name, value in found.items() if value is not None}


def _write_model(directory: Path, lm: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """What transformers' save_pretrained writes. Calling that would import deepspeed wherever it is installed."""
    from huggingface_hub import split_torch_state_dict_into_shards  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415

    lm.config.dtype = str(dtype).removeprefix("torch.")
    lm.config.architectures = [type(lm).__name__]
    lm.config.save_pretrained(directory)
    lm.generation_config.save_pretrained(directory)
    # Some architectures hold their weights in memory otherwise (fused, renamed) than in files.
    weights = {
        name: tensor.contiguous()
        for name, tensor in revert_weight_conversion(lm, weights).items()
        if name not in (lm._keys_to_ignore_on_save or ())
    }
    split = split_torch_state_dict_into_shards(weights, max_shard_size=_SHARD_SIZE)
    for file_name, names in split.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, directory / file_name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _without_ties(lm: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the names that stand for another parameter: safetensors holds each once, loading ties them again."""
    names: dict[int, str] = {}
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    kept = set(names.values())
    twice = {name for name, _ in lm.named_parameters(remove_duplicate=False)} - kept
    return {name: tensor for name, tensor in weights.items() if name not in twice}


def _records(directory: Path) -> list[FileRecord]:
    records = []
    for path in sorted(file for file in directory.rglob("*") if file.is_file()):
        with path.open("rb") as stream:
            size, digest = sha256_of(stream)
        records.append(FileRecord(path.relative_to(directory).as_posix(), size, digest))
    return records


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _version(distribution: str) -> str | None:
    if distribution == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
