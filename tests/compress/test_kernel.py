"""The integer kernel against arithmetic written out."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from slipway_jobs.compress.kernels import int8_linear
from slipway_jobs.compress.kernels.int8_linear import Int8Linear, Quantized, install

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not int8_linear.available(CPU), reason="torch has no FBGEMM on this machine")


def _layer(bias: bool = False) -> tuple[Int8Linear, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    weight = torch.randint(-128, 128, (48, 96), dtype=torch.int8)
    scale = torch.rand(48, 1) * 0.01
    offset = torch.randn(48) if bias else None
    return Int8Linear(Quantized(weight, scale, offset)), weight, scale, offset


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
    layer = Int8Linear(Quantized(torch.full((8, 64), -128, dtype=torch.int8), torch.ones(8, 1), None))
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


class _Attention(nn.Module):
    """Three layers that read the same tensor, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(96, 64, bias=False), nn.Linear(96, 32, bias=False)
        self.v_proj, self.o_proj = nn.Linear(96, 32), nn.Linear(32, 96, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.q_proj(x)[..., :32] * self.k_proj(x) + self.v_proj(x)
        output: Tensor = self.o_proj(mixed)
        return output


def _quantized(model: nn.Module) -> dict[str, Quantized]:
    torch.manual_seed(1)
    return {
        name: Quantized(
            torch.randint(-127, 128, tuple(linear.weight.shape), dtype=torch.int8),
            torch.rand(len(linear.weight)) * 0.01,
            None if linear.bias is None else linear.bias.detach(),
        )
        for name, linear in model.named_modules()
        if isinstance(linear, nn.Linear)
    }


def _pair() -> tuple[nn.Module, nn.Module]:
    """The same model with layers that share a product, and with layers that do not."""
    model, alone = nn.Sequential(_Attention(), _Attention()), nn.Sequential(_Attention(), _Attention())
    layers = _quantized(model)
    alone.load_state_dict(model.state_dict())
    install(model, layers)
    for name, layer in layers.items():
        alone.set_submodule(name, Int8Linear(layer))
    return model, alone


@pytest.mark.parametrize("rows", [1, 5])
def test_layers_that_read_the_same_share_a_product_and_change_nothing(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, alone = _pair()
    products = []
    multiply = int8_linear._multiply
    monkeypatch.setattr(int8_linear, "_multiply", lambda *of: products.append(of[0].shape) or multiply(*of))
    x = torch.randn(2, rows, 96)
    with torch.inference_mode():
        assert torch.equal(model(x), alone(x)) and torch.equal(model(-x), alone(-x))
    assert len(products) == 2 * (2 * 2 + 2 * 4)
    assert all(layer._product._waiting is None for layer in model.modules() if isinstance(layer, Int8Linear))


def test_a_layer_of_a_shared_product_may_be_called_alone_twice_or_with_another_tensor() -> None:
    model, alone = _pair()
    shared, single = model[0], alone[0]
    x, y = torch.randn(3, 96), torch.randn(3, 96)
    for name, value in (("k_proj", x), ("q_proj", x), ("q_proj", x), ("v_proj", y), ("k_proj", x), ("v_proj", x)):
        assert torch.equal(shared.get_submodule(name)(value), single.get_submodule(name)(value)), name


def test_threads_that_share_a_model_do_not_mix_their_rows() -> None:
    model, alone = _pair()
    inputs = [torch.randn(1, 96) for _ in range(4)]
    wanted = [alone(x) for x in inputs]
    wrong: list[int] = []

    def ask(index: int) -> None:
        with torch.inference_mode():
            wrong.extend(index for _ in range(200) if not torch.equal(model(inputs[index]), wanted[index]))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_gives_the_same() -> None:
    """torch.compile cannot trace the packed product; what it traces around it still finds its part."""
    model, alone = _pair()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    with torch.inference_mode():
        for x in (torch.randn(1, 1, 96), torch.randn(1, 4, 96), torch.randn(2, 4, 96)):
            assert torch.equal(compiled(x), alone(x))
