"""A Ray head of a test's own, without the local control plane around it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from slipway_local.processes import marked
from slipway_local.ray_runner.head import HEAD_MARK


class RayHead:
    """On free ports: two CPUs, token authentication, no dashboard, and workers that are forks, as slipway_local's."""

    def __init__(self) -> None:
        # Short, since Ray's sockets are below it.
        self._folder = tempfile.TemporaryDirectory(prefix="slr", dir="/tmp", ignore_cleanup_errors=True)
        port = free_port()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLIPWAY_"))} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": hashlib.sha256(os.urandom(16)).hexdigest(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray listens on the machine's outward address
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "OMP_NUM_THREADS": "1",
            HEAD_MARK: self._folder.name,
            "HF_HUB_OFFLINE": "1",
        }
        """For processes that are to find it."""
        command = [sys.executable, "-P", "-m", "slipway_local.ray_runner.fork_server.start", self._folder.name]
        command += ["start", "--head", "--block", f"--port={port}"]
        command += [f"--temp-dir={self._folder.name}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
        starting = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        log = Path(self._folder.name, "head.log")
        with log.open("wb") as stream:
            self._head = subprocess.Popen(command, env=starting, stdout=stream, stderr=subprocess.STDOUT)
        try:
            self._wait(log)
        except BaseException:
            self.close()
            raise

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (said := log.read_text()):
            assert self._head.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def actors(self) -> dict[psutil.Process, str]:
        """The processes of actors, by class name."""
        found = {}
        for process in psutil.Process(self._head.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):  # IndexError: it is about to be gone
                title = process.cmdline()[0]
                name = title.removeprefix("ray::").partition(".")[0].strip()
                if title.startswith("ray::") and name not in ("IDLE", "DashboardAgent", "RuntimeEnvAgent"):
                    found[process] = name
        return found

    def actors_of(self, name: str) -> list[psutil.Process]:
        """The processes of the actors of this class."""
        return [process for process, its in self.actors().items() if its == name]

    def frozen_actor(self, name: str, known: Sequence[psutil.Process] = ()) -> psutil.Process:
        """An actor of this class that is none of the `known`, stopped (SIGSTOP) as soon as its process is there.

        What it has been given stays undone, so its run cannot end before it is killed.
        """
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            for process in self.actors_of(name):
                if process not in known:
                    process.suspend()
                    return process
            time.sleep(0.02)
        raise AssertionError(f"no {name} in 90 s")

    def close(self) -> None:
        """SIGKILL, by pid: a head that drains takes half a minute."""
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._head.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        for left in marked(HEAD_MARK, self._folder.name):  # by a head that has ended itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)
        self._head.wait(timeout=10)
        self._folder.cleanup()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
