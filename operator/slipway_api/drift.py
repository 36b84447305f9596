"""Drift: what of the traffic is kept, when it counts as changed, and how the model is then renewed.

The words of DESIGN.md's last link: a Deployment's router captures, its watcher compares windows of traffic with the
reference profile of the model, and an alarm may start a retrain, which ends as a candidate like any other.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from slipway_api.base import ApiModel, Decimal, LongText, Name, Rule, ShortText, Timestamp, Uri, map_list
from slipway_api.cron import CRON_PATTERN
from slipway_api.references import ModelReference, TrainJobReference
from slipway_api.trainjob import DataSource

# --- spec ---------------------------------------------------------------------------------------------------------


class Capture(ApiModel):
    """What is kept of requests and answers while drift is watched."""

    content: Literal["none", "features", "examples"] = Field(
        default="features",
        description="none: nothing. features: statistics only. examples: a bounded sample of the texts as well, which "
        "is what a retrain learns from.",
    )
    redact: bool = Field(
        default=True, description="Replace e-mail addresses, phone numbers and card numbers in examples."
    )
    max_examples: int = Field(
        default=5000, ge=1, le=1_000_000, description="Most examples that are kept: a sample of the latest windows."
    )


class DriftReference(ApiModel):
    """What the traffic is compared with instead of the profile that training wrote beside the model."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=32)] = Field(
        description="Documents like the requests that are expected."
    )


class RetrainData(ApiModel):
    """What the new model learns from."""

    captured: bool = Field(
        default=True,
        description="The captured requests, each with the corrected answer that feedback gave for it, if any. Never "
        "what the model itself answered.",
    )
    sources: Annotated[list[DataSource], Field(max_length=32)] = Field(
        default_factory=list, description="Further documents, as they are when the retrain begins."
    )
    replay_ratio: Decimal = Field(
        default="1",
        description="Part of the template's own training documents that is learned again, against forgetting. 0: none.",
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("double(self.replayRatio) <= 1.0", "replayRatio must be at most 1", ".replayRatio"),
        Rule("self.captured || self.sources.size() > 0", "a retrain needs captured requests or sources"),
    )


class Retrain(ApiModel):
    """How the model is renewed: TrainJob, then EvalJob against the serving model, then candidate."""

    train_job: TrainJobReference = Field(
        description="The TrainJob whose spec is the template. It starts from the model that serves."
    )
    data: RetrainData = Field(default_factory=RetrainData, description="What the new model learns from.")
    steps: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Training steps. Default: the template's.")
    old_margin: Decimal = Field(
        default="0.05",
        description='How much the perplexity on the template\'s held-out data may rise: "0.05" allows 5 %. On the new '
        "data the new model must be better than the one that serves.",
    )
    on_drift: bool = Field(default=True, description="A drift alarm starts a retrain.")
    schedule: Annotated[str, Field(max_length=128, pattern=CRON_PATTERN)] | None = Field(
        default=None,
        description='Cron expression in UTC ("0 3 * * 0") of retrains that need no alarm: minute, hour, day of month, '
        "month, day of week.",
    )
    approval: Literal["automatic", "manual"] = Field(
        default="automatic",
        description="manual: a retrain waits until the annotation slipway.dev/approve-retrain names it.",
    )
    cooldown_seconds: int = Field(
        default=86400, ge=0, le=31536000, description="At least so long from the end of one retrain to the next one."
    )
    max_per_day: int = Field(default=1, ge=1, le=100, description="Most retrains that begin within 24 hours.")
    gpu_hours_budget: Decimal | None = Field(
        default=None,
        description="Most GPU-hours (CPU-hours, where workers have no GPU) of all retrains within 30 days. One that "
        "reaches it is stopped.",
    )
    max_failures: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Retrains in a row that failed or were not better, after which none begins until spec.model or "
        "spec.drift.retrain changes. The cooldown doubles with each of them.",
    )


class Drift(ApiModel):
    """When the traffic counts as changed, and what is then done."""

    reference: DriftReference | None = Field(
        default=None, description="Default: the profile that training wrote beside the model."
    )
    window_requests: int = Field(default=500, ge=50, le=1_000_000, description="Requests that are judged together.")
    retrain: Retrain | None = Field(default=None, description="Default: drift is told, and nothing is done about it.")


# --- status -------------------------------------------------------------------------------------------------------


class DriftAlarm(ApiModel):
    """A signal that drifted in a window and not before. Decimals are strings."""

    id: ShortText = Field(description="Follows from profile, signal and window: the same alarm told twice is one.")
    kind: ShortText = Field(description="data, prediction, label or concept.")
    signal: ShortText = Field(description="Which statistic of the traffic.")
    test: ShortText = Field(description="Which test found it.")
    statistic: ShortText = Field(description="The test's statistic.")
    effect: ShortText = Field(description="Effect size; an alarm needs one above the threshold.")
    threshold: ShortText = Field(description="What the effect had to exceed.")
    p_value: ShortText | None = Field(default=None, description="Corrected for the number of signals. Streams: none.")
    window: int = Field(ge=0, description="Which window of the watcher.")
    start: Timestamp = Field(description="First request of the window.")
    end: Timestamp = Field(description="Last request of the window.")


class Snapshot(ApiModel):
    """Captured examples as they were at one moment; never changed once it is named."""

    uri: Uri = Field(description="Directory with train/*.parquet and held-out/*.parquet, column text.")
    digest: ShortText = Field(description="Digest of its files, as sha256:...")
    examples: int = Field(ge=0, description="Examples to learn from.")
    held_out: int = Field(ge=0, description="Examples to measure on. None of them is among those to learn from.")
    time: Timestamp = Field(description="When it was taken.")


class DriftStatus(ApiModel):
    """What the watcher knows, as it last said."""

    profile: ShortText = Field(default="", description="Digest of the reference profile.")
    version: ShortText = Field(default="", description="The version of the model whose traffic is watched.")
    windows: int = Field(default=0, ge=0, description="Windows judged.")
    requests: int = Field(default=0, ge=0, description="Requests captured.")
    dropped: int = Field(default=0, ge=0, description="Requests that were not captured: storage or watcher was away.")
    active: Annotated[list[ShortText], Field(max_length=64)] = Field(
        default_factory=list, description="Signals that are drifted now."
    )
    alarms: Annotated[list[DriftAlarm], map_list("id", max_items=20)] = Field(
        default_factory=list, description="Newest first."
    )
    snapshot: Snapshot | None = Field(default=None, description="The newest one.")
    report: LongText | None = Field(default=None, description="HTML report with the history of every signal.")
    time: Timestamp | None = Field(default=None, description="When the watcher said so.")
    problem: LongText | None = Field(default=None, description="Why nothing is watched, and what to do.")


RetrainStage = Literal[
    "AwaitingApproval", "Training", "Evaluating", "RollingOut", "Promoted", "Rejected", "Failed", "Superseded"
]


class RetrainRun(ApiModel):
    """One renewal of the model, from its cause to the version that came of it."""

    id: Name = Field(description="Name of its TrainJob and EvalJob.")
    cause: ShortText = Field(description="drift, or schedule.")
    alarm: ShortText | None = Field(default=None, description="Id of the alarm that caused it.")
    signal: ShortText | None = Field(default=None, description="The signal that drifted.")
    scheduled: Timestamp | None = Field(default=None, description="The time of the schedule that caused it.")
    base_version: ShortText = Field(default="", description="The version that it starts from and is compared with.")
    base: ModelReference | None = Field(default=None, description="The model of that version.")
    snapshot: Snapshot | None = Field(default=None, description="The captured examples that it learns from.")
    requirements: Annotated[list[Name], Field(max_length=8)] = Field(
        default_factory=list, description="EvalJobs of spec.requires that the new model is measured by as well."
    )
    stage: RetrainStage = Field(
        description="How far it is. Rejected: not better, or rolled back. Superseded: spec.model was changed meanwhile."
    )
    reason: ShortText = Field(default="", description="Why it is over, as one CamelCase word.")
    message: LongText = Field(default="", description="Why, with the figures.")
    train_job_uid: ShortText | None = Field(default=None, description="UID of its TrainJob, once that was seen.")
    model: Uri | None = Field(default=None, description="The model that was trained.")
    model_digest: ShortText = Field(default="", description="Its digest.")
    version: ShortText | None = Field(default=None, description="The version that came of it.")
    gpu_hours: ShortText = Field(default="0", description="What it has cost.")
    started: Timestamp = Field(description="When it began.")
    ended: Timestamp | None = Field(default=None, description="When it was over.")


class RetrainUsage(ApiModel):
    """What the retrains of a day have cost."""

    day: Annotated[str, Field(max_length=10)] = Field(description="The day on which they ended (UTC): 2026-01-31.")
    hours: ShortText = Field(description="GPU-hours, or CPU-hours where workers have no GPU.")


class RetrainStatus(ApiModel):
    """What became of the alarms."""

    current: RetrainRun | None = Field(default=None, description="The one at work; there is never more than one.")
    history: Annotated[list[RetrainRun], map_list("id", max_items=20)] = Field(
        default_factory=list, description="Those that are over, newest first; and the one whose model serves."
    )
    model: Uri | None = Field(default=None, description="The retrained model that serves instead of spec.model.")
    model_digest: ShortText = Field(default="", description="Its digest.")
    model_run: Name | None = Field(default=None, description="The retrain that it came of.")
    model_requirements: Annotated[list[Name], Field(max_length=8)] = Field(
        default_factory=list, description="EvalJobs of spec.requires that it was measured by as well."
    )
    refused: ShortText | None = Field(
        default=None,
        description="Why the last alarm or schedule started nothing, since the last retrain began or ended.",
    )
    refused_message: LongText | None = Field(default=None, description="The same in words, with when it may.")
    refused_cause: ShortText | None = Field(default=None, description="The alarm's id, or the schedule's time.")
    handled_alarms: Annotated[list[ShortText], Field(max_length=64)] = Field(
        default_factory=list, description="Alarms that were acted on or refused for good, newest first."
    )
    next_schedule: Timestamp | None = Field(default=None, description="When the schedule is next due.")
    begun: int = Field(default=0, ge=0, description="Retrains that ever began.")
    failures: int = Field(default=0, ge=0, description="Retrains in a row that failed or were not better.")
    starts: Annotated[list[Timestamp], Field(max_length=100)] = Field(
        default_factory=list, description="When those of the last 24 hours began, newest first."
    )
    usage: Annotated[list[RetrainUsage], map_list("day", max_items=32)] = Field(
        default_factory=list, description="What those of the last 30 days have cost, newest first."
    )
    asked_model: ShortText = Field(
        default="", description="Digests of the spec.model that all this is about, and of the model that it led to."
    )
    asked_retrain: ShortText = Field(default="", description="Digest of the spec.drift.retrain that failures are of.")
