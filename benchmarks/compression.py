"""What each compression scheme costs and gains, in one run: python benchmarks/compression.py

Two models, each compressed through the same step as a Deployment's (slipway_jobs.compress), which loads the result back
from its files and measures it in turns with the dense model:

  large    a Llama of 112 million random weights: tokens/s at batch 1 and bytes in memory. Target: int8 or nf4 at 1.5
           times the speed of fp32 or more, in 40 % of the memory or less.
  trained  4 layers, 64 wide, trained here on modules of the standard library (kept in --work, so only the first run
           trains): perplexity on modules that it has not seen. Target at half of the weights: SparseGPT <= Wanda <
           magnitude, the order of the papers (arXiv:2301.00774, arXiv:2306.11695). It is small so that it can be
           trained for long: hardly trained weights are near their random start, and which of them go matters little.

Everything runs on the CPU. "expanded" means that no engine here has a kernel for the scheme on this device: the
perplexity is the scheme's, speed and memory are those of dense weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slipway_api.compression import CALIBRATED, CompressionResult
from slipway_api.run import CompressRunSpec
from slipway_jobs.compress import compress
from slipway_jobs.compress.measure import Effort
from slipway_jobs.data.tokenizer import train_bpe
from slipway_jobs.storage import Storage
from slipway_jobs.train.lineage import completed_model

STDLIB = "python://stdlib"
TRAIN = {"uri": STDLIB, "include": ["[d-z]*.py", "asyncio/*.py", "json/*.py", "http/*.py", "email/*.py", "xml/**/*.py"]}
CALIBRATE = {"uri": STDLIB, "include": ["[d-m]*.py"]}
HELD_OUT = {"uri": STDLIB, "include": ["[a-c]*.py"]}
WINDOW = 256
SMALL = {"hiddenSize": 64, "intermediateSize": 192, "layers": 4, "heads": 4}

SPEED: dict[str, dict[str, Any]] = {
    "int8Dynamic": {"int8Dynamic": {}},
    "int8WeightOnly": {"int8WeightOnly": {}},
    "nf4": {"nf4": {}},
    "bnbInt8": {"bnbInt8": {}},
}
QUALITY: dict[str, dict[str, Any]] = {
    **SPEED,
    "smoothQuant": {"smoothQuant": {}},
    "gptq 4 bit": {"gptq": {"groupSize": 64}},
    "awq 4 bit": {"awq": {"groupSize": 64}},
    "fp8": {"fp8": {}},
    "sparseGpt 50 %": {"sparseGpt": {}},
    "wanda 50 %": {"wanda": {}},
    "magnitude 50 %": {"magnitude": {}},
    "sparseGpt 4:8": {"sparseGpt": {"pattern": "4:8"}},
    "sparseGpt 2:4": {"sparseGpt": {"pattern": "2:4"}},
    "wanda 2:4": {"wanda": {"pattern": "2:4"}},
    "magnitude 2:4": {"magnitude": {"pattern": "2:4"}},
}


def large_model(work: Path) -> Path:
    """112 million random weights, untied embeddings, and a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    directory = work / "large"
    if not (directory / "model.safetensors").is_file():
        vocabulary = train_bpe([Path(argparse.__file__).read_text()], 8192, directory)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=max(8192, vocabulary),
            hidden_size=768,
            num_hidden_layers=14,
            num_attention_heads=12,
            num_key_value_heads=12,
            intermediate_size=2048,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def trained_model(work: Path, steps: int) -> Path:
    """The model that a TrainJob of `steps` steps makes, trained without Ray the first time."""
    storage = Storage(work / f"trained-{steps}")
    model = completed_model(storage)
    if model is None:
        run = {
            "namespace": "benchmark",
            "name": "compression",
            "uid": f"steps-{steps}",
            "attempt": 1,
            "storage": storage.uri,
            "cache": str(work / "cache"),
            "model": {"fresh": {**SMALL, "maxPositionEmbeddings": 512}},
            "tokenizer": {"train": {"vocabSize": 1024}},
            "data": {"sources": [TRAIN], "sequenceLength": WINDOW},
            "training": {
                "steps": steps,
                "globalBatchSize": 4,
                "microBatchSize": 4,
                "precision": "fp32",
                "optimizer": {"learningRate": "2e-3"},
                "schedule": {"warmupSteps": 20},
            },
            "strategy": {"ddp": {}},
            "workers": {"count": 1},
            "checkpoint": {"everySteps": 500},
        }
        contract = work / "run.json"
        contract.write_text(json.dumps(run))
        environ = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        subprocess.run(
            [sys.executable, "-m", "slipway_jobs.train.torchrun", str(contract)],
            env={**os.environ, **environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            check=True,
            timeout=1800,
        )
        model = completed_model(storage)
    assert model is not None
    return Path(model.uri)


def contract_of(work: Path, model: Path, scheme: dict[str, Any], options: argparse.Namespace) -> CompressRunSpec:
    """The run that makes one result."""
    compression = {
        **scheme,
        "heldOut": {"sources": [HELD_OUT], "sequenceLength": WINDOW, "maxTokens": options.held_out_tokens},
        "emulate": True,
    }
    if set(scheme) & set(CALIBRATED):
        compression["calibration"] = {"sources": [CALIBRATE], "samples": options.samples, "sequenceLength": WINDOW}
    return CompressRunSpec.model_validate(
        {
            "namespace": "benchmark",
            "name": "compression",
            "uid": "benchmark",
            "attempt": 1,
            "storage": str(work / "runs"),
            "cache": str(work / "cache"),
            "model": {"uri": str(model)},
            "compression": compression,
        }
    )


def table(
    title: str, rows: dict[str, dict[str, Any]], make: Callable[[dict[str, Any]], CompressionResult]
) -> dict[str, CompressionResult]:
    """Compress by every scheme, and print a line for each as it is there."""
    sys.stdout.write(
        f"\n{title}\n  {'scheme':16s} {'disk':>7s} {'memory':>7s} {'perplexity':>11s} {'loss':>8s} "
        f"{'tokens/s':>9s} {'x fp32':>7s}  runs as\n"
    )
    results = {}
    for name, scheme in rows.items():
        result = results[name] = make(scheme)
        before, after = result.before, result.after
        if len(results) == 1:
            sys.stdout.write(
                f"  {'fp32':16s} {before.size_bytes / 1e6:5.1f}MB {before.memory_bytes / 1e6:5.1f}MB "
                f"{float(before.perplexity):11.3f} {'':8s} {float(before.tokens_per_second):9.1f} {'1.00':>7s}\n"
            )
        sys.stdout.write(
            f"  {name:16s} {after.size_bytes / before.size_bytes:7.1%} {after.memory_bytes / before.memory_bytes:7.1%} "
            f"{float(after.perplexity):11.3f} {float(result.quality_loss):+8.2%} "
            f"{float(after.tokens_per_second):9.1f} {float(result.speed_up):7.2f}  {result.execution}\n"
        )
        sys.stdout.flush()
    return results


def main() -> int:
    """Measure, print, and say whether the targets hold: the exit code is 1 where one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4800, help="training steps of the trained model")
    parser.add_argument("--samples", type=int, default=128, help=f"calibration sequences of {WINDOW} tokens")
    parser.add_argument("--held-out-tokens", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=7, help="turns in which decoding is timed")
    parser.add_argument("--only", choices=["large", "trained"])
    default = Path(tempfile.gettempdir()) / "slipway-benchmark-compression"
    parser.add_argument("--work", type=Path, default=default, help="models are kept here (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    capability = torch.backends.cpu.get_cpu_capability()
    sys.stdout.write(f"CPU with {capability}, {options.threads} threads, batch 1\n")
    verdicts: dict[str, bool] = {}

    def fresh(model: Path, effort: Effort, limit: int | None = None) -> Callable[[dict[str, Any]], CompressionResult]:
        """Always computed: a figure that was found is not one of this run."""

        def make(scheme: dict[str, Any]) -> CompressionResult:
            spec = contract_of(options.work, model, scheme, options)
            if limit is not None:
                held_out = spec.compression.held_out.model_copy(update={"max_tokens": limit})
                compression = spec.compression.model_copy(update={"held_out": held_out})
                spec = spec.model_copy(update={"compression": compression})
            Storage(options.work / "cache").delete("compressed")
            return compress(spec, progress=lambda _: None, device=torch.device("cpu"), effort=effort)

        return make

    if options.only != "trained":
        make = fresh(large_model(options.work), Effort(rounds=options.rounds), limit=512)
        found = table("112 million random weights (their perplexity means nothing)", SPEED, make)
        verdicts["int8 or nf4: 1.5 x the tokens/s of fp32, memory 40 % or less"] = any(
            float(result.speed_up) >= 1.5 and result.after.memory_bytes <= 0.4 * result.before.memory_bytes
            for result in found.values()
        )
    if options.only != "large":
        model = trained_model(options.work, options.steps)
        found = table(f"trained here, {options.steps} steps", QUALITY, fresh(model, Effort(rounds=options.rounds)))
        half = [float(found[f"{name} 50 %"].after.perplexity) for name in ("sparseGpt", "wanda", "magnitude")]
        verdicts["perplexity at 50 %: SparseGPT <= Wanda < magnitude"] = half[0] <= half[1] < half[2]
    sys.stdout.write("\n")
    for target, holds in verdicts.items():
        sys.stdout.write(f"{'holds' if holds else 'MISSED'}: {target}\n")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
