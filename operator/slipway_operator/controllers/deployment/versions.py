"""Which model is asked for, and the name that its version gets. Pure.

A version's name is a digest of the model, of how it is compressed and of how it is held, so the same spec always means
the same version: after a crash, after a rollback, and when somebody changes a model back to the one before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from slipway_api import conditions as c
from slipway_api.compression import Compression
from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_api.references import ModelReference


@dataclass(frozen=True)
class Resolved:
    """A model that can be loaded. `digest` is "" where nobody has told it."""

    reference: ModelReference
    digest: str
    source: str  # in words: trainjob/stdlib-lm, hub/owner/name@main, or the uri

    @property
    def uri(self) -> str:
        """Where it is; "" for a hub repository."""
        return self.reference.uri or ""

    def is_same_as(self, measured: dict[str, Any]) -> bool:
        """Whether an EvalJob's status.model speaks of this model: by digest where both know it, else by place."""
        digest = measured.get("digest") or ""
        if self.digest and digest:
            return bool(self.digest == digest)
        return bool(self.uri) and self.uri == measured.get("uri")


@dataclass(frozen=True)
class Unresolved:
    """Why there is no model (yet)."""

    message: str


def resolve(spec: DeploymentSpec, train_job: dict[str, Any] | None) -> Resolved | Unresolved:
    """The model that spec.model names, TrainJobs replaced by what they have trained."""
    model = spec.model
    if model.hub is not None:
        return Resolved(model, "", f"hub/{model.hub.repo}@{model.hub.revision}")
    if model.uri is not None:
        return Resolved(model, "", model.uri)
    assert model.train_job is not None
    name = model.train_job.name
    where = f"spec.model.trainJob: TrainJob {name}"
    status = (train_job or {}).get("status") or {}
    if train_job is None:
        return Unresolved(f"{where} does not exist; waiting for it")
    if c.is_true(status.get("conditions", []), c.FAILED):
        return Unresolved(f"{where} has failed; name another model, or train it again")
    if "model" not in status:
        return Unresolved(f"{where} has not succeeded yet; waiting for it")
    trained = status["model"]
    return Resolved(ModelReference(uri=trained["uri"]), trained["digest"], f"trainjob/{name}")


def _what_decides_weights(compression: Compression) -> dict[str, Any]:
    """Not how it is measured, what may be lost or where it runs: that makes no new version."""
    calibration = compression.calibration.to_wire() if compression.calibration else None
    settings = {compression.scheme: compression.settings.to_wire()}
    return {"scheme": settings, "calibration": calibration, "emulate": compression.emulate}


def version_of(model: Resolved, spec: DeploymentSpec) -> ServedVersion:
    """The version that this model becomes, without any traffic yet."""
    engine, vllm, compression = spec.engine.transformers, spec.engine.vllm, spec.compression
    identity = {"model": model.reference.to_wire(), "digest": model.digest}
    if engine is not None:
        identity["engine"] = engine.to_wire()
    if vllm is not None:
        identity["vllm"] = {**vllm.to_wire(), "gpus": spec.replicas.resources.gpu}
    if compression is not None:
        identity["compression"] = _what_decides_weights(compression)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return ServedVersion(
        version=f"v-{digest[:10]}",
        reference=model.reference,
        digest=model.digest,
        source=(f"{model.source[:230]} ({compression.scheme})" if compression else model.source[:256]),
        weight=0,
        engine=engine,
        vllm=vllm,
    )
