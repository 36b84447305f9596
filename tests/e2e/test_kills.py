"""SIGKILL to any process in the middle of training: the job ends by itself, and the model is the same to the last bit.

CPU, fp32. DDP and FSDP: bit-identical to a run that nobody disturbed. DeepSpeed: equal within rounding, because its
optimizer state is saved and loaded through its own partitioning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .conftest import Stack, condition, finished, train_job, weights

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS, INTERVAL = 120, 20
TRAINING = {
    "steps": STEPS,
    "globalBatchSize": 16,
    "microBatchSize": 4,
    "precision": "fp32",
    "optimizer": {"learningRate": "3e-3"},
}
STRATEGIES: dict[str, dict[str, Any]] = {"fsdp": {"fsdp": {}}, "ddp": {"ddp": {}}}


def job(name: str, corpus: Path, strategy: dict[str, Any]) -> dict[str, Any]:
    model = {"fresh": {"hiddenSize": 128, "layers": 4, "heads": 4, "maxPositionEmbeddings": 128}}
    made = train_job(name, corpus, training=TRAINING, strategy=strategy, model=model)
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
    "worker": lambda stack: stack.processes("RayTrainWorker")[:1],
    "driver": lambda stack: [p for p in stack.processes("-m slipway_jobs.train") if "python" in p.name()][-1:],
    "operator": lambda stack: stack.processes("-m slipway_operator"),
    "apiserver": lambda stack: stack.processes("slipway_local.apiserver"),
    "runner": lambda stack: stack.processes("slipway_local.ray_runner"),
    "supervisor": lambda stack: stack.processes("slipway_local.supervisor"),
}


def steps_trained(stack: Stack, status: dict[str, Any]) -> list[int]:
    """Every optimizer step of every attempt, in order, as the history tells."""
    steps = []
    for file in sorted((stack.storage(status) / "metrics").glob("attempt-*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        steps += [row["step"] for row in rows if "loss" in row]
    return steps


@pytest.mark.parametrize(
    ("victim", "strategy"),
    [
        ("worker", "fsdp"),
        ("driver", "fsdp"),
        ("operator", "fsdp"),
        ("apiserver", "fsdp"),
        ("runner", "fsdp"),
        ("supervisor", "fsdp"),
        ("worker", "ddp"),
        ("driver", "ddp"),
    ],
)
def test_killed_in_the_middle(
    stack: Stack, corpus: Path, undisturbed: Callable[[str], dict[str, Any]], victim: str, strategy: str
) -> None:
    calm = undisturbed(strategy)
    name = f"kill-{victim}-{strategy}"
    stack.apply(job(name, corpus, STRATEGIES[strategy]))
    at_kill = stack.wait(name, lambda s: s.get("checkpoint", {}).get("step", 0) >= INTERVAL)
    victims = VICTIMS[victim](stack)
    assert victims, f"no {victim} to kill"
    for process in victims:
        process.kill()
    status = wait_through_outage(stack, name)
    assert condition(status, "Succeeded")[0] == "True", json.dumps(status, indent=1)
    assert weights(model_of(status)) == weights(model_of(calm))
    assert status["model"]["evalLoss"] == calm["model"]["evalLoss"]
    assert at_kill["progress"]["step"] < STEPS, "the kill came too late to prove anything"
    if victim == "driver":
        assert [a["outcome"] for a in status["attempts"]] == ["Infrastructure", "Succeeded"]
        assert status["attempts"][1]["resumedFromStep"] >= INTERVAL
    else:
        assert len(status["attempts"]) == 1, "training itself was not disturbed"
    repeated = len(steps_trained(stack, status)) - len(set(steps_trained(stack, status)))
    assert repeated <= INTERVAL


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
    strategy = {"deepspeed": {"stage": 3}}
    stack.apply(job("calm-zero", corpus, strategy))
    calm = stack.finish("calm-zero", timeout=300)
    assert calm["plan"]["strategy"].startswith("deepspeed(zero=3")
    stack.apply(job("kill-zero", corpus, strategy))
    stack.wait("kill-zero", lambda s: s.get("checkpoint", {}).get("step", 0) >= INTERVAL)
    VICTIMS["driver"](stack)[0].kill()
    status = stack.finish("kill-zero", timeout=300)
    assert status["attempts"][1]["resumedFromStep"] >= INTERVAL
    ours, theirs = (load_file(model_of(s) / "model.safetensors") for s in (status, calm))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert (value - theirs[key]).abs().max() <= 1e-4, key


def test_a_damaged_checkpoint_is_skipped_and_named(
    stack: Stack, corpus: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    made = job("damaged", corpus, STRATEGIES["fsdp"])
    made["spec"]["checkpoint"] = {"everySteps": 10, "keepLast": 3}
    stack.apply(made)
    stack.wait("damaged", lambda s: s.get("checkpoint", {}).get("step", 0) >= 20)
    stack.kubectl("patch", "tj", "damaged", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    status = stack.wait("damaged", lambda s: condition(s, "Suspended")[0] == "True", timeout=60)
    newest = sorted((stack.storage(status) / "checkpoints").glob("step-*"))[-1]
    shard = next(p for p in sorted(newest.iterdir()) if p.suffix == ".distcp")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    stack.kubectl("patch", "tj", "damaged", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    status = stack.finish("damaged")
    (skipped,) = status["skippedCheckpoints"]
    assert newest.name in skipped["uri"]
    assert shard.name in skipped["reason"]
    assert weights(model_of(status)) == weights(model_of(undisturbed("fsdp")))
