"""Every strategy computes the same thing, is really sharded as asked, and computes in the precision that was asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slipway_api.run import RunSpec
from slipway_api.trainjob import DeepSpeed, Strategy, Training
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.train.model import build
from slipway_jobs.train.ranks import RankContext
from slipway_jobs.train.strategies import StrategyConfig, make_strategy

MakeRun = Callable[..., RunSpec]

STEPS = {"steps": 4, "maxGradNorm": "0.5"}

# name -> strategy, plan text, part of the parameters that one of two ranks holds
PORTABLE = {
    "ddp": ({"ddp": {}}, "ddp(fp32)", 1.0),
    "fsdp": ({"fsdp": {}}, "fsdp(shard=2, fp32)", 0.5),
    "hsdp": ({"fsdp": {"shardDegree": 1}}, "fsdp(shard=1, replicate=2, fp32)", 1.0),
    "zero2-like": ({"fsdp": {"reshardAfterForward": False}}, "fsdp(shard=2, keep after forward, fp32)", 0.5),
    "offload": ({"fsdp": {"cpuOffload": True}}, "fsdp(shard=2, cpu offload, fp32)", 0.5),
}
ZERO = {
    "zero1": ({"deepspeed": {"stage": 1}}, "deepspeed(zero=1, optimizer state 1/2, fp32)", 1.0),
    "zero2-offload": (
        {"deepspeed": {"stage": 2, "offloadOptimizer": True}},
        "deepspeed(zero=2, optimizer state 1/2, optimizer offload, fp32)",
        1.0,
    ),
    "zero3": ({"deepspeed": {"stage": 3}}, "deepspeed(zero=3, fp32)", 0.5),
}
CASES = [
    *(pytest.param(*case, id=name) for name, case in PORTABLE.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in ZERO.items()),
]


def of(end: Any, kind: str) -> list[Any]:
    return [value for name, value in end["events"] if name == kind]


@pytest.fixture(scope="module")
def reference(
    make_run: MakeRun, launch: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """One rank without accumulation, where nothing can go wrong: losses and norms per step, and the final weights."""
    storage = tmp_path_factory.mktemp("reference")
    ends = launch(make_run(storage=storage, world=1, training={**STEPS, "microBatchSize": 8}), world=1)
    return of(ends[0], "step"), load_file(storage / "model" / "model.safetensors")


@pytest.mark.parametrize(("strategy", "text", "share"), CASES)
def test_two_ranks_with_accumulation_equal_one_without(
    strategy: dict[str, Any], text: str, share: float, make_run: MakeRun, launch: Any, reference: Any, tmp_path: Path
) -> None:
    ends = launch(make_run(storage=tmp_path / "storage", strategy=strategy, training=STEPS), timeout=280)
    plan = of(ends[0], "plan")[0]
    assert (plan["strategy"], plan["worldSize"], plan["accumulationSteps"]) == (text, 2, 2)
    assert plan["parametersPerRank"] == pytest.approx(share * plan["parameters"], rel=0.02)
    steps, weights = reference
    for (step, loss, norm), (step_1, loss_1, norm_1) in zip(of(ends[0], "step"), steps, strict=True):
        assert step == step_1
        assert loss == pytest.approx(loss_1, rel=2e-6)
        assert norm == pytest.approx(norm_1, rel=2e-4)
    found = load_file(tmp_path / "storage" / "model" / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param({"ddp": {}}, id="ddp"),
        pytest.param({"fsdp": {}}, id="fsdp"),
        pytest.param({"deepspeed": {"stage": 1}}, id="zero1", marks=pytest.mark.slow),
        pytest.param({"deepspeed": {"stage": 3}}, id="zero3", marks=pytest.mark.slow),
    ],
)
def test_bf16_really_computes_in_bf16(
    strategy: dict[str, Any], make_run: MakeRun, launch: Any, reference: Any, tmp_path: Path
) -> None:
    ends = launch(make_run(storage=tmp_path, strategy=strategy, training={**STEPS, "precision": "bf16"}), timeout=280)
    assert ends[0]["dtypes"] == ["bfloat16"]
    for (_, loss, _), (_, exact, _) in zip(of(ends[0], "step"), reference[0], strict=True):
        assert loss == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("strategy", [{"ddp": {}}, {"fsdp": {}}], ids=["ddp", "fsdp"])
def test_recomputed_activations_change_nothing(
    strategy: dict[str, Any], make_run: MakeRun, launch: Any, reference: Any, tmp_path: Path
) -> None:
    ends = launch(make_run(storage=tmp_path, strategy=strategy, training={**STEPS, "activationCheckpointing": True}))
    for (_, loss, _), (_, exact, _) in zip(of(ends[0], "step"), reference[0], strict=True):
        assert loss == pytest.approx(exact, rel=2e-6)


def test_a_model_that_is_not_sharded_is_refused(
    make_run: MakeRun, alone: RankContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StrategyConfig(Strategy(), Training(steps=1), alone, 1)
    strategy = make_strategy(config)
    monkeypatch.setattr("slipway_jobs.train.strategies.fsdp.fully_shard", lambda module, **_: module)
    strategy.prepare(build(make_run().model, vocab_size=300, seed=0, eos_id=0, pad_id=0))
    with pytest.raises(InfrastructureError, match="refusing to train something else") as caught:
        strategy.sharding()
    assert caught.value.reason == "StrategyDegraded"


def test_deepspeed_that_is_not_there_is_said(
    make_run: MakeRun, alone: RankContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = make_strategy(StrategyConfig(Strategy(deepspeed=DeepSpeed()), Training(steps=1), alone, 1))
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"cannot run on this worker: .*deepspeed.*strategy.fsdp") as caught:
        strategy.prepare(build(make_run().model, vocab_size=300, seed=0, eos_id=0, pad_id=0))
    assert caught.value.reason == "StrategyUnavailable"


@pytest.mark.slow
def test_deepspeed_needs_no_compiler_and_compiles_nothing(
    make_run: MakeRun, launch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    run = make_run(storage=tmp_path / "storage", strategy={"deepspeed": {"stage": 2}}, training={"steps": 1})
    ends = launch(run, timeout=280)
    assert of(ends[0], "plan")[0]["strategy"].startswith("deepspeed(zero=2")
    assert len(of(ends[0], "step")) == 1
    assert not (tmp_path / "extensions").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_never_applies_a_gradient_that_is_not_finite(stage: int, make_run: MakeRun, launch: Any) -> None:
    training = {"optimizer": {"learningRate": "1e30"}, "maxGradNorm": "0"}
    ends = launch(make_run(strategy={"deepspeed": {"stage": stage}}, training=training), timeout=280)
    assert {end["error"]["reason"] for end in ends} == {"LossNotFinite"}
    assert {end["error"]["class"] for end in ends} == {"UserError"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_resumes_close_to_an_undisturbed_run(
    stage: int, make_run: MakeRun, launch: Any, tmp_path: Path
) -> None:
    def run_of(storage: str, attempt: int) -> RunSpec:
        return make_run(
            storage=tmp_path / storage,
            attempt=attempt,
            strategy={"deepspeed": {"stage": stage}},
            checkpoint={"everySteps": 4},
        )

    launch(run_of("calm", 1), timeout=280)
    killed = launch(run_of("killed", 1), exit_at={0: 5, 1: 5}, timeout=280)
    assert [end.exit_code for end in killed] == [-9, -9]
    resumed = launch(run_of("killed", 2), timeout=280)
    assert resumed[0]["result"]["resumed"] == 4
    calm, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("calm", "killed"))
    for name, tensor in calm.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=1e-5)
