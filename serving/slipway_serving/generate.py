"""Looks at a trained model: loads a model directory and streams a continuation of a prompt, in this process.

It takes safetensors only, runs no code from the directory and contacts no hub. It batches nothing and serves nobody:
that is the work of an engine behind Ray Serve.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slipway_jobs.lean_transformers import lean_transformers

lean_transformers()  # before the next line, or it is too late

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.utils import logging as transformers_logging  # noqa: E402

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Sampling draws from torch's global generator, so two streams of one process take turns.
_generating = threading.Lock()


class GenerateError(Exception):
    """Nothing can be generated; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ModelDirectoryError(GenerateError):
    """The directory does not hold a model that can be loaded safely."""


class PromptError(GenerateError):
    """The prompt is empty, or leaves no room in the model's context."""


class OptionError(GenerateError):
    """A sampling option has no meaning."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue a text. Raises OptionError for values without meaning."""

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50  # 0: all
    top_p: float = 1.0
    seed: int = 0
    greedy: bool = False  # the likeliest token each time; the three above and the seed then mean nothing

    def __post_init__(self) -> None:
        wrong = [
            ("max_new_tokens must be at least 1", self.max_new_tokens < 1),
            ("temperature must be above 0; for the likeliest token each time use greedy", not self.temperature > 0),
            ("top_k must not be negative", self.top_k < 0),
            ("top_p must be above 0 and not above 1", not 0 < self.top_p <= 1),
            ("seed must be between 0 and 2^63 - 1", not 0 <= self.seed < 2**63),
        ]
        for message, is_wrong in wrong:
            if is_wrong:
                raise OptionError(message)

    def sampling(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`."""
        if self.greedy:
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends the generation when its reader has gone."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked.is_set(), dtype=torch.bool, device=input_ids.device)


class Generator:
    """A loaded model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, source: Path) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.source = source

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and continuation may have together; None where the model states no limit."""
        limit = getattr(self._model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def stream(self, prompt: str, options: GenerationOptions | None = None) -> Iterator[str]:
        """Yields the continuation (without the prompt) in pieces, as it is made, until the end token or the limit.

        The same options and prompt give the same text on the same machine. Raises PromptError before the first piece;
        closing the iterator stops the work.
        """
        options = options or GenerationOptions()
        tokens = self._encode(prompt, options.max_new_tokens)
        return self._stream(tokens, options)

    def _encode(self, prompt: str, new_tokens: int) -> Any:
        if not prompt:
            raise PromptError("the prompt is empty; a model continues a text")
        encoded = self._tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        length, limit = int(encoded["input_ids"].shape[1]), self.context_length
        if length == 0:
            raise PromptError("the prompt has no token that the tokenizer knows")
        if limit is not None and length + new_tokens > limit:
            room = limit - length
            if room < 1:
                raise PromptError(f"the prompt has {length} tokens, the model's context {limit}; shorten the prompt")
            raise PromptError(
                f"the prompt has {length} tokens and the model's context {limit}: there is room for {room} more, "
                f"not for {new_tokens}",
                hint=f"--max-new-tokens {room}, or a shorter prompt",
            )
        return encoded.to(self._model.device)

    def _stream(self, tokens: Any, options: GenerationOptions) -> Iterator[str]:
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _Stop()
        failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        arguments = {
            **tokens,
            **options.sampling(),
            "max_new_tokens": options.max_new_tokens,
            "use_cache": True,
            "pad_token_id": self._pad_token(),
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([stop]),
        }
        worker = threading.Thread(
            target=self._generate, args=(arguments, options.seed, streamer, failures), name="generate", daemon=True
        )
        worker.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            stop.asked.set()
            worker.join()
        if not failures.empty():
            failure = failures.get()
            raise GenerateError(f"generating failed: {failure}") from failure

    def _generate(
        self,
        arguments: dict[str, Any],
        seed: int,
        streamer: TextIteratorStreamer,
        failures: queue.SimpleQueue[BaseException],
    ) -> None:
        try:
            with _generating, torch.inference_mode(), torch.random.fork_rng():
                torch.manual_seed(seed)
                self._model.generate(**arguments)
        except BaseException as failure:  # it is raised again by the thread that reads
            failures.put(failure)
            with contextlib.suppress(Exception):
                streamer.end()  # or the reader would wait for ever

    def _pad_token(self) -> int | None:
        for token in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return None


def load(model_dir: str | Path, *, device: str | None = None) -> Generator:
    """Loads a Hugging Face model directory with safetensors weights and a tokenizer.

    `device` is a torch device; default: a GPU where there is one. Raises ModelDirectoryError naming what is missing.
    """
    directory = Path(model_dir)
    _inspect(directory)
    _quieten()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # bfloat16 is what a GPU computes fast; on a CPU float32 is, and it is what the weights were trained in.
    dtype = torch.float32 if chosen == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError ...
        raise ModelDirectoryError(f"{directory} cannot be loaded: {error}") from error
    return Generator(model.to(chosen).eval(), tokenizer, directory)


def _inspect(directory: Path) -> None:
    """Finds what is missing before anything heavy begins."""
    if not directory.is_dir():
        raise ModelDirectoryError(f"there is no directory {directory}")
    names = {path.name for path in directory.iterdir()}
    if "config.json" not in names:
        raise ModelDirectoryError(f"{directory} is no model directory: it has no config.json")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        found = f"; {', '.join(pickled)} can run code when loaded and is never read" if pickled else ""
        raise ModelDirectoryError(f"{directory} has no safetensors weights{found}")
    if not any(name in names for name in _TOKENIZER_FILES):
        raise ModelDirectoryError(f"{directory} has no tokenizer ({', '.join(_TOKENIZER_FILES)})")


def _quieten() -> None:
    """What transformers says about loading would stand in the middle of the text."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
