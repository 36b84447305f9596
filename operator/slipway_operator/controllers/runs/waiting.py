"""Why an attempt that has not ended is where it is: reason and message of the condition Running. Pure.

From the best witness to the worst: the run itself, its queue, KubeRay, the pods.
"""

from __future__ import annotations

from typing import Any

from slipway_api import conditions as c
from slipway_api.run import Report
from slipway_operator.controllers.runs.pods import why_waiting
from slipway_operator.kuberay import LABEL_QUEUE

# What a run says of itself -> reason and message of Running.
_STAGES = {
    "Starting": (c.STARTING, "the run has started; workers are coming up"),
    "PreparingData": (c.PREPARING_DATA, "documents are read, tokenized and packed"),
    "Training": (c.TRAINING, "training"),
    "SavingModel": (c.SAVING_MODEL, "the trained model is being written"),
    "Evaluating": (c.EVALUATING, "examples are scored"),
    "SavingResults": (c.SAVING_RESULTS, "scores and the report are being written"),
    "Compressing": (c.COMPRESSING, "the model is being compressed"),
    "Measuring": (c.MEASURING, "the compressed model is held against the one that it was made from"),
    "Ended": (c.ENDING, "the run is ending"),
}
REALLY_RUNNING = frozenset(reason for reason, _ in _STAGES.values())


def at_creation(job: dict[str, Any], number: int) -> tuple[str, str]:
    """Reason and message of an attempt whose RayJob has just been created."""
    queue = job["spec"].get("queue")
    if queue:
        return c.WAITING_FOR_QUOTA, f"attempt {number} is created; waiting in queue {queue} until Kueue admits it"
    return c.WAITING_FOR_RESOURCES, f"attempt {number} is created; waiting for resources"


def is_suspended(ray_job: dict[str, Any]) -> bool:
    """Whether somebody holds the RayJob back. We create it so where a queue is named, and never touch that again."""
    return bool(ray_job.get("spec", {}).get("suspend"))


def describe(
    ray_job: dict[str, Any], report: Report | None, pods: Any, *, ray_operator_missing: bool
) -> tuple[str, str]:
    """Reason and message of an attempt that has not ended. `pods`: those of its RayCluster, projected."""
    if is_suspended(ray_job):
        return c.WAITING_FOR_QUOTA, _queued(ray_job)
    if report is not None:
        return _STAGES[report.stage]
    status = ray_job.get("status") or {}
    if status.get("jobStatus") == "RUNNING" or status.get("jobDeploymentStatus") == "Running":
        return c.STARTING, "the run has started; waiting for its first report"
    if ray_operator_missing:
        return c.WAITING_FOR_RAY_OPERATOR, "the RayJob kind (ray.io/v1) is no longer served"
    told = why_waiting(pods)
    if told is not None:
        return told
    message = status.get("message") or "waiting until the Ray cluster is up"
    return c.WAITING_FOR_RESOURCES, str(message)


def _queued(ray_job: dict[str, Any]) -> str:
    metadata = ray_job["metadata"]
    queue = metadata.get("labels", {}).get(LABEL_QUEUE)
    if not queue:
        return f"RayJob {metadata['name']} is suspended, and not by this job: whoever suspended it must resume it"
    return (
        f"waiting in queue {queue} until Kueue admits it; for what is missing: "
        f"kubectl describe workloads -n {metadata['namespace']} -l kueue.x-k8s.io/job-uid={metadata['uid']}"
    )
