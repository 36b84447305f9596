"""Requests of the OpenAI API, as far as they are honoured (https://platform.openai.com/docs/api-reference).

A field that is not here is refused by name: an option that is silently ignored gives answers that nobody can explain.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MAX_STOPS = 8


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)

    model: str = ""
    user: str | None = Field(default=None, max_length=256)  # a name for the client's own records


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class _Generation(_Request):
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)  # not OpenAI's, but everybody's
    n: int = Field(default=1, ge=1, le=16)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default_factory=list, max_length=_MAX_STOPS)
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value


class Completion(_Generation):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False


class Message(BaseModel):
    """One turn of a conversation; the content as a text, or as parts that are texts."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = Field(default=None, max_length=256)

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
            return "".join(str(part.get("text", "")) for part in value)
        return value


class ChatCompletion(_Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)  # the newer name of max_tokens
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class Embeddings(_Request):
    """POST /v1/embeddings."""

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"


class Feedback(BaseModel):
    """POST /v1/feedback: what somebody thinks of an answer, by the id of its request."""

    model_config = ConfigDict(extra="forbid")
    request_id: str = Field(min_length=1, max_length=128)
    rating: float | None = Field(default=None, ge=-1, le=1)  # below 0: bad
    label: str | None = Field(default=None, min_length=1, max_length=256)
    corrected: str | None = Field(default=None, min_length=1, max_length=65536)
