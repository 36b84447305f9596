"""`python -m slipway_local.supervisor --state-dir DIR`: keeps the parts of the local control plane alive.

It starts the API server, the Ray runner and the operator, starts again whatever ends (after a wait that doubles while
it keeps ending), and bounds their logs. Parts live in sessions of their own: when the supervisor is killed, they go on,
and the next one takes them over by pid and start time. SIGTERM ends everything in order, Ray and running jobs included.

It never looks into what the parts do; whether they are ready is for `up` to find out.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from slipway_local.down import stop_everything
from slipway_local.layout import Layout
from slipway_local.lock import locked
from slipway_local.machine import detect
from slipway_local.parts import (
    OPERATOR,
    SUPERVISED,
    Part,
    choose_ports,
    environment,
    known_ports,
    parts,
    write_operator_config,
)
from slipway_local.processes import ProcessRef, marked, read_json, stop, wait_gone, write_json
from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.logs import configure

log = logging.getLogger("slipway_local.supervisor")

_LOG_LIMIT = 16 * 1024**2
_LOG_CHECK = 10.0
_POLL_ADOPTED = 0.2
_SETTLED_AFTER = 20.0
_BACKOFF = Backoff(0.2, 10.0)
_KUBECONFIG_WAIT = 30.0


class AlreadyRunning(Exception):  # noqa: N818
    """Another supervisor serves this state directory."""


class Supervisor:
    """Keeps the parts of one state directory running."""

    def __init__(self, layout: Layout, *, cpus: int | None = None, rng: random.Random | None = None) -> None:
        self._layout = layout
        self._cpus = cpus
        self._rng = rng or random.Random()
        self._children: dict[str, dict[str, Any]] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then everything is ended. Raises AlreadyRunning."""
        self._layout.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._layout.logs.mkdir(exist_ok=True, mode=0o700)
        with locked(self._layout.lock, AlreadyRunning(f"another supervisor holds {self._layout.lock}")):
            me = ProcessRef.of(os.getpid())
            assert me is not None
            write_json(self._layout.supervisor, me.to_json())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
            wanted = await self._prepare()
            tasks = [asyncio.create_task(self._keep(part), name=part.name) for part in wanted]
            tasks.append(asyncio.create_task(self._bound_logs(), name="logs"))
            tasks.append(asyncio.create_task(self._stop_asked(), name="stop"))
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()  # only "stop" ends by itself; any other had an error of ours
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            log.info("stopping everything")
            await stop_everything(self._layout, but=me)
            self._layout.supervisor.unlink(missing_ok=True)

    async def _stop_asked(self) -> None:
        await self._stop.wait()

    async def _prepare(self) -> list[Part]:
        """Finds what an earlier supervisor left; ends what does not fit; writes the configuration."""
        record = read_json(self._layout.children)
        left = record if isinstance(record, dict) else {}
        living = {name: child for name, child in left.items() if (ref := _ref(child)) is not None and ref.alive()}
        known = known_ports(self._layout) if living else None
        ports = known or choose_ports(self._layout)
        changed = write_operator_config(self._layout, ports, detect(self._cpus))
        wanted = parts(self._layout, self._cpus)
        for name, child in living.items():
            part = wanted.get(name)
            if part is not None and child.get("command") == list(part.command) and not (changed and name == OPERATOR):
                self._children[name] = child
        kept = {ref for child in self._children.values() if (ref := _ref(child)) is not None}
        # Also what a supervisor that was killed between starting a part and writing it down has left.
        here = str(self._layout.state_dir)
        modules = {part.command[3] for part in wanted.values()}

        def strangers() -> list[ProcessRef]:
            return [ref for ref in marked(SUPERVISED, here) if ref not in kept and _runs(ref, modules)]

        await stop(strangers, grace=5.0)
        return list(wanted.values())

    async def _keep(self, part: Part) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        if part.name == OPERATOR:
            await self._kubeconfig()
        while True:
            started = loop.time()
            adopted = _ref(self._children.get(part.name))
            if adopted is not None and adopted.alive():
                log.info("took over %s (pid %d)", part.name, adopted.pid)
                await _ended(adopted)
                code = None
            else:
                code = await self._start_and_wait(part, failures)
            failures = 0 if loop.time() - started >= _SETTLED_AFTER else failures + 1
            delay = _BACKOFF.delay(max(1, failures), self._rng)
            log.warning("%s ended (exit code %s), starting it again in %.1f s", part.name, code, delay)
            self._record(part, None, failures, code)
            await asyncio.sleep(delay)

    async def _start_and_wait(self, part: Part, failures: int) -> int | None:
        with self._layout.log(part.name).open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *part.command,
                cwd=self._layout.state_dir,
                env=environment(self._layout),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        log.info("started %s (pid %d)", part.name, process.pid)
        self._record(part, ProcessRef.of(process.pid), failures)
        return await process.wait()

    def _record(self, part: Part, ref: ProcessRef | None, failures: int, code: int | None = None) -> None:
        """`failures`: how often it ended in a row soon after its start, `code` how the last time."""
        last = code if ref is None else self._children.get(part.name, {}).get("lastExitCode")
        self._children[part.name] = {
            **(ref.to_json() if ref else {}),
            "command": list(part.command),
            "failures": failures,
            "lastExitCode": last,
        }
        write_json(self._layout.children, self._children)

    async def _kubeconfig(self) -> None:
        """The operator does not start without one; on the very first start the API server is still writing it."""
        deadline = asyncio.get_running_loop().time() + _KUBECONFIG_WAIT
        while asyncio.get_running_loop().time() < deadline:
            if self._layout.kubeconfig.exists():
                return
            await asyncio.sleep(0.02)

    async def _bound_logs(self) -> None:
        while True:
            for path in self._layout.logs.glob("*.log"):
                bound_log(path)
            await asyncio.sleep(_LOG_CHECK)


def bound_log(path: Path, limit: int = _LOG_LIMIT) -> None:
    """Moves the content of a log that has grown beyond `limit` bytes to `<name>.1`.

    It is copied and cut, because its writer keeps the file open; writers append, so they go on at the new end. What is
    written in the instant between the two is lost.
    """
    if path.stat().st_size <= limit:
        return
    with path.open("rb+") as file:
        file.seek(-limit, os.SEEK_END)
        path.with_name(f"{path.name}.1").write_bytes(file.read())
        file.truncate(0)


def _ref(child: Any) -> ProcessRef | None:
    try:
        return ProcessRef.from_json(child)
    except (KeyError, TypeError, ValueError):
        return None


async def _ended(ref: ProcessRef) -> None:
    """Returns when a process that is not our child has ended: the kernel tells only its parent."""
    while not await wait_gone(lambda: [ref], seconds=60.0, poll=_POLL_ADOPTED):
        pass


def _runs(ref: ProcessRef, modules: set[str]) -> bool:
    """Whether it is a part, and not something that a part has started."""
    try:
        words = Path(f"/proc/{ref.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return "-m" in words[:4] and any(word in modules for word in words[:5])


def main() -> int:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m slipway_local.supervisor", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--cpus", type=int, default=None, help="CPUs that runs may use (default: all)")
    arguments = parser.parse_args()
    configure()
    try:
        asyncio.run(Supervisor(Layout(arguments.state_dir.absolute()), cpus=arguments.cpus).run())
    except AlreadyRunning as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
