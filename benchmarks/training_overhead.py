"""What the engine costs over a bare torch loop, and how fast it trains: python benchmarks/training_overhead.py

The same model, batches and thread count, in the same processes, step by step in turns, so that whatever else the
machine does meets all of them alike; medians of the steps and of the ratios of neighbouring steps are printed. Loops:

  bare    what one would write by hand: transformers' Llama, cross_entropy on its logits, AdamW, clipping, no reports;
          DistributedDataParallel or fully_shard, as the engine beside it
  core    the same loop with our fused loss (slipway_jobs.train.loss)
  engine  slipway_jobs.train.engine with everything that a run has: data order, agreement among ranks, finite checks,
          metrics, a listener

The engine's overhead is engine against core: same arithmetic, so what differs is the engine. The gain over bare is what
a user sees. The model is 4 layers, 256 wide; the data are modules of the standard library.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import multiprocessing, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from slipway_api.run import RunSpec
from slipway_jobs.data import PreparedData, prepare
from slipway_jobs.storage import Storage
from slipway_jobs.train.engine import Engine, MicroBatch, RankContext, StepMetrics
from slipway_jobs.train.loss import LossModel
from slipway_jobs.train.model import build
from slipway_jobs.train.optimizer import adamw
from slipway_jobs.train.ranks import init_process_group

VOCABULARY = 8192
WARM_UP = 2  # steps of each loop that are not counted


def contract(root: Path, options: argparse.Namespace, strategy: str, precision: str, uid: str) -> RunSpec:
    """The run that is measured."""
    return RunSpec.model_validate(
        {
            "namespace": "benchmark",
            "name": "training-overhead",
            "uid": uid,
            "attempt": 1,
            "storage": str(root / uid),
            "cache": str(root / "cache"),
            "model": {"fresh": {"hiddenSize": 256, "layers": 4, "heads": 4, "maxPositionEmbeddings": 512}},
            "tokenizer": {"train": {"vocabSize": VOCABULARY}},
            "data": {
                "sources": [{"uri": "python://stdlib", "include": ["*.py"]}],
                "sequenceLength": options.sequence_length,
            },
            "training": {
                "steps": options.steps + WARM_UP + 1,
                "globalBatchSize": options.global_batch,
                "microBatchSize": options.micro_batch,
                "precision": precision,
            },
            "strategy": {strategy: {}},
            "workers": {"count": options.ranks, "resources": {"cpu": str(options.threads)}},
            "checkpoint": {"everySteps": 1_000_000},
        }
    )


class Quiet:
    """A listener that makes of every step what a real one makes of it, and keeps nothing."""

    stop_message = None

    def on_step(self, metrics: StepMetrics) -> None:
        """A step is done."""
        metrics.progress()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Loop:
    """A training loop by hand on the same model and batches."""

    def __init__(self, run: RunSpec, prepared: PreparedData, context: RankContext, *, fused: bool) -> None:
        training = run.training
        built = build(run.model, vocab_size=prepared.vocab_size, seed=0, eos_id=prepared.eos_id, pad_id=prepared.pad_id)
        built.materialise(built.lm)
        lm = built.lm.train()
        dtype = torch.bfloat16 if training.precision == "bf16" else None
        sharded = run.strategy.name == "fsdp"
        autocast = None if sharded else dtype
        self._model: nn.Module = (
            LossModel(lm, compute_dtype=autocast) if fused else PlainLoss(lm, compute_dtype=autocast)
        )
        if sharded:
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
            for module in (*lm.model.layers, self._model):
                fully_shard(module, mp_policy=policy)
        elif context.world_size > 1:
            self._model = DistributedDataParallel(self._model, gradient_as_bucket_view=True)
        self._optimizer = adamw(lm.named_parameters(), training.optimizer)
        self._batches = Engine(run, prepared, context)
        self._scale = context.world_size / (training.global_batch_size * (run.data.sequence_length - 1))

    def step(self, step: int) -> None:
        """One optimizer step."""
        model = self._model
        self._optimizer.zero_grad(set_to_none=not isinstance(model, DistributedDataParallel))
        for micro in self._batches.micro_batches(step):
            if isinstance(model, DistributedDataParallel):
                model.require_backward_grad_sync = micro.last
            elif isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(micro.last)
            loss = model(micro.input_ids, micro.input_ids)
            torch.autograd.backward(loss * self._scale)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimizer.step()


class InTurns(Engine):
    """An engine that lets its rivals do a step before each of its own, and takes everybody's time.

    The engine's time is all that passes from the end of the rivals' steps to the beginning of the next round.
    """

    rivals: dict[str, Loop]
    seconds: dict[str, list[float]]
    _since: float | None = None

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Called by every rank at the beginning of each step."""
        if self._since is not None:
            self.seconds.setdefault("engine", []).append(time.perf_counter() - self._since)
        for name, loop in self.rivals.items():
            started = time.perf_counter()
            loop.step(step)
            self.seconds.setdefault(name, []).append(time.perf_counter() - started)
        self._since = time.perf_counter()
        yield from super().micro_batches(step)


class PlainLoss(nn.Module):
    """The loss as everyone writes it."""

    def __init__(self, lm: nn.Module, *, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.lm = lm
        self._dtype = compute_dtype

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed loss."""
        with torch.autocast(input_ids.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits = self.lm(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
            return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def measure(rank: int, port: int, options: argparse.Namespace, root: Path, prepared: PreparedData) -> None:
    """One rank: each strategy of the engine in turns with the loops; rank 0 prints."""
    torch.set_num_threads(options.threads)
    context = init_process_group(rank, options.ranks, rank, init_method=f"tcp://127.0.0.1:{port}")
    for precision in options.precisions:
        if rank == 0:
            sys.stdout.write(
                f"\n{precision}, {options.ranks} rank(s) x {options.threads} thread(s), {options.micro_batch} x "
                f"{options.sequence_length} tokens per micro-batch, {options.global_batch} sequences per step\n"
            )
        for strategy in options.strategies:
            run = contract(root, options, strategy, precision, f"{precision}-{strategy}")
            engine = InTurns(run, prepared, context, Quiet())
            engine.rivals = {
                "bare": Loop(run, prepared, context, fused=False),
                "core": Loop(run, prepared, context, fused=True),
            }
            engine.seconds = {}
            engine.train()
            if rank == 0:
                _print(strategy, engine.seconds, options.global_batch * options.sequence_length)
    dist.destroy_process_group()


def _print(strategy: str, seconds: dict[str, list[float]], tokens: int) -> None:
    counted = {name: found[WARM_UP:] for name, found in seconds.items()}
    for name, found in counted.items():
        # Step by step against the core's neighbouring step: the machine's mood cancels out.
        pairs = zip(found, counted["core"], strict=False)
        slower = statistics.median(own / core for own, core in pairs) - 1
        label = f"engine {strategy}" if name == "engine" else name
        rate = tokens / statistics.median(found)
        sys.stdout.write(f"  {label:14s} {rate:9,.0f} tokens/s   {100 * slower:+6.1f}% time against core\n")
    sys.stdout.flush()


def imports() -> None:
    """How long a rank takes before it can join: in a process of its own, each module after the other."""
    modules = ("torch", "slipway_jobs.train.engine", "transformers.models.llama.modeling_llama")
    steps = "; ".join(
        f"t = time.perf_counter(); import {name}; print(f'import {name}: {{time.perf_counter() - t:.2f}} s')"
        for name in modules
    )
    os.system(f'{sys.executable} -c "import time; {steps}"')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each loop")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    options = parser.parse_args()
    imports()
    with tempfile.TemporaryDirectory(prefix="slipway-benchmark-") as scratch:
        root = Path(scratch)
        run: Any = contract(root, options, "ddp", "fp32", "prepare")
        started = time.perf_counter()
        prepared = prepare(
            run.data, run.tokenizer, run.model, Storage(run.cache, field="cache"), progress=lambda _: None
        )
        seconds = time.perf_counter() - started
        sys.stdout.write(f"data: {prepared.train_tokens:,} tokens in {seconds:.1f} s\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        multiprocessing.spawn(measure, (port, options, root, prepared), nprocs=options.ranks)


if __name__ == "__main__":
    main()
