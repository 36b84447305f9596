"""How fast the engine trains on one GPU in bf16. Needs CUDA: python benchmarks/training_gpu.py [--hidden-size 2048 ...]

The engine as it runs in a cluster (slipway_jobs.train.engine), one rank, on the standard library's source. Prints real
tokens per second from the median step, the model's FLOP/s (6 per parameter and token, 12 x layers x width x length for
attention; arXiv:2204.02311, appendix B), what part of the GPU's peak that is, and the peak memory. It was written where
there was no GPU: the figures are yours to make.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from slipway_api.references import FreshModel
from slipway_api.run import RunSpec
from slipway_jobs.data import prepare
from slipway_jobs.storage import Storage
from slipway_jobs.train.engine import Engine, StepMetrics
from slipway_jobs.train.ranks import init_process_group

WARM_UP = 5  # steps that are not counted
# Dense bf16 peak in TFLOP/s, from the vendor's data sheets, by a word of the device's name.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}


class Times:
    """A listener that keeps the seconds of each step."""

    stop_message = None

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = 0

    def on_step(self, metrics: StepMetrics) -> None:
        """A step is done."""
        self.seconds.append(metrics.seconds)
        self.tokens = metrics.tokens
        sys.stdout.write(
            f"step {metrics.step}/{metrics.steps} loss {metrics.loss:.4f} {metrics.seconds * 1e3:.0f} ms\n"
        )

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def contract(root: Path, options: argparse.Namespace) -> RunSpec:
    """The run that is measured."""
    return RunSpec.model_validate(
        {
            "namespace": "benchmark",
            "name": "training-gpu",
            "uid": "benchmark",
            "attempt": 1,
            "storage": str(root / "run"),
            "cache": str(root / "cache"),
            "model": {
                "fresh": {
                    "hiddenSize": options.hidden_size,
                    "layers": options.layers,
                    "heads": options.heads,
                    "kvHeads": options.kv_heads,
                    "maxPositionEmbeddings": options.sequence_length,
                }
            },
            "tokenizer": {"train": {"vocabSize": options.vocabulary}},
            "data": {"sources": [{"uri": "python://stdlib"}], "sequenceLength": options.sequence_length},
            "training": {
                "steps": options.steps + WARM_UP,
                "globalBatchSize": options.global_batch,
                "microBatchSize": options.micro_batch,
                "precision": "bf16",
                "activationCheckpointing": options.activation_checkpointing,
            },
            "strategy": {options.strategy: {}},
            "workers": {"count": 1, "resources": {"gpu": 1}},
            "checkpoint": {"everySteps": 1_000_000},
        }
    )


def main() -> int:
    """Measure and print; 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--global-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strategy", choices=["ddp", "fsdp", "deepspeed"], default="ddp")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=None, help="bf16 peak of the GPU; known for some")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("this benchmark needs a CUDA GPU; benchmarks/training_overhead.py runs on a CPU\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="slipway-benchmark-") as scratch:
        root = Path(scratch)
        run = contract(root, options)
        say = sys.stderr.write
        prepared = prepare(
            run.data,
            run.tokenizer,
            run.model,
            Storage(run.cache, field="cache"),
            progress=lambda line: _ignore(say(f"{line}\n")),
        )
        context = init_process_group(0, 1, 0, gpu=True, init_method=f"file://{root}/rendezvous")
        times = Times()
        Engine(run, prepared, context, times).train()
        dist.destroy_process_group()
    assert run.model.fresh is not None
    _print(options, run.model.fresh, times, context.device_name)
    return 0


def _ignore(_: object) -> None:
    """The progress callback returns nothing."""


def _print(options: argparse.Namespace, model: FreshModel, times: Times, device: str) -> None:
    parameters = model.parameter_count(options.vocabulary)
    rate = times.tokens / statistics.median(times.seconds[WARM_UP:])
    flops = 6 * parameters + 12 * options.layers * options.hidden_size * options.sequence_length
    achieved = rate * flops / 1e12
    peak = options.peak_tflops or next((value for name, value in PEAKS.items() if name in device), None)
    part = f", {100 * achieved / peak:.1f}% of {peak:.0f}" if peak else ""
    memory = torch.cuda.max_memory_allocated() / 2**30
    sys.stdout.write(
        f"{device}, {options.strategy}, bf16, {parameters:,} parameters: {rate:,.0f} tokens/s, "
        f"{achieved:.1f} TFLOP/s{part}, peak memory {memory:.1f} GiB\n"
    )


if __name__ == "__main__":
    sys.exit(main())
