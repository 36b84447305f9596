"""Starts, stops and hurts a real control plane: one directory, three processes, the same ports and keys every time.

It blocks and needs no event loop, so that a test session and a supervised process use it alike. What was left by an
owner that was killed is ended before anything starts: two API servers must not share one etcd by accident.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from slipway_local.kubernetes import binaries, definitions, kubeconfigs, programs
from slipway_local.kubernetes.admin_client import AdminClient, AdminError
from slipway_local.kubernetes.binaries import API_SERVER, CONTROLLER_MANAGER, ETCD, SERVERS
from slipway_local.kubernetes.programs import Files, Options
from slipway_local.lock import locked
from slipway_local.machine import memory_limit
from slipway_local.processes import ProcessRef, read_json, write_json

_READY_SECONDS = 90.0
_POLL = 0.02
# kube-apiserver lets requests finish, watches included, for a minute; those who still watch it now have lost it anyway.
_GRACE = {ETCD: 5.0, API_SERVER: 3.0, CONTROLLER_MANAGER: 2.0}
_KILL_SECONDS = 10.0
_LEAST_MEMORY = 2 * 1024**3
_STOP_SECONDS = 10.0


class ControlPlaneError(Exception):
    """The control plane does not start. The message names the program and shows the end of its log."""


class ControlPlane:
    """A control plane in `directory`, which it creates. As a context manager it is ready inside and gone outside.

    Raises MissingBinaryError where a program is not on this machine, ControlPlaneError where one does not start.
    """

    def __init__(self, directory: Path, options: Options | None = None) -> None:
        self.directory = directory.absolute()
        self.options = options or Options()
        self._programs = {name: binaries.find(name) for name in SERVERS}
        self._files: Files | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what others need to know ----------------------------------------------------------------------------------

    @property
    def files(self) -> Files:
        """Its ports, certificates and kubeconfigs; known from `start` on."""
        assert self._files is not None, "the control plane was never started"
        return self._files

    @property
    def url(self) -> str:
        """Where the API server is."""
        return self.files.url

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of an administrator (group system:masters)."""
        return self.files.admin_kubeconfig

    @property
    def audit_log(self) -> Path:
        """One JSON document per line, when `Options.audit` asks for it."""
        return self.files.audit_log

    @property
    def pids(self) -> dict[str, int]:
        """The pids of what this object has started and that has not ended."""
        return {name: process.pid for name, process in self._running.items() if process.poll() is None}

    def log(self, name: str) -> Path:
        """What a program has written."""
        return self.directory / f"{name}.log"

    def kubeconfig_for_user(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig with a client certificate for a user, who has no rights but those that RBAC gives."""
        file_name = f"user-{quote(user, safe='')}"
        pair = self.files.authority.client(file_name, user, groups)
        return self.files.kubeconfig(self.directory / f"{file_name}.kubeconfig", pair)

    def kubeconfig_for_service_account(self, namespace: str, name: str, seconds: int = 86_400) -> Path:
        """A kubeconfig with a token of a service account that exists, good for so many seconds. Raises AdminError."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        path = f"/api/v1/namespaces/{quote(namespace)}/serviceaccounts/{quote(name)}/token"
        token = self.admin().json("POST", path, request)["status"]["token"]
        target = self.directory / f"sa-{namespace}-{name}.kubeconfig"
        return kubeconfigs.with_token(target, self.url, self.files.ca, token)

    def admin(self) -> AdminClient:
        """Plain requests as an administrator."""
        return AdminClient.by_certificate(self.url, self.files.ca, self.files.admin)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all of it and returns when it is ready, definitions included."""
        deadline = time.monotonic() + _READY_SECONDS
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        in_use = ControlPlaneError(f"another process serves from {self.directory}")
        self._lock.enter_context(locked(self.directory / "lock", in_use))
        try:
            self._end_left_over()
            self._files = Files(self.directory)
            for name in (ETCD, API_SERVER):
                self._launch(name)
            self._until(API_SERVER, self._api_server_problem, deadline)
            # Before the controller manager: its garbage collector then knows our kinds from its first look on.
            owners, ray = self.options.definitions, binaries.ray_definitions()
            definitions.install(self.admin(), owners, ray, deadline)
            self._launch(CONTROLLER_MANAGER)
            self._until(CONTROLLER_MANAGER, self._controller_manager_problem, deadline)
        except (AdminError, definitions.NotServedError) as error:
            self.stop()
            raise ControlPlaneError(str(error)) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all of it, in the opposite order; what it stored stays."""
        for name in reversed(SERVERS):
            process = self._running.pop(name, None)
            if process is not None:
                _end(process, _GRACE[name])
        (self.directory / "processes.json").unlink(missing_ok=True)
        self._lock.close()

    def ended(self) -> str | None:
        """The name of a program that has ended without being asked to, or None."""
        return next((name for name, process in self._running.items() if process.poll() is not None), None)

    # -- faults ----------------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL, and the program is gone."""
        process = self._running[name]
        process.kill()
        process.wait(_KILL_SECONDS)

    def pause(self, name: str) -> None:
        """SIGSTOP: the program stands still when this returns, its connections stay open.

        On a busy machine its threads go on until one of them has seen the signal.
        """
        process = self._running[name]
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while process.poll() is None and not _stands_still(process.pid):
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{name} does not stand still {_STOP_SECONDS:g} s after SIGSTOP")
            time.sleep(_POLL)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._running[name].send_signal(signal.SIGCONT)

    def restart(self, name: str) -> None:
        """Starts a program that was killed or has ended, on its old port, and returns when it is ready."""
        process = self._running.get(name)
        if process is not None and process.poll() is None:
            _end(process, _GRACE[name])
        self._launch(name)
        deadline = time.monotonic() + _READY_SECONDS
        manager = name == CONTROLLER_MANAGER
        check = self._controller_manager_problem if manager else self._api_server_problem
        self._until(name, check, deadline)

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _launch(self, name: str) -> None:
        arguments = {
            ETCD: lambda: programs.etcd(self.files, self.options),
            API_SERVER: lambda: programs.api_server(self.files, self.options),
            CONTROLLER_MANAGER: lambda: programs.controller_manager(self.files),
        }[name]()
        with self.log(name).open("ab") as output:
            self._running[name] = subprocess.Popen(
                [str(self._programs[name]), *arguments],
                cwd=self.directory,
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C in a terminal is for whoever owns the control plane, who then stops it in order.
                start_new_session=True,
            )
        refs = {one: ProcessRef.of(process.pid) for one, process in self._running.items()}
        write_json(self.directory / "processes.json", {one: ref.to_json() for one, ref in refs.items() if ref})

    def _until(self, name: str, check: Callable[[], str | None], deadline: float) -> None:
        while (why := check()) is not None:
            gone = self.ended()
            if gone is not None:
                code = self._running[gone].returncode
                raise ControlPlaneError(f"{gone} ended (exit status {code})\n{self._tail(gone)}")
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{name} is not ready after {_READY_SECONDS:.0f} s: {why}\n{self._tail(name)}")
            time.sleep(_POLL)

    def _api_server_problem(self) -> str | None:
        try:
            self.admin().send("GET", "/readyz", seconds=5.0)
        except AdminError as error:
            return str(error)
        return None

    def _controller_manager_problem(self) -> str | None:
        url = f"https://127.0.0.1:{self.files.controller_manager_port}"
        try:
            AdminClient.by_certificate(url, self.files.ca, None).send("GET", "/healthz", seconds=5.0)
            # The first thing that a controller makes, and that pods cannot do without.
            self.admin().send("GET", "/api/v1/namespaces/default/serviceaccounts/default", seconds=5.0)
        except AdminError as error:
            return str(error)
        return None

    def _end_left_over(self) -> None:
        record = read_json(self.directory / "processes.json")
        found = [ProcessRef.from_json(one) for one in (record if isinstance(record, dict) else {}).values()]
        deadline = time.monotonic() + _KILL_SECONDS
        while any(ref.alive() for ref in found):
            for ref in found:
                ref.signal(signal.SIGKILL)
            if time.monotonic() > deadline:
                pids = ", ".join(str(ref.pid) for ref in found if ref.alive())
                raise ControlPlaneError(f"processes of an earlier start cannot be ended: {pids}")
            time.sleep(_POLL)

    def _tail(self, name: str, lines: int = 20) -> str:
        end = self.log(name).read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- the end of {self.log(name)} ---", *end])


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Without proxies: everything is on loopback. Collecting garbage less often leaves a quarter more CPU for work.

    Up to a quarter of the memory: an API server with 10,000 jobs lives in 1.5 GiB, and below a limit that is hardly
    more than that it does little else than collect.
    """
    kept = {name: value for name, value in inherited.items() if not name.lower().endswith("_proxy")}
    return {"GOGC": "400", "GOMEMLIMIT": str(max(_LEAST_MEMORY, memory_limit() // 4)), **kept}


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGCONT)  # a stopped process does not hear SIGTERM
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_KILL_SECONDS)


def _stands_still(pid: int) -> bool:
    """Whether all of its threads are stopped: the state in /proc/PID/task/TID/stat, after proc(5)."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if not (thread / "stat").read_text().rpartition(") ")[2].startswith(("T", "t")):
                return False
    return True
