"""A linear layer with 8-bit weights for x86 CPUs, on FBGEMM's integer kernels.

torchao's eager int8 matmul on a CPU without VNNI is several times slower than fp32, so there the same quantized weights
are run by this layer: y = s_x (x_q . w_q) s_w, with w_q int8 per output channel as stored, and x_q rounded per token.
The products are exact integers, so a row's result does not depend on the other rows of the batch.

Activations have 7 bits (-63..63): FBGEMM's AVX2 kernel adds two u8 x s8 products in 16 bits, and with 8 bits that sum
saturates. All x86 CPUs get the same 7 bits, so that a perplexity measured on one holds on another.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_LEVELS = 63
_ZERO_POINT = 64  # x_q + 64 is in 1..127: unsigned, and seven bits
_TINY = 1e-30  # a row of zeros must not be divided by zero

NAME = "fbgemm int8, 7-bit activations per token"


def available(device: torch.device) -> bool:
    """Whether this machine can run it."""
    return device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines


class Int8Linear(nn.Module):
    """`weight` is [out, in] int8, `scale` [out] float; the layer keeps only a packed copy (one byte per weight).

    Input [..., in] and output [..., out] have the same floating dtype. It cannot be saved: save the model before.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if weight.dtype is not torch.int8:
            raise TypeError(f"not 8-bit weights: {weight.dtype}")
        self.out_features, self.in_features = weight.shape
        self.register_buffer("scale", scale.detach().reshape(-1).float().clone(), persistent=False)
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with _fbgemm():
            quantized = torch._make_per_channel_quantized_tensor(
                weight.contiguous(), scale.detach().reshape(-1).double(), zeros, 0
            )
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights, which are no parameter or buffer."""
        return int(self.in_features * self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        rows = x.reshape(-1, self.in_features).float()
        peak = rows.abs().amax(-1, keepdim=True).clamp_min(_TINY)
        y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / peak, 1.0 / _LEVELS, _ZERO_POINT, self._packed
        )
        y = y.mul_(peak).to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


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
