"""kubectl as a program that tests run, and the manifest that they apply."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

TRAIN_JOB = """
apiVersion: slipway.dev/v1alpha1
kind: TrainJob
metadata:
  name: demo
  labels: {team: language}
spec:
  model: {fresh: {hiddenSize: 64, layers: 2, heads: 4}}
  tokenizer: {train: {vocabSize: 1024}}
  data:
    sources:
      - {uri: "python://stdlib", format: text, textField: text, include: ["*.py"], exclude: []}
  training: {steps: 10, globalBatchSize: 16}
  workers: {count: 2}
"""


class Kubectl:
    """Runs kubectl in a namespace of its own."""

    def __init__(self, program: str, kubeconfig: Path, home: Path, namespace: str) -> None:
        self._program = program
        self.namespace = namespace
        self.home = home
        self._env = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(home)}
        self._env.pop("KUBECTL_EXTERNAL_DIFF", None)

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [self._program, "--namespace", self.namespace, *words]

    def run(self, *words: str, stdin: str | None = None, ok: bool = True, env: dict[str, str] | None = None) -> str:
        """What it prints on stdout and stderr together; `ok=False` expects it to fail."""
        done = subprocess.run(
            self.command(*words),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=self._env | (env or {}),
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, f"{' '.join(words)}: exit {done.returncode}\n{output}"
        return output

    def object(self, *words: str) -> dict[str, Any]:
        """`kubectl get ... -o json`"""
        loaded: dict[str, Any] = orjson.loads(self.run("get", *words, "-o", "json"))
        return loaded

    def until_it_succeeds(self, *words: str, stdin: str | None = None, seconds: float = 10.0) -> str:
        """What it prints when it succeeds, tried again and again; for a kind that a server is only just serving."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                return self.run(*words, stdin=stdin)
            except AssertionError:
                self.forget()
                time.sleep(0.2)
        return self.run(*words, stdin=stdin)

    def forget(self) -> None:
        """Makes it ask again which kinds there are, which it remembers for a while."""
        shutil.rmtree(self.home / ".kube", ignore_errors=True)

    @contextmanager
    def background(self, *words: str) -> Iterator[list[str]]:
        """A kubectl that goes on; its lines as they come."""
        child = subprocess.Popen(
            self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._env
        )
        lines: list[str] = []

        def read() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                lines.append(line)  # noqa: PERF402 - the other thread reads them as they come

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield lines
        finally:
            child.terminate()
            child.wait(10)
            thread.join(10)

    def until(self, lines: list[str], words: str, seconds: float = 10.0) -> str:
        """The first line that holds these words."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(lines):
                if words in line:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"{words!r} not in {lines}")
