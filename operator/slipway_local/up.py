"""What `slipway up`, `slipway down` and `slipway status` do: start, find and end the local control plane.

`up` starts a supervisor that outlives it, and waits until everything answers: the API server, our kinds, Ray, and the
operator. It looks at the parts from outside only. Nothing here prints; `progress` gets one line for each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from slipway_local.down import StillRunning, stop_everything
from slipway_local.kubernetes.binaries import SERVERS, MissingBinaryError, find
from slipway_local.layout import Layout
from slipway_local.parts import (
    API_SERVER,
    OPERATOR,
    RAY_RUNNER,
    ControlPlaneKind,
    choose_control_plane,
    environment,
    known_control_plane,
    known_ports,
)
from slipway_local.processes import ProcessRef, read_json, wait_gone
from slipway_local.ray_runner.head import HeadOptions, RayHead, ready_file
from slipway_local.service_list import LocalService, list_services
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import ConfigError, KubeError

SUPERVISOR = "supervisor"
_SUPERVISOR_STOP = 40.0
_KINDS = {"slipway.dev/v1alpha1": "trainjobs", "ray.io/v1": "rayjobs"}
_HOPELESS = 3  # ends of one part before it was ever ready

Progress = Callable[[str], None]


class UpError(Exception):
    """The control plane did not come up, or does not go down. The message says which part, and shows its log's end."""


@dataclass(frozen=True, slots=True)
class UpResult:
    """A control plane that is ready."""

    kubeconfig: Path
    url: str
    storage: str
    already_running: bool


@dataclass(frozen=True)
class LocalStatus:
    """What runs. `parts` are the pids of the living, `problems` what is not as it should be, by part."""

    running: bool
    ready: bool
    parts: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    kubeconfig: Path | None = None
    dashboard: str | None = None
    services: tuple[LocalService, ...] = ()
    serve_logs: Path | None = None
    """Where Ray keeps what the replicas of services print."""


async def up(
    state_dir: Path,
    *,
    timeout: float = 90.0,  # noqa: ASYNC109 - the message of its end says what is not ready
    cpus: int | None = None,
    control_plane: ControlPlaneKind = "embedded",
    progress: Progress = lambda line: None,
) -> UpResult:
    """Starts what does not run yet, and returns when all of it is ready. Raises UpError.

    `timeout` in seconds; `cpus` is how many runs may use (default: all), `control_plane` which API server they work
    against: both count only when something is started, and asking for another API server than the one that runs is an
    error. A real one needs the programs that `slipway_local.kubernetes.binaries` looks for.
    """
    layout = Layout(state_dir.absolute())
    if control_plane == "kubernetes":
        _check_real_control_plane(layout)
    if not await _problems(layout):
        return await _result(layout, already_running=True)
    layout.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    layout.logs.mkdir(exist_ok=True, mode=0o700)
    started_one = None
    if _supervisor(layout) is None:
        progress("starting the control plane")
        if not any(ref.alive() for ref in _children(layout).values()):
            choose_control_plane(layout, control_plane)
        started_one = await asyncio.to_thread(_start_supervisor, layout, cpus)
    try:
        async with asyncio.timeout(timeout):
            for name, says, check in _checks(layout):
                started = time.monotonic()
                await _until(layout, name, check, started_one)
                progress(f"{says} ({time.monotonic() - started:.1f} s)")
    except TimeoutError:
        problems = await _problems(layout)
        name = next(iter(problems), SUPERVISOR)
        why = problems.get(name, "unknown")
        raise UpError(f"not ready after {timeout:.0f} s: {name}: {why}\n{_tail(layout, name)}") from None
    return await _result(layout, already_running=False)


async def down(state_dir: Path, *, purge: bool = False, progress: Progress = lambda line: None) -> bool:
    """Ends everything, Ray and running jobs included; whether anything was running. Raises UpError.

    All data stays, and the next `up` goes on with it, unless `purge` removes the state directory.
    """
    layout = Layout(state_dir.absolute())
    running = bool((await status(state_dir)).parts)
    supervisor = _supervisor(layout)
    if supervisor is not None:
        progress("stopping the control plane")
        supervisor.signal(signal.SIGTERM)
        if not await wait_gone(lambda: [supervisor], seconds=_SUPERVISOR_STOP):
            supervisor.signal(signal.SIGKILL)
    try:
        # Finds nothing, unless the supervisor was killed before or just now.
        await stop_everything(layout)
    except StillRunning as error:
        raise UpError(str(error)) from error
    for path in (layout.supervisor, layout.children):
        path.unlink(missing_ok=True)
    if purge and layout.lock.exists():  # or it is no state directory of ours
        await asyncio.to_thread(_purge, layout)
    return running


async def status(state_dir: Path) -> LocalStatus:
    """What runs, and whether it is ready. Changes nothing."""
    layout = Layout(state_dir.absolute())
    found = {name: ref.pid for name, ref in _children(layout).items() if ref.alive()}
    supervisor = _supervisor(layout)
    if supervisor is not None:
        found[SUPERVISOR] = supervisor.pid
    problems = await _problems(layout)
    ready = read_json(ready_file(layout.state_dir))
    return LocalStatus(
        running=supervisor is not None,
        ready=not problems,
        parts=found,
        problems=problems,
        kubeconfig=layout.kubeconfig if layout.kubeconfig.exists() else None,
        dashboard=str(ready["url"]) if isinstance(ready, dict) and not problems.get(RAY_RUNNER) else None,
        services=await list_services(layout) if API_SERVER not in problems else (),
        serve_logs=Path(ready["serveLogs"]) if isinstance(ready, dict) and "serveLogs" in ready else None,
    )


# -- readiness -----------------------------------------------------------------------------------------------------

Check = Callable[[Layout], Awaitable[str | None]]


def _checks(layout: Layout) -> list[tuple[str, str, Check]]:
    return [
        (SUPERVISOR, "supervisor runs", _supervisor_problem),
        (API_SERVER, "API server answers and serves our kinds", _api_problem),
        (RAY_RUNNER, "Ray takes jobs", _ray_problem),
        (OPERATOR, "operator is ready", _operator_problem),
    ]


async def _problems(layout: Layout) -> dict[str, str]:
    answers = await asyncio.gather(*(check(layout) for _, _, check in _checks(layout)))
    return {name: why for (name, _, _), why in zip(_checks(layout), answers, strict=True) if why is not None}


async def _until(layout: Layout, name: str, check: Check, supervisor: subprocess.Popen[bytes] | None) -> None:
    while (why := await check(layout)) is not None:
        if supervisor is not None and supervisor.poll() is not None and _supervisor(layout) is None:
            raise UpError(f"the supervisor ended (exit code {supervisor.returncode})\n{_tail(layout, SUPERVISOR)}")
        record = read_json(layout.children)
        child = record.get(name, {}) if isinstance(record, dict) else {}
        if isinstance(child, dict) and int(child.get("failures", 0)) >= _HOPELESS:
            code = child.get("lastExitCode")
            raise UpError(f"{name} keeps ending (exit code {code}): {why}\n{_tail(layout, name)}")
        await asyncio.sleep(0.05)


async def _supervisor_problem(layout: Layout) -> str | None:
    return None if _supervisor(layout) is not None else "does not run"


async def _api_problem(layout: Layout) -> str | None:
    if not layout.kubeconfig.exists():
        return "has not written its kubeconfig yet"
    try:
        async with Client(await load_config(str(layout.kubeconfig)), attempts=1, request_timeout=5.0) as client:
            for group_version, plural in _KINDS.items():
                served = {resource.get("name") for resource in await client.discover(group_version)}
                if plural not in served:
                    return f"does not serve {plural} of {group_version}"
    except (KubeError, ConfigError) as error:
        return str(error)
    return None


async def _ray_problem(layout: Layout) -> str | None:
    ready = read_json(ready_file(layout.state_dir))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if ProcessRef.from_json(ready["runner"]).alive():  # type: ignore[index]
            return None
    return "Ray is not up"


async def _operator_problem(layout: Layout) -> str | None:
    ports = known_ports(layout)
    if ports is None:
        return "is not configured yet"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session,
            session.get(f"http://127.0.0.1:{ports.metrics}/readyz") as response,
        ):
            return None if response.status == 200 else (await response.text()).strip()
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"does not answer: {error}"


# -- pieces --------------------------------------------------------------------------------------------------------


async def _result(layout: Layout, *, already_running: bool) -> UpResult:
    server = (await load_config(str(layout.kubeconfig))).server
    return UpResult(layout.kubeconfig, server, layout.storage.as_uri(), already_running)


def _check_real_control_plane(layout: Layout) -> None:
    try:
        for name in SERVERS:
            find(name)
    except MissingBinaryError as error:
        raise UpError(str(error)) from error
    running = _supervisor(layout) is not None or any(ref.alive() for ref in _children(layout).values())
    if running and known_control_plane(layout) != "kubernetes":
        raise UpError("the embedded API server runs already, and a real one was asked for: slipway down, then up again")


def _supervisor(layout: Layout) -> ProcessRef | None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        ref = ProcessRef.from_json(read_json(layout.supervisor))
        return ref if ref.alive() else None
    return None


def _children(layout: Layout) -> dict[str, ProcessRef]:
    record = read_json(layout.children)
    found: dict[str, ProcessRef] = {}
    for name, child in (record if isinstance(record, dict) else {}).items():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found[name] = ProcessRef.from_json(child)
    return found


def _start_supervisor(layout: Layout, cpus: int | None) -> subprocess.Popen[bytes]:
    with layout.log(SUPERVISOR).open("ab") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "slipway_local.supervisor", "--state-dir", str(layout.state_dir)),
                *(("--cpus", str(cpus)) if cpus else ()),
            ],
            cwd=layout.state_dir,
            env=environment(layout),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _tail(layout: Layout, name: str, lines: int = 30) -> str:
    path = layout.log(name)
    try:
        end = path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return f"(no {path})"
    return "\n".join([f"--- the end of {path} ---", *end])


def _purge(layout: Layout) -> None:
    shutil.rmtree(RayHead(layout.state_dir, HeadOptions(cpus=1)).temp_dir.parent, ignore_errors=True)
    shutil.rmtree(layout.state_dir)
