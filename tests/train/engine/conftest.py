"""Real ranks for the tests: processes with gloo between them, forked from a server that has torch loaded already."""

from __future__ import annotations

import json
import multiprocessing
import random
import runpy
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from slipway_api.references import TrainingModel
from slipway_api.run import RunSpec
from slipway_api.trainjob import Data, DataSource, Tokenizer, TrainTokenizer
from slipway_jobs.data import PreparedData, prepare
from slipway_jobs.storage import Storage
from slipway_jobs.train.ranks import RankContext, Ranks, init_process_group

PROGRAM = Path(__file__).with_name("rank_program.py")
FRESH = {"fresh": {"hiddenSize": 32, "layers": 2, "heads": 4, "kvHeads": 2, "maxPositionEmbeddings": 64}}
VOCABULARY = 300


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """About 20,000 tokens of made-up prose."""
    root = tmp_path_factory.mktemp("data")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(120)]
    for name, count in (("train", 8000), ("held", 600)):
        (root / f"{name}.txt").write_text(" ".join(draw.choices(words, k=count)))
    data = Data(
        sources=[DataSource(uri=str(root / "train.txt"))],
        eval_sources=[DataSource(uri=str(root / "held.txt"))],
        sequence_length=32,
    )
    tokenizer = Tokenizer(train=TrainTokenizer(vocab_size=VOCABULARY))
    model = TrainingModel.model_validate(FRESH)
    return prepare(data, tokenizer, model, Storage(root / "cache", field="cache"), progress=lambda _: None)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunSpec]:
    """A run contract: `make_run(strategy={"ddp": {}}, training={"steps": 3})`, each with storage of its own."""

    def make(*, storage: str | Path | None = None, world: int = 2, **changes: Any) -> RunSpec:
        root = tmp_path_factory.mktemp("run")
        training = {"globalBatchSize": 8, "microBatchSize": 2, "precision": "fp32", "steps": 6}
        document: dict[str, Any] = {
            "namespace": "default",
            "name": "test",
            "uid": "uid-1",
            "attempt": 1,
            "storage": str(storage or root / "storage"),
            "cache": str(root / "cache"),
            "model": FRESH,
            "tokenizer": {"train": {"vocabSize": VOCABULARY}},
            "data": {"sources": [{"uri": "/data/train.txt"}], "sequenceLength": 32},
            "training": {**training, "optimizer": {"learningRate": "3e-3"}, **changes.pop("training", {})},
            "strategy": {"ddp": {}},
            "workers": {"count": world},
            "checkpoint": {"everySteps": 100},
            **changes,
        }
        return RunSpec.model_validate(document)

    return make


@dataclass(frozen=True)
class RankEnd:
    """How one rank process ended: its exit code and what it wrote down (None if it was killed before)."""

    exit_code: int | None
    said: dict[str, Any] | None
    seconds: float

    def __getitem__(self, key: str) -> Any:
        assert self.said is not None, f"the rank said nothing; exit code {self.exit_code}"
        return self.said[key]


@pytest.fixture(scope="session")
def launch(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[RankEnd]]:
    """Run rank_program.py on some ranks: `launch(run, exit_after={1: 5})`. Kills what is left at the deadline."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["slipway_jobs.train.engine", "slipway_jobs.train.strategies.fsdp", "transformers.models.llama.modeling_llama"]
    )

    def start(run: RunSpec, *, world: int = 2, timeout: float = 90, **job: Any) -> list[RankEnd]:
        folder = tmp_path_factory.mktemp("ranks")
        port = free_port()
        common = {
            "world": world,
            "init_method": f"tcp://127.0.0.1:{port}",
            "run": run.model_dump_json(by_alias=True),
            "prepared": prepared,
            **job,
        }
        processes = []
        for rank in range(world):
            out = folder / f"rank-{rank}.json"
            arguments = {"init_globals": {"JOB": {**common, "rank": rank, "out": str(out)}}, "run_name": "__main__"}
            process = server.Process(target=runpy.run_path, args=(str(PROGRAM),), kwargs=arguments)
            process.start()
            processes.append((process, out))
        started, ends = time.monotonic(), []
        for process, out in processes:
            if job.get("hang_at", {}).get(len(ends)) is not None:
                continue  # it was stopped, and never ends by itself
            process.join(max(0.1, started + timeout - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
                pytest.fail(f"a rank was still running after {timeout} s")
            said = json.loads(out.read_text()) if out.exists() else None
            ends.append(RankEnd(process.exitcode, said, time.monotonic() - started))
        for process, _ in processes:
            process.kill()
        return ends

    return start


@pytest.fixture(scope="session")
def alone() -> Iterator[RankContext]:
    """This process as a world of one."""
    torch.set_num_threads(1)
    context = init_process_group(0, 1, 0, init_method=f"tcp://127.0.0.1:{free_port()}")
    yield context
    dist.destroy_process_group()


@pytest.fixture
def ranks_alone(alone: RankContext) -> Iterator[Ranks]:
    """Agreement with oneself."""
    ranks = Ranks(alone)
    yield ranks
    ranks.close()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
