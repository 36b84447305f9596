"""The jobs of a retrain, as objects: one TrainJob, one EvalJob, and a copy of each required EvalJob. Pure.

They are ordinary jobs with deterministic names, owned by the Deployment: they queue, retry and report as any other, and
go when it goes. Queue and size are the template's: a right to write Deployments is a right to train. The priority class
is not: whoever wrote the template may have been allowed to use one that the Deployment's author is not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from slipway_api import API_VERSION
from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import Retrain, RetrainRun
from slipway_api.evaljob import EvalJobSpec
from slipway_operator.controllers.deployment.retrain.data import documents
from slipway_operator.controllers.deployment.retrain.observed import LABEL_RETRAIN, Job
from slipway_operator.kuberay import owner_labels, owner_reference

NEW, OLD = "new", "old"
METRIC = "loss"  # its differences are tested in pairs, and a difference of losses is a ratio of perplexities
_NOT_COPIED = ("suspend", "ttlSecondsAfterFinished", "priorityClassName")


def train_job(deployment: Job, retrain: Retrain, run: RetrainRun, template: Job) -> Job:
    """The template's spec, from the serving model's weights, on the new documents.

    Raises NoSuchDataError.
    """
    spec: dict[str, Any] = copy.deepcopy(template["spec"])
    for field in ("tokenizer", *_NOT_COPIED):  # the tokenizer is the model's own
        spec.pop(field, None)
    assert run.base is not None
    spec["model"] = run.base.to_wire()
    spec["data"] = documents(retrain, template, run.snapshot, _seed(run)).train
    if retrain.steps is not None:
        spec["training"].pop("epochs", None)
        spec["training"]["steps"] = retrain.steps
    return _job(deployment, "TrainJob", run.id, run, spec)


def eval_job(deployment: Job, spec: DeploymentSpec, retrain: Retrain, run: RetrainRun, template: Job) -> Job:
    """New and old documents, against the model that serves; computed as it is served.

    The gate: on new documents surely better (the upper end of the paired interval), on old ones hardly worse.
    Raises NoSuchDataError.
    """
    found = documents(retrain, template, run.snapshot, _seed(run))
    assert run.base is not None
    margin = math.log1p(float(retrain.old_margin))  # of losses, for a ratio of perplexities
    made: dict[str, Any] = {
        "model": {"trainJob": {"name": run.id}},
        "baseline": run.base.to_wire(),
        "suites": [
            {"name": name, "languageModeling": {}, "data": data, "metrics": [METRIC, "perplexity"]}
            for name, data in ((NEW, found.new), (OLD, found.old))
        ],
        "gate": [
            {"suite": NEW, "metric": METRIC, "notWorseThan": "baseline", "confidence": "0.95"},
            {"suite": OLD, "metric": METRIC, "notWorseThan": "baseline", "margin": f"{margin:.6f}"},
        ],
        "precision": spec.engine.transformers.precision if spec.engine.transformers else "bf16",
    }
    # One worker of the template's size: it has to fit beside the replicas that serve.
    made["workers"] = {"count": 1, "resources": copy.deepcopy(template["spec"].get("workers", {}).get("resources", {}))}
    for field in ("retry", "queue"):
        if field in template["spec"]:
            made[field] = copy.deepcopy(template["spec"][field])
    return _job(deployment, "EvalJob", run.id, run, made)


def check_job(deployment: Job, name: str, run: RetrainRun, required: Job) -> Job:
    """What a required EvalJob asks, asked of the new model."""
    spec = EvalJobSpec.model_validate(required["spec"]).to_wire()
    for field in _NOT_COPIED:
        spec.pop(field, None)
    spec["model"] = {"trainJob": {"name": run.id}}
    return _job(deployment, "EvalJob", name, run, spec)


def _seed(run: RetrainRun) -> int:
    return int(run.id.rpartition("-r")[2], 16) & 0x7FFFFFFF


def _job(deployment: Job, kind: str, name: str, run: RetrainRun, spec: dict[str, Any]) -> Job:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": deployment["metadata"]["namespace"],
            "labels": {**owner_labels(deployment), LABEL_RETRAIN: run.id},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": spec,
    }
