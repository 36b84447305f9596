"""SIGKILL to any process in the middle of training: the job ends by itself, and the model is the same to the last bit.

CPU, fp32. DDP and FSDP: bit-identical to a run that nobody disturbed. DeepSpeed: equal within rounding, because its
optimizer state is saved and loaded through its own partitioning.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .conftest import Stack, condition, finished, train_job, weights

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS, INTERVAL = 100, 20
TRAINING = {
    "steps": STEPS,
    "globalBatchSize": 16,
    "microBatchSize": 4,
    "precision": "fp32",
    "optimizer": {"learningRate": "3e-3"},
}
STRATEGIES: dict[str, dict[str, Any]] = {"fsdp": {"fsdp": {}}, "ddp": {"ddp": {}}}


def job(name: str, corpus: Path, strategy: dict[str, Any], *, steps: int = STEPS, layers: int = 4) -> dict[str, Any]:
    model = {"fresh": {"hiddenSize": 128, "layers": layers, "heads": 4, "maxPositionEmbeddings": 128}}
    made = train_job(name, corpus, training=TRAINING | {"steps": steps}, strategy=strategy, model=model)
    made["spec"]["checkpoint"] = {"everySteps": INTERVAL}
    return made


def model_of(status: dict[str, Any]) -> Path:
    return Path(status["model"]["uri"].removeprefix("file://"))


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, corpus: Path) -> Callable[[str], dict[str, Any]]:
    """The final status of a run with that strategy that nobody disturbed; trained once."""
    done: dict[str, dict[str, Any]] = {}

    def train(strategy: str) -> dict[str, Any]:
        if strategy not in done:
            name = f"calm-{strategy}"
            stack.apply(job(name, corpus, STRATEGIES[strategy]))
            done[strategy] = stack.finish(name)
        return done[strategy]

    return train


VICTIMS: dict[str, Callable[[Stack], list[Any]]] = {
    # Ray renames its workers' processes, so a rank is found by its title.
    "worker": lambda stack: stack.processes("TrainWorker")[:1],
    "driver": lambda stack: [p for p in stack.processes("-m slipway_jobs.train") if "python" in p.name()][-1:],
    "operator": lambda stack: stack.processes("-m slipway_operator"),
    "apiserver": lambda stack: stack.processes("slipway_local.apiserver"),
    "runner": lambda stack: stack.processes("-m slipway_local.ray_runner --"),
    "supervisor": lambda stack: stack.processes("slipway_local.supervisor"),
}


def history(stack: Stack, status: dict[str, Any], attempt: int) -> list[dict[str, Any]]:
    """The rows of an attempt's metrics history."""
    file = stack.storage(status) / "metrics" / f"attempt-{attempt:04}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if row["kind"] == "step"]


def kill(stack: Stack, name: str, *victims: str, after_step: int) -> int:
    """SIGKILL them all, once a checkpoint of that step or a later one is safe; the step that training was at, or more
    exactly a little before: status lags behind."""
    status = stack.wait(name, lambda s: s.get("checkpoint", {}).get("step", 0) >= after_step)
    step: int = status["progress"]["step"]
    assert step < STEPS, "the kill comes too late to prove anything"
    for victim in victims:
        processes = VICTIMS[victim](stack)
        assert processes, f"no {victim} to kill"
        for process in processes:
            process.kill()
    return step


def assert_like(calm: dict[str, Any], status: dict[str, Any]) -> None:
    assert condition(status, "Succeeded")[0] == "True", json.dumps(status, indent=1)
    assert weights(model_of(status)) == weights(model_of(calm))
    assert status["model"]["evalLoss"] == calm["model"]["evalLoss"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_and_then_the_driver_killed(
    stack: Stack, corpus: Path, undisturbed: Callable[[str], dict[str, Any]], strategy: str
) -> None:
    name = f"kill-{strategy}"
    stack.apply(job(name, corpus, STRATEGIES[strategy]))
    first = kill(stack, name, "worker", after_step=INTERVAL)
    # Past what was safe at the first kill, so these are steps of the restarted ranks.
    second = kill(stack, name, "driver", after_step=first + INTERVAL)
    status = stack.finish(name)
    assert_like(undisturbed(strategy), status)
    assert [a["outcome"] for a in status["attempts"]] == ["Infrastructure", "Succeeded"]
    before, after = history(stack, status, 1), history(stack, status, 2)
    resumed = [row["resumedFromStep"] for row in (*before, *after) if row["kind"] == "start"]
    assert resumed[0] is None and resumed[2:] == [status["attempts"][1]["resumedFromStep"]]
    assert first - resumed[1] <= INTERVAL
    assert steps(before) == list(range(1, len(steps(before)) + 1)), "no step is lost or told twice"
    assert max(second, *steps(before)) - resumed[2] <= INTERVAL
    assert steps(after) == list(range(resumed[2] + 1, STEPS + 1))


def test_the_whole_control_plane_killed_under_a_run(
    stack: Stack, corpus: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    """Operator, API server and Ray runner at once; then, when they are back, what had brought them back."""
    stack.apply(job("kill-control", corpus, STRATEGIES["fsdp"]))
    kill(stack, "kill-control", "operator", "apiserver", "runner", after_step=INTERVAL)
    wait_until_back(stack, "operator", "apiserver", "runner")
    kill(stack, "kill-control", "supervisor", after_step=INTERVAL)
    status = wait_through_outage(stack, "kill-control")
    assert_like(undisturbed("fsdp"), status)
    assert len(status["attempts"]) == 1, "training itself was not disturbed"
    assert steps(history(stack, status, 1)) == list(range(1, STEPS + 1))
    stack.run("slipway", "up")


def wait_until_back(stack: Stack, *parts: str) -> None:
    """Until each of them runs again and the API answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if all(VICTIMS[part](stack) for part in parts) and stack.status("kill-control"):
                return
        time.sleep(0.1)
    raise AssertionError(f"not back: {[part for part in parts if not VICTIMS[part](stack)]}")


def wait_through_outage(stack: Stack, name: str) -> dict[str, Any]:
    """Like Stack.wait, but the API server may be down for a while."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            status = stack.status(name)
        except OSError:
            status = {}
        if finished(status):
            return status
        time.sleep(0.5)
    raise AssertionError(
        f"{name} did not end: {stack.run('slipway', 'logs', f'tj/{name}', '--tail', '40', check=False)}"
    )


def test_deepspeed_resumes_close(stack: Stack, corpus: Path) -> None:
    # Some five times slower than fsdp on a CPU, and slower with each module: fewer steps of fewer layers.
    strategy, size = {"deepspeed": {"stage": 3}}, {"steps": 40, "layers": 1}
    stack.apply(job("calm-zero", corpus, strategy, **size))
    calm = stack.finish("calm-zero", timeout=300)
    assert calm["plan"]["strategy"].startswith("deepspeed(zero=3")
    stack.apply(job("kill-zero", corpus, strategy, **size))
    stack.wait("kill-zero", lambda s: s.get("checkpoint", {}).get("step", 0) >= INTERVAL)
    VICTIMS["driver"](stack)[0].kill()
    status = stack.finish("kill-zero", timeout=300)
    assert status["attempts"][1]["resumedFromStep"] >= INTERVAL
    ours, theirs = (load_file(model_of(s) / "model.safetensors") for s in (status, calm))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert (value - theirs[key]).abs().max() <= 1e-4, key


def test_suspended_and_resumed_with_a_damaged_checkpoint(
    stack: Stack, corpus: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    """Suspend frees everything; resume skips the newest checkpoint, says why, and continues from the one before."""
    made = job("damaged", corpus, STRATEGIES["fsdp"])
    made["spec"]["checkpoint"] = {"everySteps": 10, "keepLast": 3}
    stack.apply(made)
    stack.wait("damaged", lambda s: s.get("checkpoint", {}).get("step", 0) >= 20)
    stack.kubectl("patch", "tj", "damaged", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    status = stack.wait("damaged", lambda s: condition(s, "Suspended")[0] == "True", timeout=60)
    assert not stack.processes("slipway_jobs.train")
    assert not stack.processes("TrainWorker")
    before, newest = sorted((stack.storage(status) / "checkpoints").glob("step-*"))[-2:]
    shard = next(p for p in sorted(newest.iterdir()) if p.suffix == ".distcp")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    stack.kubectl("patch", "tj", "damaged", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    status = stack.finish("damaged")
    (skipped,) = status["skippedCheckpoints"]
    assert newest.name in skipped["uri"]
    assert shard.name in skipped["reason"]
    assert [a["outcome"] for a in status["attempts"]] == ["Suspended", "Succeeded"]
    assert status["attempts"][1]["resumedFromStep"] == int(before.name.split("-")[1]) >= 10
    assert weights(model_of(status)) == weights(model_of(undisturbed("fsdp")))
