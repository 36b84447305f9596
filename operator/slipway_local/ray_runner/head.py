"""The local Ray head: starts it, finds it again after a restart of the runner, notices its death, stops it.

It is bound to loopback and always asks for a token. `ray stop` is never used, because it ends every Ray of the machine.
Instead all processes of the head are known by the session (`setsid`) that `ray start` runs in, and by a variable in
their environment; what is recorded before `ray start` runs is enough to clean up after a crash in the middle of it.

Ray 2.60 replaces a --node-ip-address of 127.0.0.1 by the machine's outward address, and then listens there. It stays on
loopback only when its switch for machines without cluster support is set (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from slipway_local.processes import ProcessRef, in_session, marked, read_json, stop, write_json, write_private
from slipway_local.ray_runner import serve_proxy
from slipway_local.ray_runner.errors import RayStartFailed, RayUnavailable
from slipway_local.ray_runner.fork_server import start as fork_server_start
from slipway_local.ray_runner.jobs_api import JobsApi, Machine

log = logging.getLogger(__name__)

HEAD_MARK = "SLIPWAY_RAY_HEAD"
# Ray puts sockets up to 70 characters below its directory, and a socket's path may have 107 bytes.
_LONGEST_TEMP_DIR = 34
# Without one of these there is no Ray. (The log monitor and the usage reporter may come and go.)
_CORE = {"gcs_server": "gcs_server", "raylet": "raylet", "dashboard.py": "dashboard"}
_DROPPED_VARIABLES = ("RAY_", "SLIPWAY_", "KUBECONFIG", "VIRTUAL_ENV", "PYTHONPATH")
_OLD_SESSIONS_KEPT = 2


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How to start it. `cpus` are what Ray may hand out; times in seconds, memory in bytes."""

    cpus: int
    object_store: int = 256 * 1024**2
    start_timeout: float = 120.0
    silence_limit: float = 30.0  # a dashboard that does not answer for so long is dead


@dataclass(frozen=True)
class Head:
    """A living head."""

    mark: str
    session: int
    url: str
    session_dir: Path
    core: dict[str, ProcessRef]
    fallback_port: int | None = None
    """Of Ray Serve's own proxy behind HAProxy (serve_proxy.py); None where it is the only one."""

    def dead_part(self) -> str | None:
        """The name of a core process that has died, or None."""
        return next((name for name, ref in self.core.items() if not ref.alive()), None)


class RayHead:
    """The one Ray head of a state directory."""

    def __init__(self, state_dir: Path, options: HeadOptions, *, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is what Ray, and so every job, inherits: this process's by default, less what is ours."""
        self._folder = state_dir / "ray"
        self._log = state_dir / "logs" / "ray-start.log"
        self._record = self._folder / "head.json"
        self._ready = ready_file(state_dir)
        self._token_file = self._folder / "token"
        self._options = options
        self._environment = os.environ if environment is None else environment
        self.temp_dir = _temp_dir(self._folder)
        """Ray's own directory; `purge` removes it."""
        self.fork_dir = self.temp_dir.parent / "fork"
        """Of the process that Ray's workers are forked from; its log is there as well."""
        self._proxy_dir = serve_proxy.directory_for(self._folder)
        self.bin_dir = Path(sys.executable).absolute().parent

    @property
    def token(self) -> str:
        """The token that Ray asks for; made on first use, kept in a file for the owner only."""
        try:
            return self._token_file.read_text().strip()
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self._token_file, secrets.token_hex(32).encode())
            return self._token_file.read_text().strip()

    def api(self, head: Head) -> JobsApi:
        """A client of its Jobs API."""
        return JobsApi(head.url, self.token)

    # -- life ------------------------------------------------------------------------------------------------------

    async def adopt(self) -> Head | None:
        """The head that an earlier runner left, if it lives and answers; else whatever is left of it is ended."""
        head = self._recorded()
        if head is not None and head.dead_part() is None and await self._answers(head):
            log.info("adopted the running Ray head", extra={"session": head.session, "url": head.url})
            return head
        await self.stop()
        return None

    async def start(self) -> Head:
        """Starts a new head and waits until it takes jobs. Raises RayStartFailed; nothing is left running then."""
        await self.stop()
        self._remove_old_sessions()
        for folder in (self._folder, self._log.parent, self.temp_dir.parent, self.fork_dir, self._proxy_dir):
            _make_private(folder)
        self.temp_dir.mkdir(exist_ok=True)
        mark = secrets.token_hex(8)
        write_json(self._record, {"mark": mark})
        try:
            async with asyncio.timeout(self._options.start_timeout):
                head = await self._launch(mark)
                await self._wait_until_ready(head)
        except TimeoutError:
            await self.stop()
            limit = self._options.start_timeout
            raise RayStartFailed(f"Ray was not ready after {limit:.0f} s, see {self._log}") from None
        except BaseException:
            await self.stop()
            raise
        log.info("started a Ray head", extra={"session": head.session, "url": head.url})
        return head

    async def stop(self) -> None:
        """Ends the recorded head and every job on it. Raises RayStartFailed when a process survives SIGKILL."""
        self._ready.unlink(missing_ok=True)
        record = read_json(self._record)
        if isinstance(record, dict) and not await stop(lambda: self._remains(record), grace=2.0):
            left = ", ".join(str(ref.pid) for ref in self._remains(record))
            raise RayStartFailed(f"processes of the old Ray head cannot be ended: {left}")
        shutil.rmtree(self._proxy_dir, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    @property
    def silence_limit(self) -> float:
        """Seconds of silence after which the dashboard counts as dead."""
        return self._options.silence_limit

    def say_ready(self, head: Head) -> None:
        """Tells `slipway up` that jobs can run now, who says so, and where replicas of services write their logs."""
        runner = ProcessRef.of(os.getpid())
        write_json(
            self._ready,
            {
                "url": head.url,
                "runner": runner.to_json() if runner else None,
                "serveLogs": str(head.session_dir / "logs" / "serve"),
            },
        )

    async def machine(self, head: Head) -> Machine:
        """What Ray found on this machine. Raises RayUnavailable."""
        api = self.api(head)
        try:
            machine = await api.machine()
        finally:
            await api.close()
        if machine is None:
            raise RayUnavailable("the node of the Ray head is not up")
        return machine

    # -- start -----------------------------------------------------------------------------------------------------

    async def _launch(self, mark: str) -> Head:
        (port,) = _free_ports(1)
        self.token  # noqa: B018 - the file must be there before Ray looks for it
        command = [
            *(sys.executable, "-P", "-m", fork_server_start.__name__, str(self.fork_dir)),
            *("start", "--head", "--disable-usage-stats"),
            *("--node-ip-address", "127.0.0.1", "--port", "0"),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(port), "--include-dashboard", "true"),
            # The autoscaler's monitor is a Python process to start, for which there is nothing to do on one machine.
            *("--dashboard-agent-listen-port", "0", "--no-monitor"),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--temp-dir", str(self.temp_dir)),
            *("--num-cpus", str(self._options.cpus)),
            *("--object-store-memory", str(self._options.object_store)),
        ]
        environment, fallback_port = self._ray_environment(mark)
        with self._log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self.temp_dir,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        session = process.pid
        if await process.wait() != 0:
            said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise RayStartFailed(f"`ray start` ended with exit code {process.returncode}, see {self._log}: {said[-1]}")
        members = in_session(session)
        session_dir = (self.temp_dir / "session_latest").resolve()
        head = Head(mark, session, f"http://127.0.0.1:{port}", session_dir, _core_of(members), fallback_port)
        missing = set(_CORE.values()) - set(head.core)
        if missing:
            raise RayStartFailed(f"Ray started without {', '.join(sorted(missing))}, see {self._log}")
        write_json(
            self._record,
            {
                "mark": mark,
                "session": session,
                "url": head.url,
                "sessionDir": str(session_dir),
                "fallbackPort": fallback_port,
                "core": {name: ref.to_json() for name, ref in head.core.items()},
                "members": [ref.to_json() for ref in members],
            },
        )
        return head

    def _ray_environment(self, mark: str) -> tuple[dict[str, str], int | None]:
        kept = {name: value for name, value in self._environment.items() if not name.startswith(_DROPPED_VARIABLES)}
        ports = serve_proxy.Ports(*_free_ports(4))
        haproxy = serve_proxy.haproxy(self._proxy_dir, ports)
        environment = {
            **kept,
            HEAD_MARK: mark,
            "SLIPWAY_HOME": str(self._folder.parent),
            "PATH": f"{self.bin_dir}:{kept.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_file),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # On a busy machine the default of 60 s may not be enough, and Ray gives up.
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(int(self._options.start_timeout)),
            **serve_proxy.guard(),
            **haproxy,
        }
        return environment, ports.fallback if haproxy else None

    async def _wait_until_ready(self, head: Head) -> None:
        api = self.api(head)
        try:
            while True:
                with contextlib.suppress(RayUnavailable):
                    if await api.machine() is not None:
                        await api.wake_agent()
                        return
                part = head.dead_part()
                if part is not None:
                    raise RayStartFailed(f"Ray's {part} died right after the start, see {self.temp_dir}")
                await asyncio.sleep(0.05)
        finally:
            await api.close()

    # -- finding it again ------------------------------------------------------------------------------------------

    def _recorded(self) -> Head | None:
        record = read_json(self._record)
        try:
            core = {str(name): ProcessRef.from_json(ref) for name, ref in record["core"].items()}  # type: ignore[index]
            port = record["fallbackPort"]  # type: ignore[index]
            return Head(record["mark"], int(record["session"]), record["url"], Path(record["sessionDir"]), core, port)  # type: ignore[index]
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    async def _answers(self, head: Head) -> bool:
        api = JobsApi(head.url, self.token, timeout=5.0)
        try:
            deadline = asyncio.get_running_loop().time() + self._options.silence_limit
            while asyncio.get_running_loop().time() < deadline:
                try:
                    await api.ping()
                    return True
                except RayUnavailable:
                    if head.dead_part() is not None:
                        return False
                    await asyncio.sleep(0.5)
            return False
        finally:
            await api.close()

    def _remains(self, record: dict[str, Any]) -> list[ProcessRef]:
        """What lives of a head, jobs included, without ever taking in a stranger's process."""
        found = set(marked(HEAD_MARK, str(record.get("mark"))))
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found |= {ref for ref in map(ProcessRef.from_json, record["members"]) if ref.alive()}
        # Some of Ray's processes overwrite their environment with their title, but none leaves its session for one of
        # somebody else's. The kernel reuses the number of a session only after its last member has gone.
        for session in {_session_of(ref) for ref in found} - {None, os.getsid(0)}:
            assert session is not None
            found |= set(in_session(session))
        return [ref for ref in found if ref.pid != os.getpid()]

    def _remove_old_sessions(self) -> None:
        sessions = sorted(path for path in self.temp_dir.glob("session_2*") if path.is_dir() and not path.is_symlink())
        for path in sessions[: max(0, len(sessions) - _OLD_SESSIONS_KEPT)]:
            shutil.rmtree(path, ignore_errors=True)


def ready_file(state_dir: Path) -> Path:
    """Where a runner says that its Ray takes jobs."""
    return state_dir / "ray" / "ready.json"


def _core_of(members: list[ProcessRef]) -> dict[str, ProcessRef]:
    core: dict[str, ProcessRef] = {}
    for ref in members:
        with contextlib.suppress(psutil.Error):
            for word in psutil.Process(ref.pid).cmdline()[:4]:
                name = _CORE.get(Path(word).name)
                if name:
                    core.setdefault(name, ref)
    return core


def _session_of(ref: ProcessRef) -> int | None:
    try:
        return os.getsid(ref.pid)
    except ProcessLookupError:
        return None


def _temp_dir(folder: Path) -> Path:
    """A place for Ray's sockets: below the state directory where that is short enough, else in the temporary folder.

    Ray opens its directory to everybody, so it gets one inside of one that is ours alone.
    """
    if len(os.fsencode(folder / "s")) <= _LONGEST_TEMP_DIR:
        return folder / "s"
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"slipway-{os.getuid()}-{name}" / "s"


def _make_private(folder: Path) -> None:
    """In a folder that everybody writes to, a name that we want may be somebody else's trap."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise RayStartFailed(f"{folder} belongs to somebody else: remove it")
    folder.chmod(0o700)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
