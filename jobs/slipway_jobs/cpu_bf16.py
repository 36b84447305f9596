"""bfloat16 matrix products on CPUs that have no instructions for them.

There torch falls back to scalar code, many times slower than float32. A bfloat16 product is by definition the
float32 product of the rounded factors, rounded at the end, so that is what is computed here: with float32's fast
kernel, and the very result that hardware gives which accumulates in float32. What a manifest asks for still runs; only
not at a crawl.

It replaces torch's CPU kernels for the products of matrices (not their gradients' formulas: those use the same
kernels) and attention, for this process. Other dtypes take torch's own kernel, through its `out` overload, which is
left alone: a bfloat16 product into a given tensor stays slow.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

_LOW = torch.bfloat16


@functools.cache
def fast_bf16_on_cpu() -> bool:
    """Replace the kernels where that helps; whether it was done. To be called before the first product."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    torch.nn.functional.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    _library().impl("mm", _mm, allow_override=True)  # type: ignore[no-untyped-call]
    _library().impl("bmm", _bmm, allow_override=True)  # type: ignore[no-untyped-call]
    _library().impl("addmm", _addmm, allow_override=True)  # type: ignore[no-untyped-call]
    _library().impl("baddbmm", _baddbmm, allow_override=True)  # type: ignore[no-untyped-call]
    return True


@functools.cache
def _library() -> torch.library.Library:
    # Kept for as long as the process: what it holds goes with it.
    return torch.library.Library("aten", "IMPL", "CPU")  # type: ignore[no-untyped-call]


_attention_of_torch = torch.nn.functional.scaled_dot_product_attention


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attention's own products are not those above: its kernel has them inside. Softmax is float32 there as well."""
    if query.dtype is not _LOW or query.device.type != "cpu":
        return _attention_of_torch(query, key, value, attn_mask, **options)
    mask = attn_mask.float() if attn_mask is not None and attn_mask.dtype is _LOW else attn_mask
    return _attention_of_torch(query.float(), key.float(), value.float(), mask, **options).to(_LOW)


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype is _LOW:
        return _mm(left.float(), right.float()).to(_LOW)
    out = torch.empty((left.shape[0], right.shape[1]), dtype=left.dtype)
    return _call("mm", left, right, out=out)


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype is _LOW:
        return _bmm(left.float(), right.float()).to(_LOW)
    out = torch.empty((left.shape[0], left.shape[1], right.shape[2]), dtype=left.dtype)
    return _call("bmm", left, right, out=out)


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if left.dtype is _LOW:
        return _addmm(bias.float(), left.float(), right.float(), beta=beta, alpha=alpha).to(_LOW)
    out = torch.empty((left.shape[0], right.shape[1]), dtype=left.dtype)
    return _call("addmm", bias, left, right, beta=beta, alpha=alpha, out=out)


def _baddbmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if left.dtype is _LOW:
        return _baddbmm(bias.float(), left.float(), right.float(), beta=beta, alpha=alpha).to(_LOW)
    out = torch.empty((left.shape[0], left.shape[1], right.shape[2]), dtype=left.dtype)
    return _call("baddbmm", bias, left, right, beta=beta, alpha=alpha, out=out)


def _call(name: str, *arguments: Any, **options: Any) -> Tensor:
    result: Tensor = getattr(torch.ops.aten, name).out(*arguments, **options)
    return result
