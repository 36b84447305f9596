"""A causal language model as the engine uses it: prompts in, then one token a step for every row.

Models whose layers hand keys and values to a cache and take any mask and positions can be served; the others are
refused by name when they are loaded, not when the first request comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipway_api.serving import EngineConfig
from slipway_jobs.compress.loading import open_compressed, read_lineage
from slipway_jobs.errors import InfrastructureError, JobError, OutOfMemory, UserError, is_out_of_memory
from slipway_jobs.evaluate.scoring.model import ScoringModel
from slipway_jobs.model_files import directory_digest, model_directory
from slipway_serving.engine.rows import RowCache
from slipway_serving.engine.signals import losses

# Plain attention over a cache, a 4-dimensional mask, a linear head without anything after it.
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass
class ServedModel:
    """Weights and tokenizer on a device."""

    lm: Any
    tokenizer: Any
    device: torch.device
    max_context: int
    execution: str = ""
    """How a compressed model runs: which kernel, or that its weights are expanded."""
    compiled: Any = None
    """The decoder for decoding steps, if it is another."""

    @classmethod
    def load(cls, config: EngineConfig, *, gpu: bool) -> ServedModel:
        """Raises UserError ModelDigestMismatch, UnsupportedArchitecture, and what loading raises; OutOfMemory;
        InfrastructureError ModelDamaged where a compressed model is not what compression made."""
        with model_directory(config.model, field="model") as (directory, where):
            _check_digest(directory, where, config)
            try:
                if config.compression:
                    served = cls._compressed(directory, where, config, gpu=gpu)
                else:
                    served = cls._plain(directory, where, config, gpu=gpu)
            except JobError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise OutOfMemory("OutOfMemory", f"model: {where} does not fit into memory: {error}") from error
                raise
        served._check_architecture(where)
        if config.compile:
            # Rows and places change with every step: one program for all of them.
            served.compiled = torch.compile(served.lm.get_decoder(), dynamic=True)
        return served

    @classmethod
    def _plain(cls, directory: Path, where: str, config: EngineConfig, *, gpu: bool) -> ServedModel:
        loaded = ScoringModel.load(directory, where, batch_tokens=1, precision=config.precision, gpu=gpu)
        return cls(loaded.lm, loaded.tokenizer, loaded.device, min(config.max_context_tokens, loaded.max_length))

    @classmethod
    def _compressed(cls, directory: Path, where: str, config: EngineConfig, *, gpu: bool) -> ServedModel:
        """Its digest has been compared; that every layer is what the scheme makes is looked at after loading."""
        made = read_lineage(directory)["compression"]["scheme"]
        if made != config.compression:
            raise UserError("NotCompressed", f"model: {where} was compressed by {made}, not by {config.compression}")
        device = torch.device("cuda" if gpu else "cpu")  # a replica that asked for no GPU must not take one
        loaded, tokenizer = open_compressed(directory, device, verify=not config.digest)
        longest = min(config.max_context_tokens, int(loaded.lm.config.max_position_embeddings))
        return cls(loaded.lm, tokenizer, device, longest, loaded.applied.execution)

    def _check_architecture(self, where: str) -> None:
        name, sliding = type(self.lm).__name__, getattr(self.lm.config, "sliding_window", None)
        if name not in SUPPORTED or sliding:
            window = " with a sliding window" if sliding else ""
            raise UserError(
                "UnsupportedArchitecture", f"model: {where} is a {name}{window}; served are {', '.join(SUPPORTED)}"
            )

    @property
    def vocabulary(self) -> int:
        """Size of the output layer."""
        return int(self.lm.get_output_embeddings().weight.shape[0])

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        config = getattr(self.lm, "generation_config", None)
        found = [self.tokenizer.eos_token_id]
        told = getattr(config, "eos_token_id", None)
        found += told if isinstance(told, list) else [told]
        return frozenset(int(token) for token in found if token is not None)

    @torch.inference_mode()
    def prefill(self, prompts: list[tuple[int, ...]], cache: RowCache) -> tuple[Tensor, Tensor]:
        """Read new prompts into new rows of the cache; the logits after each, float32 [prompts, vocabulary], and the
        hidden states of all, [prompts, longest, width] (for `losses`)."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        cache.begin_prefill(lengths)
        tokens = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        # Right-padded: what is behind a prompt cannot reach it.
        mask = torch.ones((longest, longest), dtype=torch.bool, device=self.device).tril()
        hidden = self._forward(tokens, torch.arange(longest)[None], mask[None, None], cache)
        last = torch.tensor(lengths, device=self.device) - 1
        return self._logits(hidden[torch.arange(len(prompts), device=self.device), last]), hidden

    @torch.inference_mode()
    def losses(self, hidden: Tensor, prompts: Mapping[int, tuple[int, ...]]) -> dict[int, float]:
        """Of prompts by their row in `hidden`, which `prefill` gave (signals.losses)."""
        return losses(hidden, prompts, self._logits, self.vocabulary)

    @torch.inference_mode()
    def step(self, tokens: list[int], cache: RowCache) -> Tensor:
        """Add a token to each row; the logits after it, float32 [rows, vocabulary]."""
        at = torch.tensor(cache.lengths)
        cache.begin_step(self.device)
        longest = max(cache.lengths)
        mask = torch.arange(longest, device=self.device)[None] <= at.to(self.device)[:, None]
        decoder = self.lm.get_decoder() if self.compiled is None else self.compiled
        hidden = self._forward(torch.tensor(tokens)[:, None], at[:, None], mask[:, None, None], cache, decoder)
        return self._logits(hidden[:, 0])

    @torch.inference_mode()
    def embed(self, tokens: list[int]) -> list[float]:
        """The mean of the last hidden states, of length 1 (L2)."""
        longest = len(tokens)
        mask = torch.ones((longest, longest), dtype=torch.bool, device=self.device).tril()
        hidden = self._forward(torch.tensor([tokens]), torch.arange(longest)[None], mask[None, None], None)
        mean = hidden[0].float().mean(0)
        return [float(value) for value in torch.nn.functional.normalize(mean, dim=0)]

    def _forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: RowCache | None, decoder: Any = None
    ) -> Tensor:
        output = (self.lm.get_decoder() if decoder is None else decoder)(
            input_ids=tokens.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm.get_output_embeddings()(hidden).float()
        return logits


def _check_digest(directory: Path, where: str, config: EngineConfig) -> None:
    digest = directory_digest(directory) if config.digest else ""
    if digest == config.digest:
        return
    found = f"the files of {where} are {digest}, asked for was {config.digest}"
    if config.compression:
        raise InfrastructureError("ModelDamaged", f"model: {found}: what compression made has been changed or damaged")
    raise UserError("ModelDigestMismatch", f"model: {found}: they have changed since")
