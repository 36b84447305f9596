"""What a model's linear layers really hold: the evidence that a scheme was applied, not only asked for.

Quantization libraries skip what they do not know, silently; a model that was skipped looks well and loses nothing.
So every compressed model is looked at, layer by layer, after it was loaded from the files that will be served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slipway_jobs.compress.kernels.int8_linear import Int8Linear
from slipway_jobs.errors import UserError

# Words for what a layer's weight is stored as.
FLOAT = "float"
KERNEL_INT8 = "int8 (kernel)"
TORCHAO_INT8 = "int8 (torchao)"
BNB_INT8 = "int8 (bitsandbytes)"
NF4 = "nf4"
PACKED_INT4 = "packed int4"
INT8 = "int8"
FP8 = "fp8"


def linear_names(model: nn.Module) -> list[str]:
    """The linear layers that schemes apply to: every nn.Linear of a model in floating point but its output layer.

    Raises UserError SchemeUnsupported where there is none.
    """
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:
        raise UserError(
            "SchemeUnsupported",
            f"compression: {type(model).__name__} has no linear layer of a kind that can be compressed; "
            "serve it without compression",
        )
    return names


def storage_of(module: nn.Module) -> str:
    """What a linear layer's weight is stored as, from the tensors that it holds."""
    if isinstance(module, Int8Linear):
        return KERNEL_INT8
    packed = getattr(module, "weight_packed", None)
    if isinstance(packed, Tensor) and packed.dtype is torch.int32:
        return PACKED_INT4
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return f"unknown ({type(module).__name__})"
    if type(weight).__name__ == "Int8Tensor":
        return TORCHAO_INT8 if weight.qdata.dtype is torch.int8 else FLOAT  # type: ignore[attr-defined]
    if type(weight).__name__ == "Params4bit" and weight.dtype is torch.uint8:
        state = getattr(weight, "quant_state", None)
        return NF4 if state is not None and state.quant_type == "nf4" else "fp4"
    if type(weight).__name__ == "Int8Params" and weight.dtype is torch.int8:
        return BNB_INT8
    if weight.dtype is torch.float8_e4m3fn:
        return FP8
    return INT8 if weight.dtype is torch.int8 else FLOAT


def require_storage(model: nn.Module, names: list[str], expected: str) -> None:
    """Raise UserError SchemeNotApplied where a layer is not stored as the scheme says."""
    modules = dict(model.named_modules())
    found = {name: storage_of(modules[name]) for name in names}
    wrong = [f"{name} is {storage}" for name, storage in found.items() if storage != expected]
    if wrong:
        counts = ", ".join(f"{count} {storage}" for storage, count in sorted(Counter(found.values()).items()))
        raise UserError(
            "SchemeNotApplied",
            f"compression: all {len(names)} linear layers should hold {expected} weights, but the loaded model has "
            f"{counts} ({'; '.join(wrong[:3])}); choose another scheme for this architecture",
        )


# --- sparsity -----------------------------------------------------------------------------------------------------


def zero_fractions(model: nn.Module, names: list[str]) -> dict[str, float]:
    """The part of each layer's weights that is exactly zero."""
    modules = dict(model.named_modules())
    return {name: float((_weight(modules[name]) == 0).float().mean()) for name in names}


def require_sparsity(model: nn.Module, names: list[str], sparsity: float, pattern: str) -> float:
    """The part of all weights of these layers that is zero. Raises UserError SchemeNotApplied where a layer has less
    than asked for (less one in a hundred, for rounding), or breaks its n:m pattern."""
    modules = dict(model.named_modules())
    zeros = elements = 0
    for name in names:
        weight = _weight(modules[name])
        layer_zeros = int((weight == 0).sum())
        zeros, elements = zeros + layer_zeros, elements + weight.numel()
        if layer_zeros < (sparsity - 0.01) * weight.numel():
            raise UserError(
                "SchemeNotApplied",
                f"compression: {name} has {layer_zeros / weight.numel():.1%} zeros instead of {sparsity:.0%}",
            )
        if pattern != "unstructured" and not follows(weight, pattern):
            raise UserError("SchemeNotApplied", f"compression: {name} breaks the pattern {pattern}")
    return zeros / elements


def follows(weight: Tensor, pattern: str) -> bool:
    """Whether at least n of each m consecutive weights of every row [out, in] are zero."""
    n, m = (int(part) for part in pattern.split(":"))
    return bool(((weight.reshape(-1, m) == 0).sum(-1) >= n).all())


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


# --- memory -------------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """Storages that were counted: tied parameters and views count once."""

    pointers: set[int]

    def bytes_of(self, tensor: Tensor) -> int:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in self.pointers:
            return 0
        self.pointers.add(pointer)
        return tensor.untyped_storage().nbytes()


def memory_bytes(model: nn.Module) -> int:
    """Bytes that a model's weights occupy now: parameters, buffers, and what libraries keep beside them."""
    seen = _Seen(set())
    total = sum(seen.bytes_of(tensor) for tensor in _tensors(model))
    return total + sum(module.packed_bytes for module in model.modules() if isinstance(module, Int8Linear))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield from _plain(tensor)
        state = getattr(module, "state", None)  # bitsandbytes' Linear8bitLt moves its weight here at the first call
        for name in ("CB", "SCB"):
            tensor = getattr(state, name, None)
            if isinstance(tensor, Tensor):
                yield tensor


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a tensor subclass is made of, or the tensor itself."""
    if type(tensor).__name__ == "Params4bit":
        yield tensor.data
        yield from _quant_state(getattr(tensor, "quant_state", None))
        return
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _plain(getattr(tensor, name))


def _quant_state(state: object) -> Iterator[Tensor]:
    for value in vars(state).values() if state is not None else ():
        if isinstance(value, Tensor):
            yield value
        elif type(value) is type(state):
            yield from _quant_state(value)
