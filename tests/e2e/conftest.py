"""One whole stack per session: `slipway up` in a folder of its own, judged from outside with kubectl."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

BIN = Path(sys.executable).parent


@dataclass
class Stack:
    """A running control plane and how to talk to it."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUBECONFIG", "RAY_", "SLIPWAY_"))}
        return kept | {
            "SLIPWAY_HOME": str(self.home),
            "KUBECONFIG": str(self.home / "apiserver" / "kubeconfig"),
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, *command: str, stdin: str | None = None, timeout: float = 300, check: bool = True) -> str:
        """Run a command against this stack; its output."""
        result = subprocess.run(
            command, env=self.environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result.stdout + result.stderr

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """kubectl where there is one; else the same words to slipway, which knows those that tests use."""
        return self.run("kubectl" if shutil.which("kubectl") else "slipway", *arguments, **options)

    def apply(self, *objects: dict[str, Any], check: bool = True) -> str:
        # JSON: a YAML 1.1 reader would take an unquoted 3e-3 for a number.
        together = {"apiVersion": "v1", "kind": "List", "items": objects}
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(together), check=check)

    def get(self, name: str, resource: str = "trainjobs") -> dict[str, Any]:
        """One of our objects, by plain HTTPS: a kubectl for each poll would take the CPU that training needs."""
        config = yaml.safe_load((self.home / "apiserver" / "kubeconfig").read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        request = urllib.request.Request(
            f"{cluster['server']}/apis/slipway.dev/v1alpha1/namespaces/default/{resource}/{name}",
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
        )
        trust = ssl.create_default_context(cadata=authority)
        with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def status(self, name: str, resource: str = "trainjobs") -> dict[str, Any]:
        status: dict[str, Any] = self.get(name, resource).get("status") or {}
        return status

    def wait(
        self,
        name: str,
        until: Callable[[dict[str, Any]], Any],
        timeout: float = 180,
        resource: str = "trainjobs",
    ) -> dict[str, Any]:
        """Poll the object's status until the condition holds; the status."""
        deadline = time.monotonic() + timeout
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            status = self.status(name, resource)
            if until(status):
                return status
            time.sleep(0.2)
        logs = self.run("slipway", "logs", f"tj/{name}", "--tail", "60", check=False)
        raise AssertionError(f"{name}: not in {timeout} s; status {json.dumps(status, indent=1)}\n{logs}")

    def finish(self, name: str, timeout: float = 180) -> dict[str, Any]:
        """Wait for the end; the status. Fails when the job has failed."""
        status = self.wait(name, finished, timeout)
        assert condition(status, "Succeeded")[0] == "True", json.dumps(status, indent=1)
        return status

    def storage(self, status: dict[str, Any]) -> Path:
        return Path(str(status["storage"]).removeprefix("file://"))

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of this stack whose command line holds all these words."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            line = " ".join(process.info["cmdline"] or [])
            if all(word in line for word in words) and self._ours(process):
                found.append(process)
        return found

    def _ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("SLIPWAY_HOME") == str(self.home)
        except (psutil.Error, OSError):
            return False


def condition(status: dict[str, Any], type_: str) -> tuple[str, str, str]:
    """(status, reason, message) of a condition; ("", "", "") when it is not there."""
    found = next((c for c in status.get("conditions", []) if c["type"] == type_), None)
    return (found["status"], found["reason"], found["message"]) if found else ("", "", "")


def finished(status: dict[str, Any]) -> bool:
    return "True" in (condition(status, "Succeeded")[0], condition(status, "Failed")[0])


def weights(directory: Path) -> str:
    """One digest over a model directory's weight files."""
    digest = hashlib.sha256()
    files = sorted(directory.glob("*.safetensors"))
    assert files, f"no weights in {directory}"
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus that is always the same: numbered sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    verbs = ["reads", "writes", "keeps", "drops", "waits for", "starts"]
    for part in range(8):
        lines = [
            f"Node {i} {verbs[(i * part) % len(verbs)]} shard {(i * 7 + part) % 97} at step {i * part}."
            for i in range(400)
        ]
        (folder / f"part-{part}.txt").write_text("\n".join(lines))
    return folder


def train_job(name: str, corpus: Path, **changes: Any) -> dict[str, Any]:
    """A small TrainJob, some seconds of training; `changes` replaces top-level fields of spec."""
    spec: dict[str, Any] = {
        "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4, "maxPositionEmbeddings": 128}},
        "tokenizer": {"train": {"vocabSize": 512}},
        "data": {
            "sources": [{"uri": corpus.as_uri(), "exclude": ["part-7.txt"]}],
            "evalSources": [{"uri": corpus.as_uri(), "include": ["part-7.txt"]}],
            "sequenceLength": 64,
        },
        "training": {
            "steps": 20,
            "globalBatchSize": 8,
            "microBatchSize": 2,
            "precision": "fp32",
            "optimizer": {"learningRate": "3e-3"},
        },
        "strategy": {"fsdp": {}},
        "workers": {"count": 2, "resources": {"cpu": "1", "memory": "512Mi"}},
        "checkpoint": {"everySteps": 10},
        "retry": {"backoffSeconds": 1},
    }
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec | changes,
    }


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`slipway up`; and `slipway down` at the end."""
    stack = Stack(tmp_path_factory.mktemp("slipway"))
    stack.run("slipway", "up", timeout=120)
    try:
        yield stack
    finally:
        stack.run("slipway", "down", timeout=60)
        left = [p for p in stack.processes() if p.pid != os.getpid()]
        assert not left, f"slipway down left {left}"
