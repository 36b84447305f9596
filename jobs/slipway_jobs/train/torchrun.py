"""The engine without Ray: what torchrun starts on every rank, for a cluster that has its own launcher, and to measure.

    python -m torch.distributed.run --nproc-per-node 2 -m slipway_jobs.train.torchrun run.json

run.json is a run contract (slipway_api.run.RunSpec). Rank 0 prepares the data while the others wait, prints what
happens and obeys SIGTERM at the next step. The exit code is slipway_api.run.ExitCode. No operator hears of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch.distributed as dist
from pydantic import ValidationError

from slipway_api.run import ExitCode, RunSpec
from slipway_api.trainjob import CheckpointStatus, PlanStatus, SkippedCheckpoint, TrainedModel
from slipway_jobs.data import PreparedData, prepare
from slipway_jobs.errors import JobError, UserError
from slipway_jobs.storage import Storage
from slipway_jobs.train.engine import Engine, StepMetrics, preload
from slipway_jobs.train.ranks import COLLECTIVE_TIMEOUT, Ranks, init_process_group

_PREPARE_TIMEOUT = timedelta(hours=12)
_LINE_SECONDS = 1.0


class Console:
    """A line for everything worth one. `stop_message` is set by SIGTERM."""

    def __init__(self) -> None:
        self.stop_message: str | None = None
        self._last = 0.0

    def line(self, text: str) -> None:
        """Print one."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Ask the engine to stop."""
        self.stop_message = f"the run was told to stop ({signal.Signals(number).name})"

    def on_stage(self, stage: str) -> None:
        """A new stage."""
        self.line(f"stage {stage}")

    def on_plan(self, plan: PlanStatus) -> None:
        """What really runs."""
        self.line(
            f"plan {plan.strategy} on {plan.world_size} x {plan.device} ({plan.backend}): "
            f"{plan.parameters:,} parameters, {plan.parameters_per_rank:,} per rank"
        )

    def on_resume(self, step: int, skipped: list[SkippedCheckpoint]) -> None:
        """Where it begins."""
        for checkpoint in skipped:
            self.line(f"skipped {checkpoint.uri}: {checkpoint.reason}")
        if step:
            self.line(f"resumed from step {step}")

    def on_step(self, metrics: StepMetrics) -> None:
        """At most one line a second, and the last step."""
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS or metrics.step == metrics.steps:
            self._last = now
            self.line(
                f"step {metrics.step}/{metrics.steps} loss {metrics.loss:.4f} lr {metrics.learning_rate:.3g} "
                f"norm {metrics.gradient_norm:.3f} {metrics.tokens_per_second:,.0f} tokens/s "
                f"eta {metrics.eta_seconds:.0f} s"
            )

    def on_eval(self, step: int, loss: float, tokens: int) -> None:
        """The held-out loss."""
        self.line(f"held-out loss {loss:.4f} after step {step} ({tokens:,} tokens)")

    def on_checkpoint(self, checkpoint: CheckpointStatus) -> None:
        """One is committed."""
        self.line(f"checkpoint {checkpoint.uri}")

    def on_warning(self, reason: str, message: str) -> None:
        """Something that training survives."""
        self.line(f"warning {reason}: {message}")

    def on_model(self, model: TrainedModel) -> None:
        """The end."""
        self.line(
            f"model {model.uri} {model.digest} perplexity {model.perplexity} (before: {model.initial_perplexity})"
        )


def main(arguments: list[str] | None = None) -> int:
    """One rank; its exit code."""
    parser = argparse.ArgumentParser(prog="slipway_jobs.train.torchrun", description="Train without Ray.")
    # Positional: torchrun would take an option called --run for an abbreviation of its own --run-path.
    parser.add_argument("run", type=Path, help="the run contract, a JSON file")
    parser.add_argument(
        "--timeout-seconds",
        type=float,
        default=COLLECTIVE_TIMEOUT.total_seconds(),
        help="a peer that is silent for longer counts as lost (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    rank = int(os.environ["RANK"])
    console = Console()
    signal.signal(signal.SIGTERM, console.on_signal)
    try:
        _train(options.run, rank, timedelta(seconds=options.timeout_seconds), console)
    except JobError as error:
        sys.stderr.write(f"error: rank {rank}: {error.reason}: {error}\n")
        return int(ExitCode.of(error.outcome))
    return 0


def _train(path: Path, rank: int, timeout: timedelta, console: Console) -> None:
    try:
        run = RunSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError("RunContractInvalid", f"{path}: {error}") from error
    world, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    gpu = run.workers.resources.gpu > 0
    context = init_process_group(rank, world, local_rank, gpu=gpu, timeout=timeout)
    preload(run)
    ranks = Ranks(context, storage_timeout=_PREPARE_TIMEOUT)

    def prepare_data() -> str:
        cache = Storage(run.cache, field="cache")
        return prepare(run.data, run.tokenizer, run.model, cache, progress=console.line).descriptor_uri

    prepared = PreparedData.load(ranks.first_does(prepare_data, slow=True))
    ranks.close()
    Engine(run, prepared, context, console).train()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
