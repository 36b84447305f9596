"""What benchmarks/control_plane.py measures: an API server, the operator and KubeRay's operator, as processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options

REPORTS, METRICS, KUBERAY = "127.0.0.1:18097", "127.0.0.1:18096", "127.0.0.1:18095"
RUN_KEY = b"0123456789abcdef0123456789abcdef"


class Processes:
    """Some processes as one: their CPU time and resident memory."""

    def __init__(self, *pids: int) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]

    def cpu_seconds(self) -> float:
        return float(sum(sum(process.cpu_times()[:2]) for process in self._processes))

    def resident_mib(self) -> float:
        return float(sum(process.memory_info().rss for process in self._processes) / 2**20)


@contextlib.contextmanager
def local_server(home: Path) -> Iterator[tuple[Path, Processes]]:
    """The embedded API server: (kubeconfig, its process)."""
    kubeconfig = home / "apiserver" / "kubeconfig"
    command = ["-m", "slipway_local.apiserver", "--state-dir", str(home / "apiserver")]
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        while not kubeconfig.exists():
            time.sleep(0.02)
        yield kubeconfig, Processes(process.pid)
    finally:
        process.terminate()
        process.wait(15)


@contextlib.contextmanager
def kube_server(home: Path) -> Iterator[tuple[Path, Processes]]:
    """A real etcd (with fsync), kube-apiserver and kube-controller-manager: (kubeconfig, all three)."""
    with ControlPlane(home / "kube", Options()) as plane:
        yield plane.kubeconfig, Processes(*plane.pids.values())


@contextlib.contextmanager
def operator(home: Path, kubeconfig: Path) -> Iterator[Processes]:
    """Our operator as its entry point starts it, without leader election."""
    (home / "key").write_bytes(RUN_KEY)
    config = {
        "storage": {"uri": f"file://{home}/storage"},
        "reports": {"listen": REPORTS, "url": f"http://{REPORTS}", "keyFile": str(home / "key")},
        "metrics": {"listen": METRICS},
        "leaderElection": {"enabled": False},
    }
    (home / "operator.yaml").write_text(yaml.safe_dump(config))
    command = ["-m", "slipway_operator", "--config", str(home / "operator.yaml"), "--kubeconfig", str(kubeconfig)]
    process = subprocess.Popen([sys.executable, *command, "--log-level", "ERROR"])
    try:
        yield Processes(process.pid)
    finally:
        process.terminate()
        process.wait(15)


@contextlib.contextmanager
def kuberay(home: Path, kubeconfig: Path, *flags: str) -> Iterator[Processes]:
    """KubeRay's operator, by itself."""
    host = KUBERAY.rpartition(":")[0]
    command = [
        str(binaries.find("kuberay-operator")),
        f"--kubeconfig={kubeconfig}",
        "--enable-leader-election=false",
        f"--health-probe-bind-address={KUBERAY}",
        f"--metrics-addr={host}:0",
        *flags,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (home / "kuberay.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not _answers(f"http://{KUBERAY}/readyz"):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"KubeRay is not ready: {(home / 'kuberay.log').read_text()[-1000:]}")
            time.sleep(0.1)
        yield Processes(process.pid)
    finally:
        process.kill()
        process.wait(15)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False
