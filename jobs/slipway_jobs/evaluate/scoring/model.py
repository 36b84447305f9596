"""A model that scores: weights, tokenizer, device, and the one primitive that likelihoods are made of.

The primitive is `log_probabilities`: of chosen tokens, each given everything before it. Logits are the largest tensor
of a forward pass, so they are made only where a token is scored, in blocks that fit the cache, and dropped at once.

Rows are padded on the right and no mask is given: in a causal model nothing to the right can reach a real token, and
without a mask the attention kernels take their fast path.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slipway_jobs.cpu_bf16 import fast_bf16_on_cpu
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.scoring.batches import plan
from slipway_jobs.lean_transformers import lean_transformers
from slipway_jobs.train.loss import PLAIN_HEADS
from slipway_jobs.train.model import load_causal_lm

# Logits per block, in elements: see slipway_jobs.train.loss.
_BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
_DEFAULT_LENGTH = 2048
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # as lm_eval looks for it
# Architectures that take any 4-dimensional mask and any positions: several continuations can share one prompt.
_SHARED_PROMPT = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"}
)


@dataclass(frozen=True)
class Scored:
    """A token sequence of which the tokens from `first` on are scored; first >= 1, for the first has no context."""

    tokens: Sequence[int]
    first: int


@dataclass(frozen=True)
class TokenScores:
    """Of the scored tokens of one sequence: log-probabilities in nats (float64), and whether each was the likeliest."""

    log_probabilities: Tensor
    greedy: bool

    @property
    def total(self) -> float:
        """Sum of the log-probabilities."""
        return float(self.log_probabilities.sum())


class ScoringModel:
    """A causal language model in evaluation mode with its tokenizer, on one device."""

    def __init__(self, lm: Any, tokenizer: Any, *, batch_tokens: int, device: torch.device) -> None:
        self.lm = lm.to(device).eval()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.device = device
        name = type(lm).__name__
        head = lm.get_output_embeddings()
        self._plain_head = name in PLAIN_HEADS and head is not None and getattr(head, "bias", None) is None
        self._rows = max(64, _BLOCK_ELEMENTS.get(device.type, 1 << 22) // self.vocabulary)
        sliding = getattr(lm.config, "sliding_window", None)
        self.shares_prompts = self._plain_head and name in _SHARED_PROMPT and not sliding

    @classmethod
    def load(
        cls,
        directory: Path,
        where: str,
        *,
        batch_tokens: int,
        precision: Literal["fp32", "bf16"] = "fp32",
        gpu: bool = False,
        field: str = "model",
    ) -> ScoringModel:
        """From a Hugging Face directory. Raises UserError TokenizerNotFound, TokenizerUnusable, VocabularyMismatch,
        and what `load_causal_lm` raises."""
        lm = load_causal_lm(directory, where, field=field)
        tokenizer = _load_tokenizer(directory, where, field)
        _check_fit(lm, tokenizer, where, field)
        if precision == "bf16":
            fast_bf16_on_cpu()
            lm = lm.to(torch.bfloat16)
        device = torch.device("cuda" if gpu else "cpu")  # a job that asked for no GPU must not take one
        return cls(lm, tokenizer, batch_tokens=batch_tokens, device=device)

    @cached_property
    def vocabulary(self) -> int:
        """Size of the output layer."""
        return int(self.lm.get_output_embeddings().weight.shape[0])

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.lm.parameters())

    @cached_property
    def max_length(self) -> int:
        """Longest sequence that the model is built for, in tokens."""
        for name in _LENGTHS:
            if isinstance(value := getattr(self.lm.config, name, None), int):
                return value
        limit = int(getattr(self.tokenizer, "model_max_length", _DEFAULT_LENGTH))
        return limit if limit < 1 << 40 else _DEFAULT_LENGTH

    @cached_property
    def prefix_token(self) -> int:
        """What stands before a text that nothing precedes: the beginning-of-text token, else the end-of-text token."""
        tokenizer = self.tokenizer
        found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if found is None:
            raise UserError(
                "TokenizerUnusable", "model: the tokenizer names neither bos_token nor eos_token; add one to its config"
            )
        return int(found)

    @cached_property
    def pad_token(self) -> int:
        """Any token of the vocabulary does: padding is never looked at."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None and pad < self.vocabulary else 0

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the forward pass can be told the position of each token."""
        return "position_ids" in inspect.signature(self.lm.forward).parameters

    # --- the primitive --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def log_probabilities(self, sequences: Sequence[Scored], *, greedy: bool = False) -> list[TokenScores]:
        """Scores of every sequence, in order. `greedy` asks for the flag; without it the flag is False.

        No sequence may be longer than max_length + 1: its last token is predicted, never read.
        """
        results: list[TokenScores | None] = [None] * len(sequences)
        for batch in plan([len(one.tokens) - 1 for one in sequences], self.batch_tokens):
            for place, result in zip(batch, self._batch([sequences[place] for place in batch], greedy), strict=True):
                results[place] = result
        return [result for result in results if result is not None]

    def _batch(self, sequences: Sequence[Scored], greedy: bool) -> list[TokenScores]:
        length = max(len(one.tokens) for one in sequences) - 1
        inputs = torch.full((len(sequences), length), self.pad_token, dtype=torch.long)
        places, targets = [], []
        for row, one in enumerate(sequences):
            tokens = torch.tensor(one.tokens, dtype=torch.long)
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            places.append(torch.arange(one.first - 1, len(tokens) - 1) + row * length)
            targets.append(tokens[one.first :])
        values, likeliest = self.pick(
            torch.cat(places), torch.cat(targets), greedy, input_ids=inputs.to(self.device), use_cache=False
        )
        counts = [len(target) for target in targets]
        return [
            TokenScores(value, bool(flag.all()))
            for value, flag in zip(torch.split(values, counts), torch.split(likeliest, counts), strict=True)
        ]

    @torch.inference_mode()
    def pick(self, places: Tensor, targets: Tensor, greedy: bool, **forward: Any) -> tuple[Tensor, Tensor]:
        """One forward pass, and the log-probability of `targets[i]` at the flattened place `places[i]`.

        Returns float64 and bool of the length of `places`, on the CPU; the second is False throughout unless `greedy`.
        """
        if self._plain_head:
            hidden = self.lm.base_model(**forward).last_hidden_state.flatten(0, 1)
            weight = self.lm.get_output_embeddings().weight
        else:  # the architecture scales or caps its logits: its own forward pass makes them
            hidden, weight = self.lm(**forward).logits.flatten(0, 1), None
        places, targets = places.to(self.device), targets.to(self.device)
        values = torch.empty(len(places), dtype=torch.float64)
        likeliest = torch.zeros(len(places), dtype=torch.bool)
        for start in range(0, len(places), self._rows):
            part = slice(start, start + self._rows)
            block = hidden[places[part]]
            logits = (block if weight is None else block @ weight.t()).float()
            target = targets[part].unsqueeze(1)
            chosen = logits.gather(1, target)
            values[part] = (chosen - logits.logsumexp(dim=-1, keepdim=True)).squeeze(1).double().cpu()
            if greedy:
                likeliest[part] = (logits.argmax(dim=-1) == target.squeeze(1)).cpu()
        return values, likeliest

    # --- text -----------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Tokens of a prompt, as lm_eval makes them: with the tokenizer's own special tokens (`special=None`), unless
        the text begins with the beginning-of-text token already."""
        if special is None and (bos := getattr(self.tokenizer, "bos_token", None)) and text.startswith(bos):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        return [int(token) for token in self.tokenizer.encode(text, **options)]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what continues it, split as lm_eval does.

        Both are encoded together and cut where the context's own encoding ends; spaces at the end of the context belong
        to the continuation. An empty context is the prefix token.
        """
        if not context:
            tokens = self.encode(continuation, special=False)
            if tokens and tokens[0] == self.prefix_token:
                return tokens[:1], tokens[1:]
            return [self.prefix_token], tokens
        bare = context.rstrip()
        if bare and len(bare) < len(context):
            context, continuation = bare, context[len(bare) :] + continuation
        whole = self.encode(context + continuation)
        before = self.encode(context)
        return before, whole[len(before) :]


def _load_tokenizer(directory: Path, where: str, field: str) -> Any:
    lean_transformers()
    from transformers import AutoTokenizer  # noqa: PLC0415

    names = {path.name for path in directory.iterdir()}
    if not names & {"tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model"}:
        raise UserError(
            "TokenizerNotFound",
            f"{field}: {where} holds no tokenizer.json (nor another vocabulary); save the model's tokenizer beside it",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise UserError(
            "TokenizerUnusable",
            f"{field}: transformers cannot load the tokenizer of {where} ({type(error).__name__}: {str(error)[:300]})",
        ) from error
    return tokenizer


def _check_fit(lm: Any, tokenizer: Any, where: str, field: str) -> None:
    needed = max(tokenizer.get_vocab().values()) + 1
    there = lm.get_input_embeddings().weight.shape[0]
    if needed > there:
        raise UserError(
            "VocabularyMismatch",
            f"{field}: the tokenizer in {where} has {needed} entries, the model's embedding only {there}; "
            "put the tokenizer there that the model was trained with",
        )
