"""How a model is named, everywhere the same way: exactly one of hub, uri, trainJob (or, for training, fresh)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from slipway_api.base import ApiModel, Name, Rule, Uri, exactly_one


class HubModel(ApiModel):
    """A model in a Hugging Face hub repository, pinned to a revision."""

    repo: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] = (
        Field(description="Repository, as owner/name.")
    )
    revision: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w-]+([./][\w-]+)*$")] = Field(
        default="main", description="Branch, tag or commit. Pin a commit for a run that can be repeated."
    )


class TrainJobReference(ApiModel):
    """The model that another TrainJob of the same namespace has trained."""

    name: Name = Field(description="Name of the TrainJob. The job waits until that one has succeeded.")


class ModelReference(ApiModel):
    """A trained model."""

    uri: Uri | None = Field(
        default=None,
        description="A Hugging Face model directory with safetensors weights, at a path or any fsspec URI.",
    )
    hub: HubModel | None = Field(default=None, description="A Hugging Face hub repository with safetensors weights.")
    train_job: TrainJobReference | None = Field(default=None, description="The result of a TrainJob.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (exactly_one("uri", "hub", "trainJob"),)


class FreshModel(ApiModel):
    """A decoder-only transformer with random weights (Llama's shape: RMSNorm, rotary positions, SwiGLU)."""

    architecture: Literal["llama"] = Field(default="llama", description="The architecture to build.")
    hidden_size: int = Field(ge=8, le=65536, description="Width of the residual stream.")
    layers: int = Field(ge=1, le=512, description="Number of transformer blocks.")
    heads: int = Field(ge=1, le=1024, description="Number of attention heads.")
    kv_heads: int | None = Field(
        default=None, ge=1, le=1024, description="Number of key/value heads (grouped-query attention). Default: heads."
    )
    intermediate_size: int | None = Field(
        default=None,
        ge=8,
        le=1048576,
        description="Width of the feed-forward block. Default: 8/3 of hiddenSize, rounded up to a multiple of 32.",
    )
    max_position_embeddings: int = Field(
        default=2048, ge=16, le=1048576, description="Longest sequence that the model is built for, in tokens."
    )
    tie_embeddings: bool = Field(default=True, description="Share the input embedding with the output projection.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.hiddenSize % self.heads == 0", "hiddenSize must be divisible by heads", ".hiddenSize"),
        Rule(
            "(self.hiddenSize / self.heads) % 2 == 0",
            "hiddenSize / heads must be even: rotary positions rotate pairs",
            ".hiddenSize",
        ),
        Rule("!has(self.kvHeads) || self.heads % self.kvHeads == 0", "heads must be divisible by kvHeads", ".heads"),
    )

    @property
    def resolved_kv_heads(self) -> int:
        """Key/value heads after the default."""
        return self.kv_heads or self.heads

    @property
    def resolved_intermediate_size(self) -> int:
        """Feed-forward width after the default."""
        return self.intermediate_size or -(-8 * self.hidden_size // 3 // 32) * 32

    def parameter_count(self, vocab_size: int) -> int:
        """Exact number of parameters for a vocabulary of that size."""
        head_dim = self.hidden_size // self.heads
        attention = self.hidden_size * head_dim * (2 * self.heads + 2 * self.resolved_kv_heads)
        feed_forward = 3 * self.hidden_size * self.resolved_intermediate_size
        norms = 2 * self.hidden_size
        embeddings = vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.layers * (attention + feed_forward + norms) + self.hidden_size + embeddings


class TrainingModel(ApiModel):
    """Where training starts from."""

    fresh: FreshModel | None = Field(default=None, description="Start from random weights.")
    uri: Uri | None = Field(
        default=None,
        description="A Hugging Face model directory with safetensors weights, at a path or any fsspec URI.",
    )
    hub: HubModel | None = Field(default=None, description="A Hugging Face hub repository with safetensors weights.")
    train_job: TrainJobReference | None = Field(default=None, description="The result of another TrainJob.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (exactly_one("fresh", "uri", "hub", "trainJob"),)
