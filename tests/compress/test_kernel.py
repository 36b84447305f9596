"""The integer kernel against arithmetic written out."""

from __future__ import annotations

import pytest
import torch

from slipway_jobs.compress.kernels import int8_linear
from slipway_jobs.compress.kernels.int8_linear import Int8Linear

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not int8_linear.available(CPU), reason="torch has no FBGEMM on this machine")


def _layer(bias: bool = False) -> tuple[Int8Linear, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    weight = torch.randint(-128, 128, (48, 96), dtype=torch.int8)
    scale = torch.rand(48, 1) * 0.01
    offset = torch.randn(48) if bias else None
    return Int8Linear(weight, scale, offset), weight, scale, offset


@pytest.mark.parametrize("bias", [False, True])
def test_is_the_exact_integer_product(bias: bool) -> None:
    layer, weight, scale, offset = _layer(bias)
    x = torch.randn(3, 5, 96) * torch.logspace(-3, 3, 5).reshape(1, 5, 1)
    step = x.abs().amax(-1, keepdim=True) / 63
    expected = ((x / step).round() @ weight.float().T) * step * scale.reshape(-1)
    if offset is not None:
        expected = expected + offset
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_largest_products_do_not_saturate() -> None:
    """FBGEMM adds pairs of products in 16 bits: with full 8-bit activations this sum would be cut off."""
    layer = Int8Linear(torch.full((8, 64), -128, dtype=torch.int8), torch.ones(8, 1), None)
    assert torch.allclose(layer(torch.ones(1, 64)), torch.full((1, 8), -128.0 * 64), rtol=1e-5)
    assert torch.allclose(layer(-torch.ones(1, 64)), torch.full((1, 8), 128.0 * 64), rtol=1e-5)


def test_rows_do_not_depend_on_each_other() -> None:
    layer = _layer()[0]
    x = torch.randn(17, 96)
    x[3] *= 1000
    together = layer(x)
    assert all(torch.equal(layer(x[row : row + 1])[0], together[row]) for row in range(17))


def test_zero_rows_and_dtypes() -> None:
    layer = _layer()[0]
    assert torch.equal(layer(torch.zeros(2, 96)), torch.zeros(2, 48))
    assert layer(torch.randn(2, 96, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_one_byte_per_weight_and_no_copy() -> None:
    layer = _layer(bias=True)[0]
    assert layer.packed_bytes == 48 * 96
    assert sum(buffer.numel() for buffer in layer.buffers()) == 2 * 48 and not list(layer.parameters())
