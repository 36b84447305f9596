"""Conditions: the only state that programs read (https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md).

Types and reasons are constants here, so that a test can list them and a user can search for them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from slipway_api.base import ApiModel, Timestamp

Status = Literal["True", "False", "Unknown"]

# Types. A run ends when Succeeded or Failed is True.
PLANNED = "Planned"
SUSPENDED = "Suspended"
RUNNING = "Running"
SUCCEEDED = "Succeeded"
FAILED = "Failed"
PASSED = "Passed"  # of an EvalJob: whether its gates hold

# Of a Deployment, which never ends.
GATE_PASSED = "GatePassed"
COMPRESSED = "Compressed"
AVAILABLE = "Available"
PROGRESSING = "Progressing"
DEGRADED = "Degraded"
RETRAINING = "Retraining"
DRIFTED = "Drifted"  # whether the traffic has left the model's reference

# Reasons of Planned.
FITS = "Fits"
DOES_NOT_FIT = "DoesNotFit"
MODEL_NOT_READY = "ModelNotReady"

# Reasons of Suspended.
SUSPENDED_BY_USER = "SuspendedByUser"
NOT_SUSPENDED = "NotSuspended"

# Reasons of Running.
WAITING_FOR_RESOURCES = "WaitingForResources"
WAITING_FOR_RAY_OPERATOR = "WaitingForRayOperator"
FORBIDDEN = "Forbidden"  # the operator lacks a right in the job's namespace
WAITING_FOR_KUEUE = "WaitingForKueue"  # spec.queue is set and the cluster has no Kueue
WAITING_FOR_QUOTA = "WaitingForQuota"  # Kueue has not admitted the attempt yet
UNSCHEDULABLE = "Unschedulable"  # no node has room for a pod
PULLING_IMAGES = "PullingImages"
IMAGE_PULL_FAILED = "ImagePullFailed"
CONTAINER_CONFIG_ERROR = "ContainerConfigError"  # a container cannot be made: a Secret, key or volume is missing
CRASH_LOOPING = "CrashLooping"
HEAD_LOST = "HeadLost"  # the pod that drives the run is gone
STARTING = "Starting"
PREPARING_DATA = "PreparingData"
TRAINING = "Training"
SAVING_MODEL = "SavingModel"
EVALUATING = "Evaluating"
CROSS_VALIDATING = "CrossValidating"  # the folds are trained and measured by jobs of their own
SAVING_RESULTS = "SavingResults"
MEASURING = "Measuring"  # a compressed model is held against the one that it was made from
ENDING = "Ending"
BACKING_OFF = "BackingOff"
NOT_STARTED = "NotStarted"
FINISHED = "Finished"

# Reasons of an attempt's end that its pods or its queue give; in Events, and in Failed when no retry is left.
OUT_OF_MEMORY_KILLED = "OOMKilled"
EVICTED = "Evicted"
QUOTA_WITHDRAWN = "QuotaWithdrawn"

# Reasons of Succeeded and Failed.
MODEL_SAVED = "ModelSaved"
IN_PROGRESS = "InProgress"
USER_ERROR = "UserError"
RETRIES_EXHAUSTED = "RetriesExhausted"
DEADLINE_EXCEEDED = "DeadlineExceeded"
REJECTED = "Rejected"
NAME_TAKEN = "NameTaken"
NOT_FAILED = "NotFailed"
RESULTS_SAVED = "ResultsSaved"
FOLDS_MEASURED = "FoldsMeasured"
FOLD_FAILED = "FoldFailed"

# Reasons of Passed.
NOT_EVALUATED = "NotEvaluated"
NO_GATES = "NoGates"
GATES_HOLD = "GatesHold"
GATES_FAILED = "GatesFailed"

# Reasons of GatePassed.
NO_REQUIREMENTS = "NoRequirements"
REQUIREMENTS_HOLD = "RequirementsHold"
EVALUATION_PENDING = "EvaluationPending"  # an EvalJob is not there or has not ended
EVALUATION_NOT_PASSED = "EvaluationNotPassed"
OTHER_MODEL_EVALUATED = "OtherModelEvaluated"
EVALUATION_OF_NO_MODEL = "EvaluationOfNoModel"  # a cross-validation measures no single model

# Reasons of Compressed, and of Progressing and Degraded where it holds a version up. Compressing: of Running as well.
COMPRESSING = "Compressing"
MODEL_COMPRESSED = "ModelCompressed"
COMPRESSION_FAILED = "CompressionFailed"
COMPRESSION_STOPPED = "CompressionStopped"
QUALITY_LOSS_TOO_HIGH = "QualityLossTooHigh"

# Reasons of Available, Progressing and Degraded.
SERVING = "Serving"
NOTHING_SERVED = "NothingServed"
DEPLOYING = "Deploying"
STABLE = "Stable"
CANARY = "Canary"
CANARY_PAUSED = "CanaryPaused"
PROMOTED = "Promoted"
ROLLED_BACK = "RolledBack"
GATE_NOT_PASSED = "GateNotPassed"
UNHEALTHY = "Unhealthy"
AS_ASKED = "AsAsked"

# Reasons of Drifted.
DRIFT_FOUND = "DriftFound"
NO_DRIFT = "NoDrift"
NOT_WATCHED = "NotWatched"  # the watcher says what it lacks
TOO_FEW_REQUESTS = "TooFewRequests"
WATCHER_STARTING = "WatcherStarting"

# Why a candidate is rolled back.
ERROR_RATE_TOO_HIGH = "ErrorRateTooHigh"
LATENCY_TOO_HIGH = "LatencyTooHigh"
QUALITY_TOO_LOW = "QualityTooLow"
CANDIDATE_FAILED = "CandidateFailed"
CANDIDATE_NOT_READY = "CandidateNotReady"
ABORTED = "Aborted"

# Reasons of Retraining: how far it is, how the last one ended, and why none begins.
AWAITING_APPROVAL = "AwaitingApproval"
ROLLING_OUT = "RollingOut"
NO_RETRAIN = "NoRetrain"
NOT_BETTER = "NotBetter"
RETRAIN_FAILED = "RetrainFailed"
SUPERSEDED = "Superseded"
COOLING_DOWN = "CoolingDown"
DAILY_LIMIT = "DailyLimit"
BUDGET_SPENT = "BudgetSpent"
GAVE_UP = "GaveUp"
RETRAIN_IN_FLIGHT = "RetrainInFlight"
ROLLOUT_UNDER_WAY = "RolloutUnderWay"
TEMPLATE_UNFIT = "TemplateUnfit"
NO_EXAMPLES = "NoExamples"
REQUIREMENT_MISSING = "RequirementMissing"
SCHEDULE_INVALID = "ScheduleInvalid"
NO_LONGER_DRIFTED = "NoLongerDrifted"
OTHER_VERSION = "OtherVersion"


class Condition(ApiModel):
    """One condition, shaped as metav1.Condition."""

    type: str = Field(max_length=316, description="What the condition is about, in CamelCase.")
    status: Status = Field(description="True, False or Unknown.")
    observed_generation: int = Field(
        default=0, ge=0, description="The metadata.generation that this condition was set for."
    )
    last_transition_time: Timestamp = Field(description="When the status last changed.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, as one CamelCase word that programs may compare.",
    )
    message: str = Field(max_length=32768, description="Why, for people: what happened and what to do.")


def find_condition(conditions: list[dict[str, Any]], type_: str) -> dict[str, Any] | None:
    """The condition of that type among raw condition objects, or None."""
    return next((c for c in conditions if c.get("type") == type_), None)


def is_true(conditions: list[dict[str, Any]], type_: str) -> bool:
    """Whether the condition of that type is present and True."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.get("status") == "True"


def set_condition(
    conditions: list[dict[str, Any]],
    type_: str,
    status: Status,
    reason: str,
    message: str,
    *,
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """A new list with this condition set in place; the transition time moves only when the status does.

    Pure: `conditions` is left as it is. `now` is RFC 3339.
    """
    previous = find_condition(conditions, type_)
    condition = {
        "type": type_,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": previous["lastTransitionTime"] if previous and previous["status"] == status else now,
        "reason": reason,
        "message": message[:32768],
    }
    if previous is None:
        return [*conditions, condition]
    return [condition if c.get("type") == type_ else c for c in conditions]
