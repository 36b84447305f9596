"""The real KubeRay operator as a process. There is no kubelet and no head to talk to: it makes objects, and waits."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from slipway_local.kubernetes import binaries


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def kuberay(kubeconfig: Path, folder: Path, limit: float = 60.0) -> Iterator[Path]:
    """KubeRay's manager at work; yields its log. Without leader election and webhooks, and only on loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    log, health = folder / "kuberay-operator.log", free_port()
    command = [
        str(binaries.find("kuberay-operator")),
        f"--kubeconfig={kubeconfig}",
        "--enable-leader-election=false",
        f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--metrics-addr=127.0.0.1:{free_port()}",
        "--reconcile-concurrency=4",
    ]
    with manager("KubeRay", command, log, lambda: answers(f"http://127.0.0.1:{health}/readyz"), limit):
        yield log


@contextlib.contextmanager
def manager(
    name: str, command: list[str], log: Path, ready: Callable[[], bool], limit: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A controller manager as a process, once `ready` says so; killed at the end."""
    environment = {n: v for n, v in os.environ.items() if n != "ENABLE_WEBHOOKS" and not n.lower().endswith("_proxy")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + limit
        while not ready():
            tail = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"{name} has ended: {tail}"
            assert time.monotonic() < deadline, f"{name} is not ready after {limit:g} s: {tail}"
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait(10)


def answers(url: str) -> bool:
    """Whether a GET of this URL is 200."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
