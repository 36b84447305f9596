"""The parts that need no ranks: the learning rate, who decays, the loss and its gradients, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slipway_api.trainjob import Optimizer, Schedule, Training
from slipway_jobs.errors import InfrastructureError, OutOfMemory
from slipway_jobs.train.loss import IGNORE, LinearCrossEntropy
from slipway_jobs.train.optimizer import adamw
from slipway_jobs.train.ranks import translated_errors
from slipway_jobs.train.schedule import LearningRate


def rate(step: int, *, steps: int = 100, **schedule: object) -> float:
    training = Training(
        steps=steps, optimizer=Optimizer(learning_rate="1e-3"), schedule=Schedule.model_validate(schedule)
    )
    return LearningRate.of(training, steps).at(step)


def test_the_rate_rises_then_falls_to_its_minimum() -> None:
    assert [rate(step, warmupSteps=4) for step in range(4)] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rate(4, warmupSteps=4) == pytest.approx(1e-3)
    assert rate(99, warmupSteps=4) == pytest.approx(1e-4)
    assert rate(52, warmupSteps=5, steps=100) == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert rate(99, type="constant") == 1e-3
    assert rate(0, steps=1) == 1e-3 and rate(2, warmupSteps=50, steps=3) == pytest.approx(6e-5)


@given(warmup=st.integers(0, 50), steps=st.integers(1, 60), step=st.integers(0, 59))
def test_the_rate_is_never_zero_nor_above_its_peak(warmup: int, steps: int, step: int) -> None:
    found = rate(min(step, steps - 1), steps=steps, warmupSteps=warmup)
    assert 0 < found <= 1e-3 * (1 + 1e-12)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    optimizer = adamw(model.named_parameters(), Optimizer(weight_decay="0.5", learning_rate="0.1"))
    decayed, plain = optimizer.param_groups
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@settings(max_examples=30)
@given(
    tokens=st.integers(1, 40),
    rows=st.integers(1, 50),
    vocabulary=st.integers(2, 20),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_fused_loss_equals_the_plain_one(
    tokens: int, rows: int, vocabulary: int, ignored: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 6, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORE
    plain = F.cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORE, reduction="sum")
    expected = torch.autograd.grad(plain * 0.3, (hidden, weight))
    fused = LinearCrossEntropy.apply(hidden, weight, labels, rows)
    found = torch.autograd.grad(fused * 0.3, (hidden, weight))
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(LinearCrossEntropy.apply(hidden, weight, labels, rows), fused)


def test_weight_gradients_of_bf16_hidden_states_add_up_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, 16, generator=generator).to(torch.bfloat16)
    weight = torch.randn(32, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 32, (4096,), generator=generator)
    exact = F.cross_entropy(hidden.float() @ weight.t(), labels, reduction="sum")
    (expected,) = torch.autograd.grad(exact, weight)
    (found,) = torch.autograd.grad(LinearCrossEntropy.apply(hidden, weight, labels, 64), weight)
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize(
    ("thrown", "expected", "reason"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), InfrastructureError, "PeerLost"),
        (RuntimeError("Timed out waiting 30000ms for recv operation"), InfrastructureError, "PeerLost"),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "OutOfMemory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory, "OutOfMemory"),
        (MemoryError(), OutOfMemory, "OutOfMemory"),
    ],
)
def test_foreign_errors_become_ours(thrown: Exception, expected: type[Exception], reason: str) -> None:
    with pytest.raises(expected) as caught, translated_errors(3):
        raise thrown
    assert caught.value.reason == reason and "rank 3" in str(caught.value)


def test_a_bug_keeps_looking_like_one() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), translated_errors(0):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="cannot restore"), translated_errors(0):
        raise RuntimeError("cannot restore what was stored at timeout=3")


def test_the_engine_imports_neither_ray_nor_deepspeed() -> None:
    heavy = "('ray', 'deepspeed', 'transformers', 'peft', 'datasets')"
    code = f"import sys, slipway_jobs.train.engine; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_lineage_can_be_read_without_torch() -> None:
    code = "import sys, slipway_jobs.train.lineage; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_torchrun_starts_the_engine(tmp_path: Path) -> None:
    import json  # noqa: PLC0415

    text = " ".join(str(number * 7919 % 1000) for number in range(6000))
    (tmp_path / "train.txt").write_text(text)
    run = {
        "namespace": "default",
        "name": "test",
        "uid": "uid-1",
        "attempt": 1,
        "storage": str(tmp_path / "storage"),
        "cache": str(tmp_path / "cache"),
        "model": {"fresh": {"hiddenSize": 32, "layers": 1, "heads": 2}},
        "tokenizer": {"train": {"vocabSize": 300}},
        "data": {"sources": [{"uri": str(tmp_path / "train.txt")}], "sequenceLength": 32},
        "training": {"steps": 3, "globalBatchSize": 4, "microBatchSize": 2},
        "strategy": {"fsdp": {}},
        "workers": {"count": 2},
        "checkpoint": {"everySteps": 4},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "slipway_jobs.train.torchrun", str(tmp_path / "run.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "plan fsdp(shard=2, bf16) on 2 x cpu (gloo)" in done.stdout and "step 3/3" in done.stdout
    assert (tmp_path / "storage" / "model" / "slipway.json").exists()
