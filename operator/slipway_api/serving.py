"""The serving contract: what the operator tells a Serve application, and what its router tells the operator.

A RayService has several Serve applications, because a changed `args` restarts every deployment of its application
(Ray derives the code version of all of them from it), and a rollout must not touch the version that answers:

    router       slipway_serving.app:router   the HTTP endpoint; args: RouterConfig, user_config: RouterUserConfig
    v-<digest>   slipway_serving.app:engine   one for each version of the model; args: EngineConfig
                 slipway_serving.vllm.app:engine   where vLLM holds it; args: VllmConfig
    watcher      slipway_serving.app:watcher  judges the traffic of the stable version; args: WatcherConfig

So a version joins or leaves as an application, and weights, defaults and limits travel through the router's
user_config, which Serve hands to running replicas. Nothing here is secret: API keys and tokens are files.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from slipway_api.base import ApiModel, LabelName, LongText, ShortText, Timestamp, Uri
from slipway_api.compression import SchemeName
from slipway_api.drift import DriftStatus
from slipway_api.references import ModelReference
from slipway_api.run import ReportTarget
from slipway_api.trainjob import DataSource

ROUTER_APPLICATION = "router"
ROUTER_DEPLOYMENT = "Router"
ENGINE_DEPLOYMENT = "Engine"
WATCHER_APPLICATION = "watcher"
WATCHER_DEPLOYMENT = "Watcher"
ROUTER_IMPORT_PATH = "slipway_serving.app:router"
ENGINE_IMPORT_PATH = "slipway_serving.app:engine"
VLLM_IMPORT_PATH = "slipway_serving.vllm.app:engine"
VLLM_DEPLOYMENT_PREFIX = "LLMServer:"
"""ray.serve.llm names the deployment that holds a model so, and then as the model's id: here the version."""
WATCHER_IMPORT_PATH = "slipway_serving.app:watcher"
APPLICATION_PREFIX_ENV = "SLIPWAY_SERVE_APPLICATION_PREFIX"
"""Put before an application's name by whoever runs several RayServices in one Ray cluster; unset in a cluster."""


class EngineConfig(ApiModel):
    """One version of a model, and how it is held."""

    version: LabelName
    model: ModelReference = Field(description="A uri or a hub repository; TrainJobs are resolved.")
    digest: ShortText = Field(default="", description="What the model's files must hash to. Empty: not checked.")
    compression: SchemeName | None = Field(default=None, description="What compressed it. It says how it is held then.")
    precision: Literal["fp32", "bf16"] = "bf16"
    max_batch: int = Field(default=16, ge=1, description="Sequences decoded together.")
    max_context_tokens: int = Field(default=2048, ge=16, description="Prompt and answer together.")
    max_queue: int = Field(default=64, ge=0, description="Requests that wait; more are refused.")
    compile: bool = Field(default=False, description="Compile the decoding step with torch.compile.")


class VllmConfig(ApiModel):
    """One version of a model that vLLM holds."""

    version: LabelName
    model: ModelReference = Field(description="A uri or a hub repository; TrainJobs are resolved.")
    precision: Literal["fp16", "bf16"] = "bf16"
    max_batch: int = Field(default=256, ge=1)
    max_context_tokens: int = Field(default=8192, ge=16)
    gpu_memory_part: float = Field(default=0.9, gt=0, le=1)
    prefix_caching: bool = True
    gpus: int = Field(ge=1, description="Of one replica: the tensor parallel size.")


class RouterConfig(ApiModel):
    """What a router is for as long as it lives."""

    namespace: ShortText
    name: ShortText = Field(description="The Deployment; also the model's name in the API.")
    uid: ShortText
    api_keys_file: str | None = Field(default=None, max_length=1024, description="One API key a line. None: open.")
    feedback_directory: LongText | None = Field(
        default=None, description="Storage prefix that feedback is appended to. None: kept in memory only."
    )
    report: ReportTarget | None = Field(default=None, description="Whom the router tells how the versions do.")


class WatcherConfig(ApiModel):
    """What a drift watcher is for as long as it lives. Another stable version or another setting: another watcher."""

    namespace: ShortText
    name: ShortText = Field(description="The Deployment.")
    uid: ShortText
    version: LabelName = Field(description="The version whose traffic is watched; that of others is left out.")
    model: ModelReference = Field(description="A uri or a hub repository: its tokenizer and its reference profile.")
    storage: Uri = Field(description="Prefix for state, windows, examples, snapshots and the report.")
    content: Literal["features", "examples"] = Field(default="features", description="examples: texts are kept, too.")
    redact: bool = True
    max_examples: int = Field(default=5000, ge=1)
    window_requests: int = Field(default=500, ge=50)
    sources: list[DataSource] = Field(
        default_factory=list, description="Documents of the reference. None: the profile beside the model."
    )
    report: ReportTarget | None = Field(default=None, description="Whom the watcher tells what it found.")


class WeightedVersion(ApiModel):
    """A version and its part of the requests."""

    name: LabelName
    application: ShortText = Field(description="Its Serve application, without prefix.")
    weight: int = Field(ge=0, le=100, description="Percent of the requests. 0: none, but it may still answer others.")
    model: ShortText = Field(default="", description="The model in words, for /v1/models.")


class RouterUserConfig(ApiModel):
    """What changes while a router lives."""

    versions: list[WeightedVersion] = Field(max_length=8)
    default_max_tokens: int = Field(default=256, ge=1)
    max_tokens_limit: int = Field(default=4096, ge=1)
    default_temperature: float = Field(default=1.0, ge=0, le=2)
    default_top_p: float = Field(default=1.0, gt=0, le=1)
    max_body_bytes: int = Field(default=1048576, ge=1024)
    requests_per_minute: int = Field(default=0, ge=0, description="Of one API key. 0: any.")
    start_timeout_seconds: float = Field(
        default=60.0, gt=0, description="So long a request waits until a version begins its answer; then 503."
    )
    capture: ShortText = Field(
        default="", description="Serve application, without prefix, that requests and answers are sent to. Empty: none."
    )


class VersionStatistics(ApiModel):
    """What a version has done since the router's replica began. Times in milliseconds."""

    name: LabelName
    requests: int = Field(default=0, ge=0, description="Answered, well or not.")
    errors: int = Field(default=0, ge=0, description="Ended in an error of the server (5xx), not of the client.")
    tokens: int = Field(default=0, ge=0, description="Generated.")
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_p99_at_least_ms: float | None = Field(
        default=None, description="What the 99th percentile of latency exceeds with 99 % confidence."
    )
    first_token_p50_ms: float | None = None
    first_token_p99_ms: float | None = None
    cold_start_seconds: float | None = Field(
        default=None, description="What the last request that came while no replica ran waited for one."
    )
    judged: int = Field(default=0, ge=0, description="Answers that clients rated or corrected.")
    bad: int = Field(default=0, ge=0, description="Of these: rated 0 or less, or corrected without a rating.")


class ServingReport(ApiModel):
    """The whole state of one router replica or of the watcher, as it knows it.

    POST /v1/runs/deployments/{namespace}/{name}/{uid}/0.
    """

    version: Literal[1] = 1
    sequence: int = Field(ge=0, description="Grows with each report of the replica.")
    replica: ShortText = Field(description="Which replica of the router speaks.")
    time: Timestamp
    versions: Annotated[list[VersionStatistics], Field(max_length=8)] = Field(default_factory=list)
    drift: DriftStatus | None = Field(default=None, description="What the watcher knows. Routers say nothing of it.")
