"""Deployment (sdeploy): a model behind an OpenAI-compatible endpoint, renewed step by step.

Not to be mistaken for apps/v1: write `deployments.slipway.dev` or `sdeploy`. Nothing is immutable but the name. What
changes the served weights or how they are held (model, engine) makes a new *version*, which joins the old one as a
candidate and takes over by `canary`; what changes only limits or defaults reaches the running replicas at once.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slipway_api.base import (
    ApiModel,
    Decimal,
    LabelName,
    LongText,
    Name,
    Rule,
    ShortText,
    Timestamp,
    exactly_one,
    map_list,
)
from slipway_api.compression import Compression, CompressionResult, CompressionStatus
from slipway_api.conditions import Condition
from slipway_api.drift import Capture, Drift, DriftStatus, RetrainStatus
from slipway_api.references import ModelReference
from slipway_api.trainjob import WorkerResources

# KubeRay allows a RayService 50 characters less the suffix of its RayCluster; the RayService has the Deployment's name.
MAX_NAME_LENGTH = 40


class EvalJobReference(ApiModel):
    """An EvalJob of the same namespace."""

    name: Name = Field(description="Name of the EvalJob.")


class Requirement(ApiModel):
    """Something that must hold before a model answers anybody."""

    eval_job: EvalJobReference | None = Field(
        default=None,
        description="An EvalJob whose condition Passed must be True, and that must have measured this very model.",
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (exactly_one("evalJob", message="evalJob must be set"),)


class TransformersEngine(ApiModel):
    """The built-in engine: transformers models with continuous batching, on CPU and GPU."""

    precision: Literal["fp32", "bf16"] = Field(
        default="bf16",
        description="What the weights are held and computed in. Of a compressed model its scheme decides: what it "
        "leaves in floating point is fp32 on a CPU and bf16 on a GPU.",
    )
    max_batch: int = Field(default=16, ge=1, le=1024, description="Answers that one replica writes at the same time.")
    max_context_tokens: int = Field(
        default=2048, ge=16, le=1048576, description="Longest prompt and answer together. At most what the model has."
    )
    max_queue: int = Field(
        default=64, ge=0, le=100_000, description="Requests that wait in one replica; more are answered 429."
    )
    compile: bool = Field(
        default=False,
        description="Compile the decoding step with torch.compile: a slower start, which needs a C++ compiler on CPU.",
    )


class VllmEngine(ApiModel):
    """vLLM, through ray.serve.llm. One replica is one pod and uses all of its GPUs by tensor parallelism.

    The serving image must hold vLLM. It loads the model itself, from a path, an s3:// or gs:// prefix or the hub.
    """

    precision: Literal["fp16", "bf16"] = Field(default="bf16", description="What the weights are computed in.")
    max_batch: int = Field(default=256, ge=1, le=4096, description="Answers that one replica writes at the same time.")
    max_context_tokens: int = Field(
        default=8192, ge=16, le=1048576, description="Longest prompt and answer together. At most what the model has."
    )
    gpu_memory_part: Decimal = Field(
        default="0.9", description="Part of each GPU's memory for weights and cache, above 0 and at most 1."
    )
    prefix_caching: bool = Field(default=True, description="Prompts that begin alike are computed once.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.gpuMemoryPart) > 0.0 && double(self.gpuMemoryPart) <= 1.0",
            "gpuMemoryPart must be above 0 and at most 1",
            ".gpuMemoryPart",
        ),
    )


class Engine(ApiModel):
    """What runs the model: exactly one."""

    transformers: TransformersEngine | None = Field(
        default=None, description="The built-in engine. It is taken where spec.engine is left out."
    )
    vllm: VllmEngine | None = Field(default=None, description="vLLM, on GPUs.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (exactly_one("transformers", "vllm"),)


def _built_in_engine() -> Engine:
    return Engine(transformers=TransformersEngine())


class ReplicaResources(WorkerResources):
    """What each replica is given. A replica is one pod."""

    gpu: int = Field(default=0, ge=0, le=16, description="GPUs per replica. More than one: engine.vllm only.")


class Replicas(ApiModel):
    """How many replicas of each version, and of what size."""

    min: int = Field(
        default=1, ge=0, le=1000, description="Fewest replicas. 0: the last one goes when nobody asks for a while."
    )
    max: int = Field(
        default=1, ge=1, le=1000, description="Most replicas. Above min, Ray Serve scales between the two."
    )
    target_ongoing_requests: int = Field(
        default=16, ge=1, le=100_000, description="Requests at work in one replica that scaling aims at."
    )
    idle_seconds: int = Field(
        default=300, ge=1, le=604800, description="With min 0: the last replica goes after so long without a request."
    )
    start_timeout_seconds: int = Field(
        default=60,
        ge=1,
        le=3600,
        description="So long a request waits for a replica that can begin its answer; then it is answered 503.",
    )
    resources: ReplicaResources = Field(default_factory=ReplicaResources, description="What each replica is given.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (Rule("self.min <= self.max", "min must not be above max", ".min"),)


class GenerationDefaults(ApiModel):
    """What a request gets that does not say, and what none may exceed."""

    max_tokens: int = Field(default=256, ge=1, le=1048576, description="Tokens of an answer, when not said.")
    max_tokens_limit: int = Field(default=4096, ge=1, le=1048576, description="Most tokens that may be asked for.")
    temperature: Decimal = Field(default="1", description="Temperature, when not said.")
    top_p: Decimal = Field(default="1", description="Nucleus sampling, when not said.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.maxTokens <= self.maxTokensLimit", "maxTokens must not be above maxTokensLimit", ".maxTokens"),
        Rule("double(self.topP) > 0.0 && double(self.topP) <= 1.0", "topP must be above 0 and at most 1", ".topP"),
        Rule("double(self.temperature) <= 2.0", "temperature must be at most 2", ".temperature"),
    )


class Limits(ApiModel):
    """What a client may ask of the endpoint."""

    max_body_bytes: int = Field(
        default=1048576, ge=1024, le=268435456, description="Largest request; larger ones are answered 413."
    )
    requests_per_minute: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Requests of one API key in a minute; more are answered 429. 0: any.",
    )


class SecretKey(ApiModel):
    """A key of a Secret of the same namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        default="api-keys", description="Key in it: a text with one API key in each line."
    )


class Auth(ApiModel):
    """Who may ask."""

    api_keys: SecretKey = Field(description="API keys, sent as a bearer token. They may be changed at any time.")


class CanaryStep(ApiModel):
    """One step of a rollout."""

    weight: int = Field(ge=1, le=100, description="Percent of the requests that the candidate answers.")
    pause_seconds: int = Field(default=30, ge=0, le=604800, description="How long at least.")
    min_requests: int = Field(
        default=0, ge=0, le=1_000_000_000, description="Requests that the candidate must have answered in this step."
    )


class Analysis(ApiModel):
    """When a candidate is worse than the stable version, so that it is rolled back.

    Rates are compared by confidence sequences that hold at any time (Robbins 1970), so looking often is free.
    """

    confidence: Literal["0.9", "0.95", "0.99"] = Field(
        default="0.95", description="Of the statement that one of the candidate's rates is higher."
    )
    error_margin: Decimal = Field(
        default="0.01", description="How much higher the candidate's error rate may be, as a part of the requests."
    )
    quality_margin: Decimal = Field(
        default="0.05",
        description="How much larger the part of the candidate's answers that clients judged bad may be (by "
        "/v1/feedback: rated 0 or less, or corrected without a rating), of those that they judged.",
    )
    max_latency_ratio: Decimal = Field(
        default="2",
        description="The candidate's 99th percentile of latency over the stable version's, at most. It is taken back "
        "when the ratio is higher with 99 % confidence. 0: any.",
    )
    min_requests: int = Field(
        default=50, ge=1, le=1_000_000_000, description="Requests of each version before latencies are compared."
    )


class Canary(ApiModel):
    """How a candidate takes over."""

    steps: Annotated[list[CanaryStep], Field(max_length=20)] = Field(
        default_factory=list,
        description="Weights, one after the other; after the last the candidate is promoted. None: it takes over as "
        "soon as it is ready.",
    )
    analysis: Analysis = Field(default_factory=Analysis, description="When a candidate is rolled back.")
    paused: bool = Field(default=False, description="Stay at the present step until this is false again.")
    progress_deadline_seconds: int = Field(
        default=600, ge=10, le=604800, description="Roll back a candidate that is not ready after this long."
    )


class DeploymentSpec(ApiModel):
    """Which model to serve, what it must have passed, and how it is served."""

    model: ModelReference = Field(description="The model to serve. A changed one is rolled out.")
    requires: Annotated[list[Requirement], Field(max_length=8)] = Field(
        default_factory=list, description="What must hold before this model serves. Until then the one before goes on."
    )
    compression: Compression | None = Field(
        default=None, description="How the model is made smaller before it serves. Default: it serves as it is."
    )
    engine: Engine = Field(default_factory=_built_in_engine, description="What runs the model.")
    replicas: Replicas = Field(default_factory=Replicas, description="How many replicas, and of what size.")
    generation: GenerationDefaults = Field(
        default_factory=GenerationDefaults, description="Defaults and limits of answers."
    )
    limits: Limits = Field(default_factory=Limits, description="What a client may ask.")
    auth: Auth | None = Field(default=None, description="Who may ask. Default: whoever reaches the endpoint.")
    canary: Canary = Field(default_factory=Canary, description="How a candidate takes over.")
    capture: Capture = Field(
        default_factory=Capture, description="What is kept of requests and answers while drift is watched."
    )
    drift: Drift | None = Field(
        default=None, description="When the traffic counts as changed, and what is then done. Default: nobody looks."
    )
    suspend: bool = Field(default=False, description="Stop serving and free everything; false brings it back.")
    priority_class_name: Name | None = Field(default=None, description="PriorityClass of the pods.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.engine.vllm) || self.replicas.resources.gpu > 0",
            "engine.vllm needs GPUs: set replicas.resources.gpu, or take engine.transformers",
            ".engine",
        ),
        Rule(
            "!has(self.engine.transformers) || self.replicas.resources.gpu <= 1",
            "engine.transformers drives at most one GPU: set replicas.resources.gpu to 1, or take engine.vllm",
            ".engine",
        ),
        Rule(
            "!has(self.engine.vllm) || !has(self.compression)",
            "compression is made for engine.transformers: take that, or serve a model that is quantized already",
            ".engine",
        ),
        Rule(
            "!has(self.engine.vllm) || !has(self.model.uri) || self.model.uri.matches('^(/|file:///|s3://|gs://)')",
            "engine.vllm loads from a path, file://, s3:// or gs://",
            ".model",
        ),
        Rule(
            "!has(self.drift) || self.capture.content != 'none'",
            "drift needs captured requests: set capture.content to features or examples",
            ".capture.content",
        ),
        Rule(
            "has(self.drift) || self.capture.content != 'examples'",
            "examples are only kept while drift is watched: set drift as well",
            ".capture.content",
        ),
    )


class ServedVersion(ApiModel):
    """One version of the model."""

    version: LabelName = Field(
        description="Its name: v- and a digest of the model, how it is compressed and how it is held."
    )
    reference: ModelReference = Field(description="The model: a uri or a hub repository.")
    digest: ShortText = Field(default="", description="Digest of the model, as its TrainJob says.")
    source: ShortText = Field(default="", description="The model in words: trainjob/stdlib-lm.")
    weight: int = Field(ge=0, le=100, description="Percent of the requests that it answers.")
    state: ShortText = Field(default="", description="How its application stands, as Ray Serve says.")
    since: Timestamp | None = Field(default=None, description="When it became what it is.")
    step: int | None = Field(default=None, ge=0, description="Canary step, from 0. Of a candidate only.")
    step_since: Timestamp | None = Field(default=None, description="When this step began.")
    step_requests: int | None = Field(default=None, ge=0, description="Its requests when this step began.")
    requests: int = Field(default=0, ge=0, description="Requests that it has answered, as the router last said.")
    errors: int = Field(default=0, ge=0, description="Those that ended in an error of the server.")
    latency_p99_ms: ShortText | None = Field(default=None, description="99th percentile of latency, milliseconds.")
    ready_since: Timestamp | None = Field(default=None, description="When its application was first ready.")
    cold_start_seconds: ShortText | None = Field(
        default=None, description="How long the last request that came while no replica ran waited for one."
    )
    engine: TransformersEngine | None = Field(
        default=None, description="How it is held: what the spec said when it became a version. Of vLLM: vllm."
    )
    vllm: VllmEngine | None = Field(default=None, description="How vLLM holds it.")
    compression: CompressionResult | None = Field(default=None, description="What compressing it gained and lost.")


class RejectedVersion(ApiModel):
    """A version that was rolled back or could not be compressed, and is not tried again."""

    version: LabelName = Field(description="Its name.")
    reason: ShortText = Field(description="Why, as one CamelCase word.")
    message: LongText = Field(description="Why, with the figures.")
    time: Timestamp = Field(description="When.")


class DeploymentStatus(ApiModel):
    """What the operator knows about the endpoint."""

    observed_generation: int | None = Field(default=None, ge=0, description="The generation that status describes.")
    conditions: Annotated[list[Condition], map_list("type", max_items=16)] = Field(
        default_factory=list,
        description="GatePassed, Compressed, Available, Progressing, Degraded, Drifted, Retraining.",
    )
    state: ShortText | None = Field(default=None, description="The conditions in one word, for people.")
    url: LongText | None = Field(default=None, description="Base URL of the endpoint: append /v1/chat/completions.")
    ray_service_name: ShortText | None = Field(default=None, description="The RayService that serves.")
    weights: ShortText | None = Field(default=None, description="Weights of the versions, for the printer column.")
    version: ShortText | None = Field(default=None, description="The stable version, for the printer column.")
    stable: ServedVersion | None = Field(default=None, description="The version that answers.")
    candidate: ServedVersion | None = Field(default=None, description="The version that is being rolled out.")
    retiring: Annotated[list[ServedVersion], map_list("version", max_items=4)] = Field(
        default_factory=list, description="Versions that get no more requests and end those that they have."
    )
    rejected: Annotated[list[RejectedVersion], Field(max_length=10)] = Field(
        default_factory=list, description="Versions that were rolled back or could not be compressed, newest first."
    )
    compression: CompressionStatus | None = Field(
        default=None, description="The newest compression: of the version that is to be rolled out next."
    )
    drift: DriftStatus | None = Field(default=None, description="What the drift watcher knows.")
    retrain: RetrainStatus | None = Field(default=None, description="What became of the alarms.")


class Deployment(ApiModel):
    """Serves a model behind an OpenAI-compatible endpoint, and rolls out new versions of it."""

    api_version: Literal["slipway.dev/v1alpha1"] = "slipway.dev/v1alpha1"
    kind: Literal["Deployment"] = "Deployment"
    metadata: dict[str, Any]
    spec: DeploymentSpec = Field(description="Which model to serve, what it must have passed, and how it is served.")
    status: DeploymentStatus | None = Field(default=None, description="What the operator knows about the endpoint.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
            f"metadata.name must have at most {MAX_NAME_LENGTH} characters: names of Ray objects are derived from it",
        ),
    )
