"""One rank of a test, run by path in a process of its own with JOB among its globals. It writes down what it saw.

Faults come through `Engine.micro_batches`, which every rank calls at the beginning of every step.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slipway_api.run import RunSpec
from slipway_jobs.errors import JobError
from slipway_jobs.train.engine import Engine, MicroBatch
from slipway_jobs.train.ranks import init_process_group

JOB: dict[str, Any] = globals()["JOB"]


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.stop_message: str | None = None

    def on_stage(self, stage: str) -> None:
        self.events.append(("stage", stage))

    def on_plan(self, plan: Any) -> None:
        self.events.append(("plan", plan.to_wire()))

    def on_resume(self, step: int, skipped: list[Any]) -> None:
        self.events.append(("resume", {"step": step, "skipped": [s.to_wire() for s in skipped]}))

    def on_step(self, metrics: Any) -> None:
        self.events.append(("step", [metrics.step, metrics.loss, metrics.gradient_norm]))
        if metrics.step == JOB.get("stop_after"):
            self.stop_message = "the test wants to stop"

    def on_eval(self, step: int, loss: float, tokens: int) -> None:
        self.events.append(("eval", [step, loss, tokens]))

    def on_checkpoint(self, checkpoint: Any) -> None:
        self.events.append(("checkpoint", checkpoint.to_wire()))

    def on_warning(self, reason: str, message: str) -> None:
        self.events.append(("warning", {"reason": reason, "message": message}))

    def on_model(self, model: Any) -> None:
        self.events.append(("model", model.to_wire()))


class FaultyEngine(Engine):
    """An engine whose rank meets a fault at the beginning of a step (counted from 0)."""

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        if step == JOB.get("exit_at", {}).get(self.context.rank):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == JOB.get("hang_at", {}).get(self.context.rank):
            os.kill(os.getpid(), signal.SIGSTOP)
        if step == JOB.get("disk_full_at"):
            # Writing more than this to any file fails with EFBIG, as a full disk fails with ENOSPC.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        if step == JOB.get("disk_free_at"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return super().micro_batches(step)


def watch_dtypes() -> set[str]:
    """The dtypes that the model's linear layers compute in, filled as they run."""
    seen: set[str] = set()

    def note(module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            seen.add(str(output.dtype).removeprefix("torch."))

    torch.nn.modules.module.register_module_forward_hook(note)
    return seen


def main() -> None:
    torch.set_num_threads(1)
    rank = JOB["rank"]
    said: dict[str, Any] = {}
    recorder = Recorder()
    dtypes = watch_dtypes()
    try:
        context = init_process_group(
            rank,
            JOB["world"],
            rank,
            init_method=JOB["init_method"],
            timeout=timedelta(seconds=JOB.get("collective_seconds", 30)),
        )
        run = RunSpec.model_validate_json(JOB["run"])
        result = FaultyEngine(run, JOB["prepared"], context, recorder).train()
        said["result"] = {"digest": result.model.digest, "steps": result.steps, "resumed": result.resumed_from_step}
        dist.destroy_process_group()
    except JobError as error:
        said["error"] = {"class": type(error).__name__, "reason": error.reason, "message": str(error)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said["dtypes"] = sorted(dtypes)
    said["events"] = recorder.events
    Path(JOB["out"]).write_text(json.dumps(said))
    os._exit(0)  # a lost peer's sockets must not keep the process


main()
