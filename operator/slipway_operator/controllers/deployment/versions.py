"""Which model is asked for, and the name that its version gets. Pure.

A version's name is a digest of the model and of how it is held, so the same spec always means the same version: after
a crash, after a rollback, and when somebody changes a model back to the one before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from slipway_api import conditions as c
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


def version_of(model: Resolved, spec: DeploymentSpec) -> ServedVersion:
    """The version that this model becomes, without any traffic yet."""
    engine = spec.engine.transformers
    identity = {"model": model.reference.to_wire(), "digest": model.digest, "engine": engine.to_wire()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return ServedVersion(
        version=f"v-{digest[:10]}",
        reference=model.reference,
        digest=model.digest,
        source=model.source[:256],
        weight=0,
        engine=engine,
    )
