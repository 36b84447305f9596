"""How long a run waits for its data: the standard library, first run and cached run, in fresh processes.

    python benchmarks/data_preparation.py [--vocab-size 8192] [--rounds 3]

Prints one JSON object per vocabulary size. `first` trains a tokenizer and tokenizes, `cached` finds both; each is the
best of the rounds, as the process itself measures `prepare` (imports are given apart). `encodeMBps` is text through
the encoder alone, on all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOT_TRAINED_ON = ["test/**", "**/test/**", "**/tests/**", "idlelib/**", "lib2to3/**"]
HELD_OUT = ["json/**", "asyncio/**"]


def prepare_once(cache: Path, vocab_size: int) -> dict[str, Any]:
    """In this process: import, prepare, describe."""
    started = time.perf_counter()
    from slipway_api.references import TrainingModel  # noqa: PLC0415 - the import is part of what is measured
    from slipway_api.trainjob import Data, Tokenizer  # noqa: PLC0415
    from slipway_jobs.data import PreparedData, prepare  # noqa: PLC0415
    from slipway_jobs.storage import Storage  # noqa: PLC0415

    imported = time.perf_counter()
    data = Data.model_validate(
        {
            "sources": [{"uri": "python://stdlib", "exclude": NOT_TRAINED_ON + HELD_OUT}],
            "evalSources": [{"uri": "python://stdlib", "include": HELD_OUT}],
        }
    )
    prepared = prepare(
        data,
        Tokenizer.model_validate({"train": {"vocabSize": vocab_size}}),
        TrainingModel.model_validate({"fresh": {"hiddenSize": 64, "layers": 1, "heads": 2}}),
        Storage(cache),
        progress=lambda line: print(line, file=sys.stderr),
    )
    done = time.perf_counter()
    PreparedData.load(prepared.descriptor_uri)
    return {
        "importSeconds": round(imported - started, 3),
        "prepareSeconds": round(done - imported, 3),
        "loadSeconds": round(time.perf_counter() - done, 4),
        "trainMB": round(prepared.train.text_bytes / 1e6, 2),
        "trainTokens": prepared.train_tokens,
        "evalTokens": prepared.eval_tokens,
        "bytesPerToken": round(prepared.train.text_bytes / prepared.train_tokens, 3),
        "peakMiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "tokenizer": str(prepared.tokenizer_dir),
    }


def encode_rate(tokenizer_dir: str) -> float:
    """MB/s of text through write_shards, documents in memory."""
    from slipway_api.trainjob import DataSource  # noqa: PLC0415
    from slipway_jobs.data.documents import documents  # noqa: PLC0415
    from slipway_jobs.data.fingerprints import Fingerprints  # noqa: PLC0415
    from slipway_jobs.data.shards import write_shards  # noqa: PLC0415
    from slipway_jobs.data.sources import resolve  # noqa: PLC0415
    from slipway_jobs.data.tokenizer import load_backend  # noqa: PLC0415
    from slipway_jobs.storage import Storage  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        source = DataSource.model_validate({"uri": "python://stdlib", "exclude": NOT_TRAINED_ON})
        pieces = list(
            documents(resolve([source], "data.sources", Fingerprints(Storage(directory).join("memo")), print))
        )
        backend = load_backend(Path(tokenizer_dir))
        started = time.perf_counter()
        meta = write_shards(
            pieces, backend, eos_id=0, vocab_size=1 << 14, directory=Path(directory), progress=lambda _: None
        )
        return float(meta["textBytes"]) / (time.perf_counter() - started) / 1e6


def in_a_fresh_process(cache: Path, vocab_size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(cache), "--vocab-size", str(vocab_size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab-size", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.vocab_size or [4096, 8192]
    if options.child is not None:
        print(json.dumps(prepare_once(options.child, sizes[0])))
        return
    busy = round(os.getloadavg()[0], 1)  # anything above 0 was somebody else: times are then too long
    for size in sizes:
        first, cached = [], []
        with tempfile.TemporaryDirectory() as root:
            for number in range(options.rounds):
                cache = Path(root, str(number))
                first.append(in_a_fresh_process(cache, size))
                cached.append(in_a_fresh_process(cache, size))
            rate = encode_rate(first[-1]["tokenizer"])
        best = min(first, key=lambda result: result["prepareSeconds"])
        print(
            json.dumps(
                {
                    "vocabSize": size,
                    "cores": os.cpu_count(),
                    "loadBefore": busy,
                    "trainMB": best["trainMB"],
                    "trainTokens": best["trainTokens"],
                    "evalTokens": best["evalTokens"],
                    "bytesPerToken": best["bytesPerToken"],
                    "importSeconds": min(result["importSeconds"] for result in first + cached),
                    "firstSeconds": best["prepareSeconds"],
                    "cachedSeconds": min(result["prepareSeconds"] for result in cached),
                    "loadSeconds": min(result["loadSeconds"] for result in cached),
                    "encodeMBps": round(rate, 2),
                    "peakMiB": max(result["peakMiB"] for result in first),
                }
            )
        )


if __name__ == "__main__":
    main()
