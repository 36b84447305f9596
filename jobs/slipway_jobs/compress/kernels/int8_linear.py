"""A linear layer with 8-bit weights for x86 CPUs, on FBGEMM's integer kernels.

torchao's eager int8 matmul on a CPU without VNNI is several times slower than fp32, so there the same quantized weights
are run by this layer: y = s_x (x_q . w_q) s_w, with w_q int8 per output channel as stored, and x_q rounded per token.
The products are exact integers, so a row's result does not depend on the other rows of the batch.

Activations have 7 bits (-63..63): FBGEMM's AVX2 kernel adds two u8 x s8 products in 16 bits, and with 8 bits that sum
saturates. All x86 CPUs get the same 7 bits, so that a perplexity measured on one holds on another.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

_LEVELS = 63
_ZERO_POINT = 64  # x_q + 64 is in 1..127: unsigned, and seven bits
_TINY = 1e-30  # a row of zeros must not be divided by zero

# Names of layers that read the same tensor where one module has all of them: attention's and the gated MLP's.
_READ_THE_SAME = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

NAME = "fbgemm int8, 7-bit activations per token"


def available(device: torch.device) -> bool:
    """Whether this machine can run it."""
    return device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines


class Quantized(NamedTuple):
    """A layer's weights: `weight` [out, in] int8, `scale` [out] or [out, 1] float, `bias` [out] or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


class Int8Linear(nn.Module):
    """One layer; it keeps only a packed copy of its weights (one byte each), its own or its part of a shared one.

    Input [..., in] and output [..., out] have the same floating dtype. It cannot be saved: save the model before.
    """

    def __init__(self, layer: Quantized, shared: tuple[_Product, int] | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.register_buffer("scale", layer.scale.detach().reshape(-1).float().clone(), persistent=False)
        self.bias: Tensor | None
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone(), persistent=False)
        self._product, self._part = shared or (_Product([layer]), 0)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights, which are no parameter or buffer."""
        return int(self.in_features * self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        y = self._product.part(x, self._part)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def install(model: nn.Module, layers: dict[str, Quantized]) -> None:
    """Put an Int8Linear in the place of each named layer; those of one module that read the same input share a product.

    A decoding step is a chain of small products, each with the fixed cost of a call: seven become four in a block.
    """
    left = dict(layers)
    for name in layers:
        for together in _READ_THE_SAME:
            parent, _, first = name.rpartition(".")
            names = [f"{parent}.{own}" for own in together]
            if first == together[0] and all(other in left for other in names):
                product = _Product([left[other] for other in names])
                for part, other in enumerate(names):
                    model.set_submodule(other, Int8Linear(left.pop(other), (product, part)))
    for name, layer in left.items():
        model.set_submodule(name, Int8Linear(layer))


class _Product:
    """The weights of layers that read the same input, packed as one matrix.

    The first layer that comes with an input has all computed; the others, called with that same tensor, take their
    parts. A layer that comes with another tensor, or again, has it computed for itself: sharing changes no result.
    """

    def __init__(self, layers: list[Quantized]) -> None:
        for layer in layers:
            if layer.weight.dtype is not torch.int8:
                raise TypeError(f"not 8-bit weights: {layer.weight.dtype}")
        self._sizes = [len(layer.weight) for layer in layers]
        weight = torch.cat([layer.weight for layer in layers]).contiguous()
        scale = torch.cat([layer.scale.detach().reshape(-1) for layer in layers]).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with _fbgemm():
            quantized = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._waiting: tuple[Tensor, list[Tensor | None]] | None = None

    def part(self, x: Tensor, index: int) -> Tensor:
        """What layer `index` makes of x [..., in]."""
        if len(self._sizes) == 1:
            return self._all(x)
        waiting = self._waiting  # read once: another thread may put its own here meanwhile
        if waiting is None or waiting[0] is not x or waiting[1][index] is None:
            waiting = self._waiting = (x, list(torch.split(self._all(x), self._sizes, -1)))
        parts = waiting[1]
        y, parts[index] = parts[index], None
        assert y is not None
        if all(part is None for part in parts):
            self._waiting = None
        return y

    def _all(self, x: Tensor) -> Tensor:
        # Where one token is decoded, each operation here costs as much as a tenth of the product: as few as will do.
        rows = x.reshape(-1, x.shape[-1]).float()
        peak = torch.linalg.vector_norm(rows, math.inf, -1, True).clamp_min_(_TINY)
        y: Tensor = _multiply(rows / peak, 1.0 / _LEVELS, _ZERO_POINT, self._packed)
        return y.mul_(peak).to(x.dtype).view(*x.shape[:-1], -1)


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    """Pack for FBGEMM: where the engine is x86, a CPU with VNNI would get oneDNN's format, which lacks this product.

    The pinned torch warns that quantized tensors will go; they are the only way to FBGEMM's format.
    """
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = before
