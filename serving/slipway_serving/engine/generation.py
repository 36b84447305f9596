"""What is asked of the engine, and what comes back piece by piece. Data only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """One answer to write. `prompt` are tokens. Temperature 0 takes the likeliest token always."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int | None = None  # None: different every time
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None  # how many alternatives to tell for each token; None: nothing is told
    ignore_end: bool = False  # go on after the end-of-text token: for measurements
    entropy: bool = False  # tell it with the last piece
    loss: bool = False  # so too


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability (nats, of the model's own distribution) and the likeliest alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step or some add to an answer. `text` may be empty while a character or a stop text is incomplete."""

    text: str
    tokens: int  # generated so far
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None  # set on the last piece
    entropy: float | None = None  # of the last piece, if asked for: nats, the mean over the answer's tokens
    loss: float | None = None  # so too: of the prompt, nats per token (see signals.losses)

    def __add__(self, later: Piece) -> Piece:
        """Both as one."""
        return replace(later, text=self.text + later.text, logprobs=self.logprobs + later.logprobs)
