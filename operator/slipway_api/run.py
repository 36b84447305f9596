"""The run contract: what the operator tells a run, and what the run tells the operator.

Down: one JSON document, `RunSpec`, in the environment variable SLIPWAY_RUN of the head container. It holds no secret.
Up: `Report`, POSTed to `report.url` with the run's own bearer token (read from `report.tokenFile`). A report is the
whole state as the run knows it, not a change, so a lost one costs nothing and the newest one wins; only the last one,
the one with `end`, must arrive. A run that cannot deliver it ends with an exit code that says the same, coarsely.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum, StrEnum
from typing import Annotated, Literal

from pydantic import Field

from slipway_api.base import ApiModel, LongText, ShortText, Timestamp
from slipway_api.compression import Compression, CompressionResult
from slipway_api.evaljob import (
    Confidence,
    EvalData,
    EvalProgress,
    EvalResults,
    FewShot,
    Gate,
    MeasuredModel,
    MetricValue,
    Slice,
    Suite,
    SuiteStatus,
)
from slipway_api.metrics import MetricChoice
from slipway_api.references import ModelReference, TrainingModel
from slipway_api.trainjob import (
    Checkpointing,
    CheckpointStatus,
    Data,
    PlanStatus,
    Progress,
    SkippedCheckpoint,
    Strategy,
    Tokenizer,
    TrainedModel,
    Training,
    Workers,
)

RUN_ENV = "SLIPWAY_RUN"
# POST {url}/v1/runs/{kind}/{namespace}/{name}/{uid}/{attempt}; kind is the plural: trainjobs, evaljobs, deployments
REPORT_PATH = "/v1/runs"


class Outcome(StrEnum):
    """How a run ended."""

    SUCCEEDED = "Succeeded"
    USER_ERROR = "UserError"
    OUT_OF_MEMORY = "OutOfMemory"
    INFRASTRUCTURE = "Infrastructure"
    PREEMPTED = "Preempted"


class ExitCode(IntEnum):
    """The driver's exit code (sysexits.h where it has a word for it)."""

    SUCCEEDED = 0
    OUT_OF_MEMORY = 71  # EX_OSERR
    INFRASTRUCTURE = 75  # EX_TEMPFAIL
    USER_ERROR = 78  # EX_CONFIG
    PREEMPTED = 143  # 128 + SIGTERM

    @classmethod
    def of(cls, outcome: Outcome) -> ExitCode:
        """The exit code that stands for an outcome."""
        return cls[outcome.name]

    @classmethod
    def outcome(cls, code: int) -> Outcome:
        """What an exit code says. Any that is not ours (a crash, a signal) is infrastructure."""
        try:
            return Outcome[cls(code).name]
        except ValueError:
            return Outcome.INFRASTRUCTURE


class ReportTarget(ApiModel):
    """Where a run reports to."""

    url: str = Field(max_length=1024, description="Base URL of the operator's report endpoint.")
    token_file: str = Field(max_length=1024, description="File that holds the bearer token.")
    ca_file: str | None = Field(default=None, max_length=1024, description="CA bundle of an https url.")
    interval_seconds: int = Field(default=2, ge=1, le=3600, description="Seconds between progress reports.")


class RunIdentity(ApiModel):
    """Which attempt of which object a run is, where it keeps things, and whom it tells."""

    version: Literal[1] = 1
    kind: Literal["trainjobs", "evaljobs", "deployments"]
    namespace: ShortText
    name: ShortText
    uid: ShortText
    attempt: int = Field(ge=0, description="From 1; 0: it has no attempts (a router).")
    storage: LongText = Field(description="Prefix of what this object stores: checkpoints/, model/, logs/, metrics/.")
    cache: LongText = Field(description="Prefix of what runs of the namespace share: token shards by digest.")
    report: ReportTarget | None = Field(default=None, description="None: the run reports to nobody (torchrun).")


class RunSpec(RunIdentity):
    """Everything that a training run needs to know."""

    kind: Literal["trainjobs"] = "trainjobs"
    model: TrainingModel
    tokenizer: Tokenizer | None = None
    data: Data
    training: Training
    strategy: Strategy
    workers: Workers
    checkpoint: Checkpointing


class EvalRunSpec(RunIdentity):
    """Everything that an evaluation run needs to know. References to TrainJobs are resolved to URIs."""

    kind: Literal["evaljobs"] = "evaljobs"
    results: LongText = Field(
        description="Prefix of what evaluations of the namespace share: scores by model digest, suite digest and seed."
    )
    model: ModelReference
    baseline: ModelReference | None = None
    suites: list[Suite] = Field(min_length=1, max_length=16)
    data: EvalData | None = None
    metrics: list[MetricChoice]
    slices: list[Slice] = Field(default_factory=list)
    few_shot: FewShot | None = None
    confidences: list[Confidence] = Field(description="Intervals are reported at each of these.")
    gate: list[Gate] = Field(
        default_factory=list, max_length=32, description="For the report: the verdict itself is the operator's."
    )
    seed: int = 0
    batch_tokens: int = 4096
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: Workers


class CompressRunSpec(RunIdentity):
    """Everything that a compression run needs to know. References to TrainJobs are resolved to URIs."""

    kind: Literal["deployments"] = "deployments"
    model: ModelReference
    digest: ShortText = Field(default="", description="What the model's files must hash to. Empty: not checked.")
    compression: Compression


class RunEnd(ApiModel):
    """The last word of a run."""

    outcome: Outcome
    reason: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")] = Field(
        description="CamelCase word, e.g. ModelSaved, DataNotFound, NoSafetensors, LossNotFinite."
    )
    message: LongText = Field(description="What happened, where, and what to do.")
    model: TrainedModel | None = Field(default=None, description="Of a training run that succeeded.")
    results: EvalResults | None = Field(default=None, description="Of an evaluation run that succeeded.")
    compression: CompressionResult | None = Field(default=None, description="Of a compression run that succeeded.")


class Evaluation(ApiModel):
    """The whole state of an evaluation, as its run knows it."""

    progress: EvalProgress
    suites: list[SuiteStatus] = Field(default_factory=list, max_length=16)
    metrics: list[MetricValue] = Field(default_factory=list, max_length=512)
    model: MeasuredModel | None = None
    baseline: MeasuredModel | None = None


class Report(ApiModel):
    """The whole state of a run, as it knows it."""

    version: Literal[1] = 1
    sequence: int = Field(ge=0, description="Grows with each report of the attempt; an older one is ignored.")
    time: Timestamp
    stage: Literal[
        "Starting",
        "PreparingData",
        "Training",
        "SavingModel",
        "Evaluating",
        "SavingResults",
        "Compressing",
        "Measuring",
        "Ended",
    ]
    plan: PlanStatus | None = None
    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    skipped_checkpoints: list[SkippedCheckpoint] = Field(default_factory=list, max_length=20)
    resumed_from_step: int | None = Field(default=None, ge=0)
    evaluation: Evaluation | None = None
    compression: CompressionResult | None = None
    end: RunEnd | None = None


def run_id(uid: str, attempt: int) -> str:
    """The identity that a report token is bound to."""
    return f"{uid}/{attempt}"


def report_token(key: bytes, uid: str, attempt: int) -> str:
    """The bearer token of one attempt: HMAC-SHA256 of its identity under the operator's key, hexadecimal."""
    return hmac.new(key, run_id(uid, attempt).encode(), hashlib.sha256).hexdigest()
