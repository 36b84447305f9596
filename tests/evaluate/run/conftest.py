"""What the tests of evaluations share: tiny models with random weights, in a directory each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from slipway_api.run import EvalRunSpec
from slipway_jobs.data.tokenizer import train_bpe
from slipway_jobs.evaluate.scoring.model import ScoringModel

VOCABULARY = 320
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards quietly box up many jars of honey"
WORDS = TEXT.split()


def text_of(words: int, seed: int = 0) -> str:
    """Deterministic prose of so many words."""
    return " ".join(WORDS[(seed * 31 + place * place * 7 + place) % len(WORDS)] for place in range(words))


def make_model(
    directory: Path, *, seed: int = 0, vocabulary: int = VOCABULARY, length: int = 128, poison: str = ""
) -> Path:
    """A Llama of two layers with random weights that are large enough to have opinions, and its tokenizer.

    Reading the character `poison` gives NaN.
    """
    directory.mkdir(parents=True, exist_ok=True)
    train_bpe([text_of(400, seed=1)], VOCABULARY, directory)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=not poison,
    )
    torch.manual_seed(seed)
    lm = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
        if poison:
            tokenizer = AutoTokenizer.from_pretrained(directory)
            (token,) = tokenizer.encode(poison, add_special_tokens=False)
            lm.get_input_embeddings().weight[token] = float("nan")
            lm.get_output_embeddings().weight[token] = 0  # so that it is not written by itself
    lm.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def model(model_dir: Path) -> ScoringModel:
    return load(model_dir)


def load(directory: Path, **options: Any) -> ScoringModel:
    return ScoringModel.load(directory, str(directory), **{"batch_tokens": 512, **options})


# --- data ---------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path: Path, **more: Any) -> dict[str, Any]:
    return {"sources": [{"uri": str(path), **({"format": "jsonl"} if path.suffix == ".jsonl" else {}), **more}]}


def make_run(folder: Path, suites: list[dict[str, Any]], model: Path, **changes: Any) -> EvalRunSpec:
    """A run on one worker, everything below `folder`. `changes` are top-level fields, camelCase."""
    document: dict[str, Any] = {
        "namespace": "default",
        "name": "measured",
        "uid": f"uid-{folder.name}",
        "attempt": 1,
        "storage": str(folder / "store" / "job"),
        "cache": str(folder / "store" / "cache"),
        "results": str(folder / "store" / "eval"),
        "model": {"uri": str(model)},
        "suites": suites,
        "metrics": ["auto"],
        "confidences": ["0.95"],
        "batchTokens": 512,
        "workers": {"count": 1, "resources": {"cpu": "1"}},
    }
    document.update(changes)
    return EvalRunSpec.model_validate(document)


# --- processes ----------------------------------------------------------------------------------------------------


class RayHead:
    """A Ray head of our own on free ports: two CPUs, token authentication, no dashboard."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sle", dir="/tmp", ignore_cleanup_errors=True)
        port = _free_port()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLIPWAY_"))} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": hashlib.sha256(os.urandom(16)).hexdigest(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # As slipway_local starts it: with workers that are forks.
        command = [sys.executable, "-P", "-m", "slipway_local.ray_runner.fork_server.start", self._folder.name]
        command += ["start", "--head", "--block", f"--port={port}"]
        command += [f"--temp-dir={self._folder.name}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
        starting = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        log = Path(self._folder.name, "head.log")
        with log.open("wb") as stream:
            self._head = subprocess.Popen(command, env=starting, stdout=stream, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (said := log.read_text()):
            assert self._head.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def workers(self) -> list[psutil.Process]:
        """The processes of evaluation workers."""
        found = []
        for process in psutil.Process(self._head.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):  # IndexError: it is about to be gone
                if process.cmdline()[0].startswith("ray::EvalWorker"):
                    found.append(process)
        return found

    def frozen_worker(self, known: Sequence[psutil.Process] = ()) -> psutil.Process:
        """A worker that is none of the `known`, stopped (SIGSTOP) as soon as its process is there.

        What it has been given stays undone, so its run cannot end before it is killed.
        """
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            for process in self.workers():
                if process not in known:
                    process.suspend()
                    return process
            time.sleep(0.02)
        raise AssertionError("no worker in 90 s")

    def close(self) -> None:
        """SIGKILL, by pid: a head that drains takes half a minute."""
        for process in [*psutil.Process(self._head.pid).children(recursive=True), psutil.Process(self._head.pid)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._head.wait(timeout=10)
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    head = RayHead()
    yield head
    head.close()


class Run:
    """One attempt as a process of its own, as Ray's job supervisor starts it."""

    def __init__(self, spec: EvalRunSpec, environment: dict[str, str] | None = None) -> None:
        self.spec = spec
        self.store = Path(spec.storage)
        self.output = Path(spec.storage).parent / f"output-{spec.attempt}-{time.monotonic_ns()}.txt"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        kept = environment or {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLIPWAY_"))}
        more = {"SLIPWAY_RUN": json.dumps(spec.to_wire()), "SLIPWAY_END_REPORT_SECONDS": "10", "HF_HUB_OFFLINE": "1"}
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slipway_jobs.evaluate"],
                env=kept | more,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout: float = 200) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.text()[-4000:]}") from None

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def results(self) -> dict[str, Any]:
        """results.json of the job."""
        found: dict[str, Any] = json.loads((self.store / "results" / "results.json").read_bytes())
        return found

    def wait_until(self, condition: Callable[[], object], what: str, timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.text()[-4000:]}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.text()[-4000:]}"
            time.sleep(0.02)
