"""Compression: how a model is made smaller before it is served, and what that cost, measured before and after.

A scheme is asked for by name and never replaced by another: where the device that would run the result has no kernel
for it the run fails, unless `emulate` accepts the scheme's numbers without its savings. Sparse schemes change which
weights are zero and nothing else: the dense kernels of the engines here make no use of the zeros.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from slipway_api.base import (
    ApiModel,
    Decimal,
    LabelName,
    LongText,
    Rule,
    ShortText,
    Timestamp,
    exactly_one,
    map_list,
)
from slipway_api.conditions import Condition
from slipway_api.trainjob import AttemptRecord, DataSource, Retry, Usage, WorkerResources

SchemeName = Literal[
    "int8Dynamic",
    "int8WeightOnly",
    "nf4",
    "bnbInt8",
    "gptq",
    "awq",
    "smoothQuant",
    "fp8",
    "sparseGpt",
    "wanda",
    "magnitude",
]
SCHEMES: tuple[SchemeName, ...] = get_args(SchemeName)
CALIBRATED: tuple[SchemeName, ...] = ("gptq", "awq", "smoothQuant", "sparseGpt", "wanda")
"""The schemes that look at activations, and so need data."""


# --- schemes ------------------------------------------------------------------------------------------------------


class Int8Dynamic(ApiModel):
    """8-bit weights (one scale per output channel), activations rounded to 8 bit per token as they come (torchao)."""


class Int8WeightOnly(ApiModel):
    """8-bit weights (one scale per output channel), activations as they are (torchao)."""


class Nf4(ApiModel):
    """4-bit NormalFloat weights in blocks of 64 (bitsandbytes, arXiv:2305.14314)."""

    double_quantization: bool = Field(default=False, description="Quantize the blocks' scales as well.")


class BnbInt8(ApiModel):
    """LLM.int8(): 8-bit products, outlier features in 16 bit (bitsandbytes, arXiv:2208.07339)."""

    threshold: Decimal = Field(
        default="6.0", description="Features with an activation above this are computed in 16 bit. 0: none."
    )


GroupSize = Literal[32, 64, 128]


class Gptq(ApiModel):
    """4-bit weights (W4A16), each column's error compensated in those that follow (arXiv:2210.17323)."""

    group_size: GroupSize = Field(default=128, description="Consecutive weights that share a scale.")


class Awq(ApiModel):
    """4-bit weights (W4A16), channels scaled by their activations before rounding (arXiv:2306.00978)."""

    group_size: GroupSize = Field(default=128, description="Consecutive weights that share a scale and zero point.")


class SmoothQuant(ApiModel):
    """8-bit weights and activations (W8A8), outliers moved from activations to weights (arXiv:2211.10438)."""

    strength: Decimal = Field(default="0.8", description="Part of the difficulty that moves to the weights: alpha.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("double(self.strength) <= 1.0", "strength must not be above one", ".strength"),
    )


class Fp8(ApiModel):
    """8-bit float weights (E4M3, one scale per output channel), activations per token (arXiv:2209.05433)."""


class Sparsity(ApiModel):
    """Which weights become zero."""

    pattern: Literal["unstructured", "2:4", "4:8"] = Field(
        default="unstructured",
        description="unstructured: anywhere. n:m: at least n of each m consecutive weights are zero.",
    )
    sparsity: Decimal = Field(default="0.5", description="Part of the weights that becomes zero. n:m patterns: 0.5.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.sparsity) > 0.0 && double(self.sparsity) < 1.0",
            "sparsity must be above zero and below one",
            ".sparsity",
        ),
        Rule(
            "self.pattern == 'unstructured' || double(self.sparsity) == 0.5",
            "the patterns 2:4 and 4:8 have a sparsity of 0.5",
            ".sparsity",
        ),
    )


class SparseGpt(Sparsity):
    """Weights removed one column at a time, the rest adjusted to keep each layer's output (arXiv:2301.00774)."""


class Wanda(Sparsity):
    """Weights removed by |weight| x norm of the input, row by row, nothing adjusted (arXiv:2306.11695)."""


class Magnitude(Sparsity):
    """The smallest weights of each layer removed, nothing adjusted. Needs no calibration."""


# --- data ---------------------------------------------------------------------------------------------------------


class Calibration(ApiModel):
    """The texts whose activations a scheme looks at."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=32)] = Field(
        description="Documents like those that the model will see. Never the held-out ones."
    )
    samples: int = Field(default=128, ge=1, le=16384, description="Sequences that are drawn from them.")
    sequence_length: int = Field(default=512, ge=8, le=131072, description="Tokens of each sequence.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Decides which sequences are drawn.")


class HeldOut(ApiModel):
    """The texts on which the perplexity is measured, before and after, in the same windows."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=32)] = Field(description="Held-out documents.")
    sequence_length: int = Field(default=512, ge=8, le=131072, description="Tokens of each window.")
    max_tokens: int = Field(
        default=262_144, ge=16, le=2**31 - 1, description="The first so many tokens are used, if there are more."
    )


class Compression(ApiModel):
    """How to compress a model: exactly one scheme, and what may be lost by it."""

    int8_dynamic: Int8Dynamic | None = Field(default=None, description="8-bit weights and activations (torchao).")
    int8_weight_only: Int8WeightOnly | None = Field(default=None, description="8-bit weights (torchao).")
    nf4: Nf4 | None = Field(default=None, description="4-bit NormalFloat weights (bitsandbytes).")
    bnb_int8: BnbInt8 | None = Field(default=None, description="LLM.int8() (bitsandbytes).")
    gptq: Gptq | None = Field(default=None, description="4-bit weights, GPTQ (llm-compressor).")
    awq: Awq | None = Field(default=None, description="4-bit weights, AWQ (llm-compressor).")
    smooth_quant: SmoothQuant | None = Field(
        default=None, description="8-bit weights and activations, SmoothQuant (llm-compressor)."
    )
    fp8: Fp8 | None = Field(default=None, description="8-bit float weights and activations (llm-compressor).")
    sparse_gpt: SparseGpt | None = Field(default=None, description="Pruning, SparseGPT (llm-compressor).")
    wanda: Wanda | None = Field(default=None, description="Pruning, Wanda (llm-compressor).")
    magnitude: Magnitude | None = Field(default=None, description="Pruning by magnitude.")
    calibration: Calibration | None = Field(
        default=None,
        description="What the scheme is calibrated on: "
        + ", ".join(CALIBRATED)
        + " need it, the others have no use for it.",
    )
    held_out: HeldOut = Field(description="What the perplexity is measured on.")
    max_quality_loss: Decimal | None = Field(
        default=None,
        description='Refuse a result whose perplexity is above the model\'s by more than this part of it: "0.05" '
        "allows 5 %. Default: any result is taken, and the loss is in status.",
    )
    emulate: bool = Field(
        default=False,
        description="Accept a scheme that the device has no kernel for: the weights are expanded when the model is "
        "loaded, so files are smaller and the numbers are the scheme's, but memory and speed gain nothing. "
        "Default: such a scheme is refused.",
    )
    resources: WorkerResources | None = Field(
        default=None,
        description="What the compression is given; it holds the model twice, as it was and compressed, and 1Gi is "
        "added for Ray. Default: spec.replicas.resources, so that it is measured on what it will run on.",
    )
    retry: Retry = Field(default_factory=Retry, description="What to do when it ends without the user's fault.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one(*SCHEMES),
        Rule(
            "has(self.calibration) == (" + " || ".join(f"has(self.{name})" for name in CALIBRATED) + ")",
            ", ".join(CALIBRATED) + " need calibration, and the other schemes have no use for it",
        ),
    )

    @property
    def scheme(self) -> SchemeName:
        """The scheme that is asked for."""
        return self._chosen()[0]

    @property
    def settings(self) -> ApiModel:
        """The scheme's own settings."""
        return self._chosen()[1]

    def _chosen(self) -> tuple[SchemeName, ApiModel]:
        named = {field.alias: getattr(self, name) for name, field in type(self).model_fields.items()}
        return next((name, named[name]) for name in SCHEMES if named[name] is not None)


# --- status -------------------------------------------------------------------------------------------------------


class CompressionMeasure(ApiModel):
    """A model measured: once before, once after. Decimals are strings."""

    size_bytes: int = Field(ge=0, description="Bytes of its safetensors files.")
    memory_bytes: int = Field(ge=0, description="Bytes of its weights in memory, after the first forward pass.")
    perplexity: ShortText = Field(description="On the held-out texts.")
    tokens_per_second: ShortText = Field(description="Decoded one sequence at a time.")


class CompressionResult(ApiModel):
    """A compressed model, and what it gained and lost."""

    scheme: SchemeName = Field(description="The scheme.")
    uri: LongText = Field(description="The compressed model's directory.")
    digest: ShortText = Field(description="Digest over the directory's files, as sha256:...")
    base_digest: ShortText = Field(description="Digest of the model that it was made from.")
    scheme_digest: ShortText = Field(
        description="Digest of scheme, settings, calibration and held-out texts, library versions and device type."
    )
    execution: ShortText = Field(description="How the engine runs it: which kernel, or that weights are expanded.")
    device: ShortText = Field(default="", description="What it was measured on.")
    cached: bool = Field(default=False, description="It was there: the same had been made before.")
    before: CompressionMeasure = Field(description="The model that it was made from.")
    after: CompressionMeasure = Field(description="The compressed model.")
    quality_loss: ShortText = Field(description="Relative rise of the perplexity; negative: it fell.")
    speed_up: ShortText = Field(description="Tokens per second after, relative to before, in turns in one run.")
    sparsity: ShortText | None = Field(default=None, description="Part of the pruned layers' weights that is zero.")


class CompressionStatus(ApiModel):
    """One compression, as a run: its attempts, how it stands, and what came of it."""

    version: LabelName = Field(description="The version that it is for.")
    key: LabelName = Field(description="c- and a digest of the version and of all that spec.compression says.")
    scheme: SchemeName = Field(description="The scheme.")
    gpus: int = Field(default=0, ge=0, description="GPUs that it is given.")
    conditions: Annotated[list[Condition], map_list("type", max_items=16)] = Field(
        default_factory=list, description="Suspended, Running, Succeeded, Failed: as of any run."
    )
    observed_generation: int | None = Field(default=None, ge=0, description="The generation that this describes.")
    state: ShortText | None = Field(default=None, description="The conditions in one word, for people.")
    attempt: int | None = Field(
        default=None,
        ge=1,
        description="Number of the newest attempt. Counts on over all compressions of the Deployment.",
    )
    attempts: Annotated[list[AttemptRecord], map_list("number", max_items=128)] = Field(
        default_factory=list, description="Every attempt and how it ended; the oldest are dropped beyond 20."
    )
    ray_job_name: ShortText | None = Field(default=None, description="The RayJob of the newest attempt.")
    start_time: Timestamp | None = Field(default=None, description="When the first attempt was created.")
    completion_time: Timestamp | None = Field(default=None, description="When it succeeded or failed.")
    next_attempt_time: Timestamp | None = Field(default=None, description="When the next attempt may start.")
    storage: LongText | None = Field(default=None, description="Prefix of its logs.")
    pool: ShortText | None = Field(default=None, description="The pool of nodes that the plan has found room in.")
    usage: Usage | None = Field(default=None, description="What the attempts have used.")
    result: CompressionResult | None = Field(default=None, description="What it gained and lost.")
