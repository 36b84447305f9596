"""Compression as a step: make the compressed model or find it, measure it beside its base, and judge what was lost.

    <cache>/compressed/<digest>/model/   a model directory that may be used; slipway.json says what it is and measured
    <cache>/refused/<digest>/model/      one that lost too much: kept for people to look at, never used

The digest is over everything that decides the result: the model's own digest, scheme, settings, calibration and
held-out texts, library versions and device type. An entry appears as a whole or not at all, and every byte of one that
is found is compared with its digest (slipway_jobs.data.cache), so a run that is killed anywhere, or an output that was
damaged later, is made again. What is measured is the model loaded back from the files that will be served.

`maxQualityLoss` is judged after that and is no part of the digest: another threshold costs no second computation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slipway_api.compression import Compression, CompressionMeasure, CompressionResult
from slipway_api.run import CompressRunSpec
from slipway_jobs.compress import measure
from slipway_jobs.compress.dense import compute_dtype, default_device, load_dense
from slipway_jobs.compress.layers import linear_names, memory_bytes
from slipway_jobs.compress.loading import load_with
from slipway_jobs.compress.schemes import scheme_of
from slipway_jobs.compress.schemes.base import Scheme, SchemeJob
from slipway_jobs.compress.texts import Texts, draw, open_texts
from slipway_jobs.data import check_vocabulary
from slipway_jobs.data.cache import Cache, Entry
from slipway_jobs.drift.reference import FOLDER as REFERENCE
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.lean_transformers import whole_transformers
from slipway_jobs.model_files import directory_digest, model_directory, sort_metadata
from slipway_jobs.reporting import Stage
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import FileRecord, sha256_of
from slipway_jobs.train.lineage import LINEAGE, VERSION, model_digest

KIND = "compressed"
REFUSED = "refused"
FOLDER = "model"
_FORMAT = 1
_LIBRARIES = ("torch", "transformers", "safetensors", "torchao", "bitsandbytes", "llmcompressor", "compressed-tensors")
_REASON = "QualityLossTooHigh"


class _RefusedError(Exception):
    """The result lost too much. Leaves `Cache.get_or_build`, which then commits nothing; carries the measurements."""

    def __init__(self, result: CompressionResult) -> None:
        super().__init__(result)
        self.result = result


@dataclass(frozen=True)
class Step:
    """What one compression works with."""

    spec: CompressRunSpec
    scheme: Scheme
    texts: Texts
    source: Path
    where: str  # how messages name the model
    base_digest: str
    scheme_digest: str
    device: torch.device
    effort: measure.Effort
    progress: Callable[[str], None]
    stage: Callable[[Stage], None]

    @property
    def key(self) -> str:
        """The digest of the cache entry."""
        return hashlib.sha256(f"{self.base_digest}\0{self.scheme_digest}".encode()).hexdigest()


def compress(
    spec: CompressRunSpec,
    *,
    progress: Callable[[str], None],
    stage: Callable[[Stage], None] = lambda _: None,
    device: torch.device | None = None,
    effort: measure.Effort | None = None,
) -> CompressionResult:
    """The compressed model of a run contract, made or found.

    Raises UserError QualityLossTooHigh (the result is kept below `refused/`), SchemeHasNoKernel, SchemeUnsupported,
    ModelDigestMismatch, SchemeNotApplied, SchemeSettingsInvalid, and what reading the model and the texts raises;
    OutOfMemory; InfrastructureError.
    """
    whole_transformers()  # before the texts' tokenizer is read, which needs less of it
    compression = spec.compression
    device = device or default_device()
    scheme = scheme_of(compression.scheme, compression.settings.to_wire())
    _check_native(scheme, compression, device)
    cache_storage = Storage(spec.cache, field="cache")
    stage("PreparingData")
    with model_directory(spec.model) as (source, where):
        base_digest = directory_digest(source)
        _check_digest(spec, base_digest, where)
        texts = open_texts(spec.model, compression.calibration, compression.held_out, cache_storage, progress)
        step = Step(
            spec=spec,
            scheme=scheme,
            texts=texts,
            source=source,
            where=where,
            base_digest=base_digest,
            scheme_digest=_scheme_digest(compression, texts, device),
            device=device,
            effort=effort or measure.Effort(),
            progress=progress,
            stage=stage,
        )
        cache = Cache(cache_storage, progress=progress)
        return _get(step, cache)


def _check_native(scheme: Scheme, compression: Compression, device: torch.device) -> None:
    if not scheme.native(device) and not compression.emulate:
        raise UserError(
            "SchemeHasNoKernel",
            f"compression.{scheme.name}: no engine here has a kernel for it on {device.type}: the weights would be "
            "expanded when the model is loaded, so memory and speed would gain nothing; choose another scheme, or set "
            "emulate: true to accept that",
        )


def _check_digest(spec: CompressRunSpec, found: str, where: str) -> None:
    """What passed the gate is what is compressed."""
    if spec.digest and found != spec.digest:
        raise UserError(
            "ModelDigestMismatch",
            f"model: the files of {where} are {found}, asked for was {spec.digest}: they have changed since",
        )


def _scheme_digest(compression: Compression, texts: Texts, device: torch.device) -> str:
    calibration = compression.calibration
    calibrated: list[Any] | None = None
    if calibration is not None and texts.calibration is not None:
        calibrated = [texts.calibration.digest, calibration.samples, calibration.sequence_length, calibration.seed]
    held_out = compression.held_out
    parts = [
        _FORMAT,
        compression.scheme,
        compression.settings.to_wire(),
        calibrated,
        [texts.held_out.digest, held_out.sequence_length, held_out.max_tokens],
        _versions(),
        device.type,
    ]
    return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- made or found ------------------------------------------------------------------------------------------------


def _get(step: Step, cache: Cache) -> CompressionResult:
    limit = step.spec.compression.max_quality_loss
    made = False

    def build(directory: Path) -> dict[str, Any]:
        nonlocal made
        earlier = _refused_before(step, cache)
        if earlier is not None:
            result = _result(earlier)
            if too_bad(result, limit):
                raise _RefusedError(result.model_copy(update={"uri": _uri(cache, REFUSED, step.key), "cached": True}))
            step.progress("an earlier run had refused this very result; maxQualityLoss allows it now")
            shutil.copytree(earlier.path / FOLDER, directory / FOLDER)
            return earlier.meta
        made = True
        result = _make(step, directory)
        meta = {"result": result.to_wire()}
        if too_bad(result, limit):
            refused = _keep_refused(cache, step.key, directory, meta)
            raise _RefusedError(result.model_copy(update={"uri": refused}))
        return meta

    try:
        entry = cache.get_or_build(KIND, step.key, build)
    except _RefusedError as refused:
        raise _refusal(refused.result, limit) from None
    result = _result(entry).model_copy(update={"uri": _uri(cache, KIND, step.key), "cached": not made})
    if too_bad(result, limit):
        raise _refusal(result, limit)
    return result


def too_bad(result: CompressionResult, limit: str | None) -> bool:
    """Whether the relative rise of the perplexity is above the limit. A perplexity that is no number always is."""
    return limit is not None and not float(result.quality_loss) <= float(limit)


def _refusal(result: CompressionResult, limit: str | None) -> UserError:
    return UserError(
        _REASON,
        f"compression.maxQualityLoss: {result.scheme} raised the perplexity from {result.before.perplexity} to "
        f"{result.after.perplexity}, by {float(result.quality_loss):.2%} where {float(limit or 0):.2%} is allowed; "
        f"choose a milder scheme or allow more (the result is kept at {result.uri}, and is not used)",
    )


def _refused_before(step: Step, cache: Cache) -> Entry | None:
    """The result of the same computation, where an earlier run has refused it. A damaged one is as none."""
    try:
        return cache.open(REFUSED, step.key)
    except InfrastructureError:
        return None


def _keep_refused(cache: Cache, key: str, directory: Path, meta: dict[str, Any]) -> str:
    def move(target: Path) -> dict[str, Any]:
        (directory / FOLDER).rename(target / FOLDER)
        return meta

    cache.get_or_build(REFUSED, key, move)
    return _uri(cache, REFUSED, key)


def _uri(cache: Cache, kind: str, key: str) -> str:
    return cache.storage.join(kind, key, FOLDER).uri


def _result(entry: Entry) -> CompressionResult:
    return CompressionResult.model_validate(entry.meta["result"])


# --- making -------------------------------------------------------------------------------------------------------


def _make(step: Step, directory: Path) -> CompressionResult:
    """Compress into directory/model, load that, measure it beside its base, and write slipway.json last."""
    output = directory / FOLDER
    output.mkdir()
    step.stage("Compressing")
    base = load_dense(step.source, step.where, step.device)
    check_vocabulary(step.texts.vocab_size, base.get_input_embeddings().weight.shape[0])
    layers = linear_names(base)
    step.progress(f"compressing {len(layers)} linear layers of {step.where}: {step.scheme.name} on {step.device}")
    calibration = step.spec.compression.calibration
    drawn = None
    if calibration is not None and step.texts.calibration is not None:
        drawn = draw(step.texts.calibration, calibration)
    step.scheme.write(
        SchemeJob(
            source=step.source,
            output=output,
            device=step.device,
            dtype=compute_dtype(step.device),
            layers={name: int(base.get_submodule(name).in_features) for name in layers},
            ignored=_output_layer(base),
            calibration=drawn,
            progress=step.progress,
        )
    )
    for weights in output.glob("*.safetensors"):
        sort_metadata(weights)  # what is made again must have the digest that versions know it by
    for path in sorted(step.texts.tokenizer.iterdir()):
        if path.is_file() and not (output / path.name).exists():
            shutil.copyfile(path, output / path.name)
    if (step.source / REFERENCE).is_dir():  # what its traffic is compared with stays what it was
        shutil.copytree(step.source / REFERENCE, output / REFERENCE)
    files = _records(output)
    result = _measured(step, base, output, layers).model_copy(update={"digest": model_digest(files)})
    _write_lineage(step, output, layers, files, result)
    return result


def _output_layer(base: Any) -> list[str]:
    """The pattern that llm-compressor knows the output layer by. It sometimes adds a dot to a name."""
    head = base.get_output_embeddings()
    return [rf"re:^{re.escape(name)}\.?$" for name, module in base.named_modules() if module is head]


def _measured(step: Step, base: Any, output: Path, layers: list[str]) -> CompressionResult:
    step.stage("Measuring")
    loaded = load_with(output, step.scheme, layers, step.device)
    held_out = step.spec.compression.held_out
    stream = step.texts.held_out
    perplexities = [
        measure.perplexity(lm, stream, held_out.sequence_length, held_out.max_tokens) for lm in (base, loaded.lm)
    ]
    prompt = torch.from_numpy(stream.tokens(0, min(step.effort.prompt_tokens, len(stream)))).unsqueeze(0)
    rates = measure.decoding(base, loaded.lm, prompt, step.effort)
    sparsity = loaded.applied.sparsity
    result = CompressionResult(
        scheme=step.scheme.name,
        uri="",
        digest="",
        base_digest=step.base_digest,
        scheme_digest=step.scheme_digest,
        execution=loaded.applied.execution,
        device=_device_name(step.device),
        before=CompressionMeasure(
            size_bytes=measure.size_bytes(step.source),
            memory_bytes=memory_bytes(base),
            perplexity=f"{perplexities[0]:.6g}",
            tokens_per_second=f"{rates.before:.4g}",
        ),
        after=CompressionMeasure(
            size_bytes=measure.size_bytes(output),
            memory_bytes=memory_bytes(loaded.lm),
            perplexity=f"{perplexities[1]:.6g}",
            tokens_per_second=f"{rates.after:.4g}",
        ),
        quality_loss=f"{perplexities[1] / perplexities[0] - 1:.6g}",
        speed_up=f"{rates.speed_up:.4g}",
        sparsity=None if sparsity is None else f"{sparsity:.4f}",
    )
    step.progress(
        f"perplexity {result.before.perplexity} -> {result.after.perplexity}, tokens/s "
        f"{result.before.tokens_per_second} -> {result.after.tokens_per_second}, bytes on disk "
        f"{result.before.size_bytes:,} -> {result.after.size_bytes:,}; runs as: {result.execution}"
    )
    return result


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"


def _records(directory: Path) -> list[FileRecord]:
    records = []
    for path in sorted(file for file in directory.rglob("*") if file.is_file()):
        with path.open("rb") as stream:
            size, content = sha256_of(stream)
        records.append(FileRecord(path.relative_to(directory).as_posix(), size, content))
    return records


def _write_lineage(
    step: Step, output: Path, layers: list[str], files: list[FileRecord], result: CompressionResult
) -> None:
    spec, compression = step.spec, step.spec.compression
    document = {
        "version": VERSION,
        "run": {"namespace": spec.namespace, "name": spec.name, "uid": spec.uid, "attempt": spec.attempt},
        "base": {**spec.model.to_wire(), "digest": step.base_digest},
        "compression": {
            "scheme": compression.scheme,
            "settings": compression.settings.to_wire(),
            "schemeDigest": step.scheme_digest,
            "calibration": None if compression.calibration is None else compression.calibration.to_wire(),
            "calibrationDigest": None if step.texts.calibration is None else step.texts.calibration.digest,
            "heldOut": compression.held_out.to_wire(),
            "heldOutDigest": step.texts.held_out.digest,
            "layers": layers,
        },
        "metrics": result.to_wire(),
        "libraries": _versions(),
        "files": [asdict(record) for record in files],
        "digest": result.digest,
    }
    (output / LINEAGE).write_text(json.dumps(document, indent=2) + "\n")
