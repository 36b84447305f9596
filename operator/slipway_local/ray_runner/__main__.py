"""`python -m slipway_local.ray_runner --kubeconfig FILE --state-dir DIR`: the runner as a process.

SIGTERM ends the runner and leaves Ray with its jobs and services running: the next runner takes them over. Ray is
ended by `slipway down`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path

from slipway_local.machine import detect
from slipway_local.ray_runner.head import HeadOptions, RayHead
from slipway_local.ray_runner.keeper import RayKeeper
from slipway_local.ray_runner.lookup import Lookup
from slipway_local.ray_runner.room import Room
from slipway_local.ray_runner.runner import Runner
from slipway_local.ray_runner.runs import Runs
from slipway_local.ray_runner.service_runner import ServiceRunner
from slipway_local.ray_runner.services import Services
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.logs import configure
from slipway_operator.kube.manager import Manager

log = logging.getLogger("slipway_local.ray_runner")

_KUBECONFIG_TIMEOUT = 60.0


def main() -> int:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m slipway_local.ray_runner", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="waited for, if it is not there yet")
    parser.add_argument("--state-dir", type=Path, required=True, help="where runs, logs and Ray's record are kept")
    parser.add_argument("--cpus", type=int, default=None, help="CPUs that jobs may use (default: all)")
    arguments = parser.parse_args()
    configure()
    return asyncio.run(_run(arguments.kubeconfig, arguments.state_dir.absolute(), arguments.cpus))


async def _run(kubeconfig: Path, state_dir: Path, cpus: int | None) -> int:
    machine = detect(cpus)
    keeper = RayKeeper(RayHead(state_dir, HeadOptions(cpus=machine.cpus)), machine)
    # Ray takes seconds to start; the API server may come up meanwhile.
    keeping = asyncio.create_task(keeper.run())
    try:
        deadline = time.monotonic() + _KUBECONFIG_TIMEOUT
        while not kubeconfig.exists():
            if time.monotonic() > deadline:
                log.error("no %s after %.0f s", kubeconfig, _KUBECONFIG_TIMEOUT)
                return 1
            await asyncio.sleep(0.05)
        async with Client(await load_config(str(kubeconfig)), user_agent="slipway-ray-runner") as client:
            room, services = Room(), Services(state_dir, keeper, Lookup(client))
            runners = (
                Runner(client, keeper, runs=Runs(state_dir, keeper, Lookup(client)), room=room),
                ServiceRunner(client, keeper, services=services, room=room),
            )

            async def keep() -> None:
                await keeping

            manager = Manager(
                reflectors=[runner.reflector for runner in runners],
                controllers=[runner.controller for runner in runners],
                services=[keep],
            )
            manager.stop_on_signals()
            try:
                await manager.run()
            finally:
                await services.close()
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
    return 0


if __name__ == "__main__":
    sys.exit(main())
