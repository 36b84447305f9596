"""The loss: next-token cross entropy, summed over real targets, with the output projection fused into it.

The logits are the largest tensor of a training step (tokens x vocabulary, in float32, several times over). They are
made, used and dropped here in blocks of tokens that fit the cache: on 2 CPU cores that is worth about a quarter of the
whole step (benchmarks/training_overhead.py), and on a GPU it is gigabytes.

It never normalises: the caller divides by the number of real targets in the whole global batch, which is what makes
the gradient independent of accumulation and world size.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of torch code knows
from torch import Tensor, nn

IGNORE = -100  # a label that is no target
# Logits per block, in elements: 16 MiB of float32 stays in the last-level cache; a GPU wants blocks that fill it.
_BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}

# Architectures whose logits are exactly lm_head(last_hidden_state). Others may scale or cap them: those keep their own
# forward pass.
PLAIN_HEADS = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "PhiForCausalLM",
        "Phi3ForCausalLM",
        "GPT2LMHeadModel",
        "GPTNeoXForCausalLM",
        "OPTForCausalLM",
        "SmolLM3ForCausalLM",
        "OlmoForCausalLM",
        "Olmo2ForCausalLM",
    }
)


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of `hidden @ weight.T` against `labels`, block by block, gradients included.

    hidden [tokens, width] in the compute dtype, weight [vocabulary, width] in its own, labels [tokens] int64 with
    IGNORE. Returns a float32 scalar. The gradients are made in the forward pass, while a block's logits are at
    hand, so the backward pass only scales them; weight gradients add up in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: int) -> Tensor:
        # Cast in here, not outside: autograd would round the float32 weight gradient to the dtype of what it was given.
        matrix = weight.to(hidden.dtype)
        learn = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if learn else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learn else None
        for start in range(0, hidden.shape[0], rows):
            block, target = hidden[start : start + rows], labels[start : start + rows]
            real = target != IGNORE
            index = target.clamp_min(0).unsqueeze(1)
            logits = (block @ matrix.t()).float()
            log_sum = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += ((log_sum - logits.gather(1, index)).squeeze(1) * real).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            # d loss / d logits = softmax - one-hot, and nothing where there is no target.
            slope = logits.sub_(log_sum).exp_()
            slope.scatter_add_(1, index, slope.new_full((1, 1), -1.0).expand_as(index))
            slope = slope.mul_(real.unsqueeze(1)).to(block.dtype)
            grad_hidden[start : start + rows] = slope @ matrix
            if block.dtype == torch.float32:
                grad_weight.addmm_(slope.t(), block)
            else:
                grad_weight += slope.t() @ block
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (scale,) = upstream
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None, None


class LossModel(nn.Module):
    """A causal language model together with its loss: what a strategy wraps, so that its hooks see one forward pass.

    `compute_dtype` asks for autocast to that dtype (ddp, and everything on weights that stay float32); None leaves
    the dtypes to the strategy. `fused=False` calls the output projection as a module, for strategies whose hooks
    gather a module's weights only while it runs.
    """

    lm: Any  # a transformers model: its methods are not typed

    def __init__(self, lm: nn.Module, *, compute_dtype: torch.dtype | None, fused: bool = True) -> None:
        super().__init__()
        self.lm = lm
        self.compute_dtype = compute_dtype
        self.fused = fused
        self.plain_head = type(lm).__name__ in PLAIN_HEADS and self.lm.get_output_embeddings().bias is None

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss in nats (float32 scalar). input_ids and labels [batch, length] int64; the shift happens in here.

        labels[:, i] is the token at place i, predicted from the places before; labels[:, 0] is never a target.
        """
        device = input_ids.device.type
        # Without a dtype of its own it must not even mention autocast: enabled=False would switch off the strategy's.
        with torch.autocast(device, dtype=self.compute_dtype) if self.compute_dtype else contextlib.nullcontext():
            if not self.plain_head:
                logits = self.lm(input_ids=input_ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
                return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")
            hidden = self.lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            hidden, labels = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            head = self.lm.get_output_embeddings()
            rows = max(64, _BLOCK_ELEMENTS.get(device, 1 << 22) // head.out_features)
            if not self.fused:
                blocks = zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
                losses = [
                    F.cross_entropy(head(block).float(), target, ignore_index=IGNORE, reduction="sum")
                    for block, target in blocks
                ]
                return torch.stack(losses).sum()
            dtype = self.compute_dtype or hidden.dtype
            with torch.autocast(device, enabled=False):
                total: Tensor = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
                    hidden.to(dtype), head.weight, labels, rows
                )
            return total
