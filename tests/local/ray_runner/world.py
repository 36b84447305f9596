"""An API server, a runner and a Ray of their own, as processes, for the tests that need real ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipway_local.processes import marked
from slipway_local.ray_runner.head import HEAD_MARK, HeadOptions, RayHead, ready_file


@dataclass
class World:
    """A state directory with an API server and a runner, each a process of its own."""

    state: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.state / "apiserver" / "kubeconfig"

    def start(self, module: str, *arguments: str) -> None:
        (self.state / "logs").mkdir(parents=True, exist_ok=True)
        with (self.state / "logs" / f"{module}.log").open("ab") as output:
            self.processes[module] = subprocess.Popen(
                [sys.executable, "-P", "-m", f"slipway_local.{module}", *arguments],
                cwd=self.state,
                stdout=output,
                stderr=output,
            )

    def start_runner(self) -> None:
        self.start("ray_runner", "--kubeconfig", str(self.kubeconfig), "--state-dir", str(self.state), "--cpus", "2")

    def kill_runner(self) -> None:
        runner = self.processes["ray_runner"]
        runner.kill()
        runner.wait()

    @property
    def ray(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.state / "ray" / "head.json").read_text())
        return record

    @property
    def token(self) -> str:
        return (self.state / "ray" / "token").read_text()

    def log(self, name: str) -> str:
        return (self.state / "logs" / "default" / f"{name}.log").read_text()

    def runner_log(self) -> str:
        return (self.state / "logs" / "ray_runner.log").read_text()[-4000:]

    def wait_for_ray(self, limit: float = 90) -> None:
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(OSError, ValueError):
                ready = json.loads(ready_file(self.state).read_text())
                if ready["runner"]["pid"] == self.processes["ray_runner"].pid:
                    return
            assert time.monotonic() < deadline, self.runner_log()
            time.sleep(0.05)


@contextlib.contextmanager
def living_world(state: Path) -> Iterator[World]:
    """Started, ready, and gone without a trace afterwards."""
    world = World(state)
    world.start("apiserver", "--state-dir", str(world.state / "apiserver"))
    try:
        world.start_runner()
        world.wait_for_ray()
        yield world
    finally:
        mark = world.ray["mark"] if (world.state / "ray" / "head.json").exists() else "none"
        for process in reversed(world.processes.values()):
            process.terminate()
            process.wait(20)
        head = RayHead(world.state, HeadOptions(cpus=1))
        asyncio.run(head.stop())
        shutil.rmtree(head.temp_dir.parent, ignore_errors=True)
        assert not marked(HEAD_MARK, mark)
