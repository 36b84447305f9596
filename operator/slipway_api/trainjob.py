"""TrainJob (tj): from a manifest to a trained model directory.

Each object of the spec stands beside the rules that belong to it. What is immutable after creation is everything
that decides the result; what may change is how the run is driven: suspend, retry, deadlines, checkpoint cadence.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slipway_api.base import (
    ApiModel,
    Decimal,
    Glob,
    LabelName,
    LongText,
    Name,
    Quantity,
    Rule,
    ShortText,
    Timestamp,
    Uri,
    at_most_one,
    exactly_one,
    immutable,
    immutable_optional,
    map_list,
)
from slipway_api.conditions import Condition
from slipway_api.references import HubModel, TrainingModel
from slipway_api.split import Sample, Split

# A RayJob's name may have 47 characters (KubeRay's validation.go); ours is "<name>-<attempt>".
MAX_NAME_LENGTH = 40


# --- data ---------------------------------------------------------------------------------------------------------


class DataSource(ApiModel):
    """Some documents: a file, a directory, or the source of the Python standard library."""

    uri: Uri = Field(
        description="A file or directory at a path or any fsspec URI (file://, s3://, gs://, hf://, ...), or "
        "python://stdlib: the source code of the standard library of the Python that runs the job."
    )
    format: Literal["text", "jsonl", "parquet"] = Field(
        default="text", description="text: each file is one document. jsonl, parquet: each row is one."
    )
    text_field: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        default="text", description="Field or column that holds the text (jsonl, parquet)."
    )
    include: Annotated[list[Glob], Field(max_length=64)] = Field(
        default_factory=list,
        description="Glob patterns, relative to a directory uri, of the files to take. ** crosses directories. "
        "Default: every file whose name does not start with a dot.",
    )
    exclude: Annotated[list[Glob], Field(max_length=64)] = Field(
        default_factory=list, description="Glob patterns, relative to a directory uri, of files to leave out."
    )
    sample: Sample | None = Field(default=None, description="Take only a part of the documents. Default: all.")


class Data(ApiModel):
    """What to train on and what to hold out."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=32)] = Field(description="Training documents.")
    eval_sources: Annotated[list[DataSource], Field(max_length=32)] = Field(
        default_factory=list,
        description="Held-out documents: their loss and perplexity are measured before, during and after training.",
    )
    split: Split | None = Field(
        default=None, description="Hold out a part of the sources' own documents, instead of naming evalSources."
    )
    sequence_length: int = Field(
        default=512, ge=8, le=1048576, description="Tokens per training sequence. Documents are packed: no padding."
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.split) || self.evalSources.size() == 0",
            "set either evalSources or split: both say what is held out",
        ),
    )


class TrainTokenizer(ApiModel):
    """A byte-level BPE tokenizer, trained on the job's own training documents."""

    vocab_size: int = Field(default=8192, ge=257, le=1048576, description="Vocabulary size, special tokens included.")


class Tokenizer(ApiModel):
    """Where the tokenizer comes from. Default: the model's own."""

    train: TrainTokenizer | None = Field(default=None, description="Train one on the training documents.")
    uri: Uri | None = Field(default=None, description="Directory that holds tokenizer.json.")
    hub: HubModel | None = Field(default=None, description="Hub repository that holds tokenizer.json.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (exactly_one("train", "uri", "hub"),)


# --- training -----------------------------------------------------------------------------------------------------


class Optimizer(ApiModel):
    """AdamW (arXiv:1711.05101)."""

    name: Literal["adamw"] = Field(default="adamw", description="The optimizer.")
    learning_rate: Decimal = Field(default="3e-4", description='Peak learning rate, as a decimal string: "3e-4".')
    weight_decay: Decimal = Field(
        default="0.1", description="Decoupled weight decay of matrices; norms and biases have none."
    )
    beta1: Decimal = Field(default="0.9", description="Decay of the first moment.")
    beta2: Decimal = Field(default="0.95", description="Decay of the second moment.")
    epsilon: Decimal = Field(default="1e-8", description="Added to the denominator.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("double(self.learningRate) > 0.0", "learningRate must be above zero", ".learningRate"),
        Rule("double(self.beta1) < 1.0", "beta1 must be below one", ".beta1"),
        Rule("double(self.beta2) < 1.0", "beta2 must be below one", ".beta2"),
    )


class Schedule(ApiModel):
    """Linear warm-up, then cosine decay to minRatio of the peak (arXiv:1608.03983), or constant."""

    type: Literal["cosine", "constant"] = Field(default="cosine", description="Shape after the warm-up.")
    warmup_steps: int = Field(default=0, ge=0, le=10_000_000, description="Optimizer steps of linear warm-up.")
    min_ratio: Decimal = Field(default="0.1", description="Learning rate at the end, as a part of the peak (cosine).")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("double(self.minRatio) <= 1.0", "minRatio must not be above one", ".minRatio"),
    )


class Training(ApiModel):
    """The optimization: how long, how large, how fast."""

    steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps to train for.")
    epochs: int | None = Field(default=None, ge=1, le=100_000, description="Passes over the training data.")
    global_batch_size: int = Field(
        default=16, ge=1, le=1048576, description="Sequences per optimizer step, over all workers."
    )
    micro_batch_size: int = Field(
        default=4,
        ge=1,
        le=65536,
        description="Sequences per forward pass of one worker. globalBatchSize = microBatchSize x workers x "
        "accumulation steps.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="bf16: compute in bfloat16, keep float32 weights and optimizer state."
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="The optimizer.")
    schedule: Schedule = Field(default_factory=Schedule, description="The learning rate over time.")
    max_grad_norm: Decimal = Field(default="1.0", description="Clip the global gradient norm here. 0: never.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Decides initial weights and data order.")
    eval_every_steps: int = Field(
        default=0, ge=0, le=100_000_000, description="Measure the held-out loss every so many steps. 0: first and last."
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more compute.",
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("steps", "epochs"),
        Rule(
            "self.globalBatchSize % self.microBatchSize == 0",
            "globalBatchSize must be divisible by microBatchSize",
            ".globalBatchSize",
        ),
    )


# --- parallelism --------------------------------------------------------------------------------------------------


class DDP(ApiModel):
    """Replicate the model on every worker, average the gradients (arXiv:2006.15704)."""


class FSDP(ApiModel):
    """Shard parameters, gradients and optimizer state (FSDP2, torch.distributed.fsdp.fully_shard)."""

    shard_degree: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Workers that share one copy of the model; copies are replicated over the rest (HSDP). "
        "Must divide the number of workers. Default: all workers.",
    )
    reshard_after_forward: bool = Field(
        default=True, description="Free gathered parameters after the forward pass (ZeRO-3); false keeps them (ZeRO-2)."
    )
    cpu_offload: bool = Field(default=False, description="Keep shards and optimizer state in host memory.")


class DeepSpeed(ApiModel):
    """DeepSpeed ZeRO (arXiv:1910.02054)."""

    stage: Literal[1, 2, 3] = Field(
        default=3, description="1: shard optimizer state; 2: and gradients; 3: and parameters."
    )
    offload_optimizer: bool = Field(default=False, description="Keep optimizer state in host memory.")


class Strategy(ApiModel):
    """How the model is spread over the workers. Default: fsdp."""

    ddp: DDP | None = Field(default=None, description="Replicate the model on every worker.")
    fsdp: FSDP | None = Field(default=None, description="Shard the model with FSDP2.")
    deepspeed: DeepSpeed | None = Field(default=None, description="Shard the model with DeepSpeed ZeRO.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (at_most_one("ddp", "fsdp", "deepspeed"),)

    @property
    def name(self) -> Literal["ddp", "fsdp", "deepspeed"]:
        """The strategy that is asked for."""
        if self.ddp is not None:
            return "ddp"
        return "deepspeed" if self.deepspeed is not None else "fsdp"


class WorkerResources(ApiModel):
    """What each worker is given."""

    cpu: Quantity = Field(default="1", description="CPUs per worker.")
    memory: Quantity = Field(default="2Gi", description="Host memory per worker.")
    gpu: int = Field(default=0, ge=0, le=1, description="GPUs per worker: one worker drives at most one GPU.")


class Workers(ApiModel):
    """How many Ray Train workers, each of what size. One worker is one rank."""

    count: int = Field(default=1, ge=1, le=16384, description="Number of workers: the world size.")
    resources: WorkerResources = Field(default_factory=WorkerResources, description="What each worker is given.")
    pool: Name | None = Field(
        default=None,
        description="The pool of nodes that all workers are to work in, by its name in the operator's configuration. "
        "Default: the first one that has room for them.",
    )


# --- driving the run ----------------------------------------------------------------------------------------------


class Checkpointing(ApiModel):
    """When to save the training state and how many to keep."""

    every_steps: int = Field(
        default=100,
        ge=1,
        le=100_000_000,
        description="At most so many optimizer steps are repeated after a failure. A checkpoint is begun every half of "
        "it and written next to training, which waits only where the write takes longer than the other half.",
    )
    keep_last: int = Field(default=2, ge=1, le=100, description="Committed checkpoints to keep.")


class Retry(ApiModel):
    """What to do when the run ends without the user's fault."""

    limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Further attempts after an infrastructure failure or running out of memory. A user error is "
        "never retried; preemption and suspension are not counted.",
    )
    backoff_seconds: int = Field(
        default=10, ge=0, le=3600, description="Pause before the second attempt; doubled for each further one."
    )


class TrainJobSpec(ApiModel):
    """What to train, on what, how, and with which resources."""

    model: TrainingModel = Field(description="Where training starts from.")
    tokenizer: Tokenizer | None = Field(
        default=None, description="Where the tokenizer comes from. Default: the model's own. A fresh model needs one."
    )
    data: Data = Field(description="What to train on and what to hold out.")
    training: Training = Field(description="The optimization.")
    strategy: Strategy = Field(default_factory=Strategy, description="How the model is spread over the workers.")
    workers: Workers = Field(default_factory=Workers, description="How many workers, each of what size.")
    checkpoint: Checkpointing = Field(
        default_factory=Checkpointing, description="When to save the training state and how many to keep."
    )
    retry: Retry = Field(default_factory=Retry, description="What to do when the run ends without the user's fault.")
    suspend: bool = Field(
        default=False,
        description="Stop the run and free everything; setting it back to false continues from the last checkpoint.",
    )
    queue: LabelName | None = Field(
        default=None,
        description="Kueue LocalQueue (of this namespace) that each attempt waits in until there is quota for it. "
        "Default: attempts start at once. May change only while suspend is true.",
    )
    priority_class_name: Name | None = Field(
        default=None, description="PriorityClass of the run. Higher starts first; then the older job."
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Fail the job when it has not finished this long after its first attempt was created: pauses and "
        "the time in a queue included.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="Delete the TrainJob object this long after its end. The model stays in storage.",
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.model.fresh) || has(self.tokenizer)",
            "a fresh model has no tokenizer of its own: set tokenizer.train, tokenizer.uri or tokenizer.hub",
        ),
        Rule(
            "!has(self.tokenizer) || !has(self.tokenizer.train) || has(self.model.fresh)",
            "tokenizer.train needs model.fresh: a model that has weights keeps the vocabulary it was trained with",
        ),
        Rule(
            "!has(self.model.fresh) || self.data.sequenceLength <= self.model.fresh.maxPositionEmbeddings",
            "data.sequenceLength must not be above model.fresh.maxPositionEmbeddings",
            ".data",
        ),
        Rule(
            "self.training.globalBatchSize % (self.training.microBatchSize * self.workers.count) == 0",
            "training.globalBatchSize must be divisible by training.microBatchSize x workers.count",
            ".training",
        ),
        Rule(
            "!has(self.strategy.fsdp) || !has(self.strategy.fsdp.shardDegree) "
            "|| self.workers.count % self.strategy.fsdp.shardDegree == 0",
            "strategy.fsdp.shardDegree must divide workers.count",
            ".strategy",
        ),
        Rule(
            "self.training.evalEverySteps == 0 || self.data.evalSources.size() > 0 || has(self.data.split)",
            "training.evalEverySteps needs data.evalSources or data.split",
            ".training",
        ),
        immutable("model"),
        immutable_optional("tokenizer"),
        immutable("data"),
        immutable("training"),
        immutable("strategy"),
        immutable("workers"),
        immutable_optional("priorityClassName"),
        # An attempt's RayJob is never written again, so the queue of one that runs cannot change; nor may it seem to.
        Rule(
            "oldSelf.suspend || (has(self.queue) == has(oldSelf.queue) "
            "&& (!has(self.queue) || self.queue == oldSelf.queue))",
            "queue may change only while suspend is true: suspend the job, change its queue, resume it",
        ),
    )


# --- status -------------------------------------------------------------------------------------------------------


class SkippedCheckpoint(ApiModel):
    """A checkpoint that was found damaged and passed over for the one before."""

    uri: LongText = Field(description="Where it is.")
    reason: LongText = Field(description="What is wrong with it, naming the file.")


class AttemptRecord(ApiModel):
    """One attempt, from its creation to its end."""

    number: int = Field(ge=1, description="Attempt number, from 1. The RayJob's name ends with it.")
    start_time: Timestamp = Field(description="When the attempt was created; with a queue, when it was given quota.")
    end_time: Timestamp | None = Field(default=None, description="When it ended.")
    outcome: (
        Literal["Succeeded", "UserError", "OutOfMemory", "Infrastructure", "Preempted", "Suspended", "DeadlineExceeded"]
        | None
    ) = Field(default=None, description="How it ended. Unset while it runs.")
    message: LongText | None = Field(default=None, description="Why it ended.")
    resumed_from_step: int | None = Field(default=None, ge=0, description="Checkpoint step that it continued from.")


class PlanStatus(ApiModel):
    """What really runs, as the run itself asserted after wrapping the model."""

    strategy: ShortText = Field(description="The strategy in words, e.g. fsdp(shard=2, bf16).")
    world_size: int = Field(ge=1, description="Ranks.")
    device: ShortText = Field(default="cpu", description="cpu, or the GPU's name.")
    backend: ShortText = Field(default="gloo", description="The communication backend: gloo or nccl.")
    parameters: int = Field(ge=0, description="Parameters of the whole model.")
    parameters_per_rank: int = Field(ge=0, description="Most parameters that one rank holds after sharding.")
    micro_batch_size: int = Field(ge=1, description="Sequences per forward pass of one worker.")
    accumulation_steps: int = Field(ge=1, description="Forward passes per optimizer step.")
    train_tokens: int = Field(default=0, ge=0, description="Tokens in the training data.")
    eval_tokens: int = Field(default=0, ge=0, description="Tokens in the held-out data.")
    data_digest: ShortText = Field(default="", description="Digest of the training and held-out token shards.")


class Progress(ApiModel):
    """Where the run is. Decimals are strings."""

    step: int = Field(ge=0, description="Optimizer steps done.")
    steps: int = Field(ge=0, description="Optimizer steps in all.")
    summary: ShortText = Field(default="", description="step/steps, for the printer column.")
    loss: ShortText | None = Field(default=None, description="Training loss of the last step (nats per token).")
    eval_loss: ShortText | None = Field(default=None, description="Last held-out loss (nats per token).")
    learning_rate: ShortText | None = Field(default=None, description="Learning rate of the last step.")
    tokens_per_second: int | None = Field(default=None, ge=0, description="Real tokens per second, over all workers.")
    eta_seconds: int | None = Field(default=None, ge=0, description="Estimated seconds until the last step.")
    updated_at: Timestamp | None = Field(default=None, description="When the run last said so.")


class CheckpointStatus(ApiModel):
    """The last committed checkpoint."""

    step: int = Field(ge=0, description="Optimizer steps that it holds.")
    uri: LongText = Field(description="Where it is.")
    time: Timestamp | None = Field(default=None, description="When it was committed.")


class TrainedModel(ApiModel):
    """The result: a Hugging Face model directory with safetensors weights and slipway.json (lineage)."""

    uri: LongText = Field(description="Where it is.")
    digest: ShortText = Field(description="Digest over the directory's files, as sha256:...")
    parameters: int = Field(default=0, ge=0, description="Number of parameters.")
    eval_loss: ShortText | None = Field(default=None, description="Held-out loss after training.")
    perplexity: ShortText | None = Field(default=None, description="Held-out perplexity after training.")
    initial_perplexity: ShortText | None = Field(default=None, description="Held-out perplexity before training.")


class Usage(ApiModel):
    """What the attempts have used, up to the end of the last one."""

    worker_seconds: int = Field(default=0, ge=0, description="Sum over attempts of run time x workers.")
    gpu_seconds: int = Field(default=0, ge=0, description="Sum over attempts of run time x GPUs.")
    cost: ShortText | None = Field(
        default=None,
        description="The workers' part of their nodes' price, as a decimal; the price is that of the attempt's end. "
        "Absent: the operator knows no price.",
    )
    currency: ShortText | None = Field(
        default=None, description="Of the cost. When the operator's changes, the cost begins anew."
    )
    energy_kwh: ShortText | None = Field(
        default=None, description="The workers' part of what their nodes draw at work, in kWh, as a decimal."
    )


class TrainJobStatus(ApiModel):
    """What the operator knows about the job."""

    observed_generation: int | None = Field(default=None, ge=0, description="The generation that status describes.")
    conditions: Annotated[list[Condition], map_list("type", max_items=16)] = Field(
        default_factory=list, description="Planned, Suspended, Running, Succeeded, Failed."
    )
    state: ShortText | None = Field(
        default=None, description="The conditions in one word, for the printer column. Programs read the conditions."
    )
    attempt: int | None = Field(default=None, ge=1, description="Number of the current attempt.")
    attempts: Annotated[list[AttemptRecord], map_list("number", max_items=128)] = Field(
        default_factory=list, description="Every attempt and how it ended; the oldest are dropped beyond 20."
    )
    ray_job_name: ShortText | None = Field(default=None, description="The RayJob of the current attempt.")
    start_time: Timestamp | None = Field(default=None, description="When the first attempt was created.")
    completion_time: Timestamp | None = Field(default=None, description="When the job succeeded or failed.")
    next_attempt_time: Timestamp | None = Field(default=None, description="When the next attempt may start.")
    storage: LongText | None = Field(default=None, description="Prefix of everything that the job stores.")
    plan: PlanStatus | None = Field(default=None, description="What really runs.")
    progress: Progress | None = Field(default=None, description="Where the run is.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="The last committed checkpoint.")
    skipped_checkpoints: Annotated[list[SkippedCheckpoint], Field(max_length=20)] = Field(
        default_factory=list, description="Damaged checkpoints that were passed over, newest first."
    )
    model: TrainedModel | None = Field(default=None, description="The trained model.")
    pool: ShortText | None = Field(default=None, description="The pool of nodes that the plan has found room in.")
    usage: Usage | None = Field(default=None, description="What the attempts have used.")


class TrainJob(ApiModel):
    """Trains a language model with Ray Train and keeps the result with its lineage."""

    api_version: Literal["slipway.dev/v1alpha1"] = "slipway.dev/v1alpha1"
    kind: Literal["TrainJob"] = "TrainJob"
    metadata: dict[str, Any]
    spec: TrainJobSpec = Field(description="What to train, on what, how, and with which resources.")
    status: TrainJobStatus | None = Field(default=None, description="What the operator knows about the job.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
            f"metadata.name must have at most {MAX_NAME_LENGTH} characters: the RayJob's name is derived from it",
        ),
    )
