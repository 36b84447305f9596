"""bfloat16 products where the CPU has none of its own: the same numbers, and gradients as ever."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch
from slipway_jobs.cpu_bf16 import fast_bf16_on_cpu

torch.manual_seed(0)
a, b, c = torch.randn(5, 7), torch.randn(7, 3), torch.randn(3)
x, y = torch.randn(2, 5, 7), torch.randn(2, 7, 3)
plain = [a @ b, torch.addmm(c, a, b, beta=2, alpha=0.5), torch.bmm(x, y), torch.baddbmm(torch.ones(2, 5, 3), x, y)]
changed = fast_bf16_on_cpu()
assert changed == (not torch.ops.mkldnn._is_mkldnn_bf16_supported())
assert fast_bf16_on_cpu() == changed
again = [a @ b, torch.addmm(c, a, b, beta=2, alpha=0.5), torch.bmm(x, y), torch.baddbmm(torch.ones(2, 5, 3), x, y)]
assert all(torch.equal(left, right) for left, right in zip(plain, again)), "float32 is as it was"

low = torch.bfloat16
exact = (a.to(low).float() @ b.to(low).float()).to(low)
product = a.to(low) @ b.to(low)
assert product.dtype is low
# Hardware may sum in another order: half a unit in the last place, before the final rounding.
assert torch.allclose(product.float(), exact.float(), rtol=2**-7, atol=1e-6)
if changed:
    assert torch.equal(product, exact)

layer, inputs = torch.nn.Linear(7, 3).to(low), a.to(low).requires_grad_()
layer(inputs).float().square().sum().backward()
same = torch.nn.Linear(7, 3)
same.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
wanted = a.to(low).float().requires_grad_()
same(wanted).square().sum().backward()
assert torch.allclose(inputs.grad.float(), wanted.grad, rtol=0.05, atol=0.05)
assert torch.allclose(layer.weight.grad.float(), same.weight.grad, rtol=0.05, atol=0.1)
print("done")
"""


def test_products_are_rounded_float32_and_other_dtypes_are_untouched() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.split() == ["done"], ended.stderr
    assert "warning" not in ended.stderr.lower(), ended.stderr
