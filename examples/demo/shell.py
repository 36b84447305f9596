"""The words of the demo: commands as a user would type them, and what the API says afterwards."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CLIENT = "kubectl" if shutil.which("kubectl") else "slipway"
STARTED = time.monotonic()
Status = dict[str, Any]
_LOOK_SECONDS = 2.0


def run(*command: str, capture: bool = False, check: bool = True) -> str:
    """Show the command as a user would type it, and run it."""
    if not capture:
        print(f"\n$ {shlex.join(command)}", flush=True)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment.pop("KUBECONFIG", None)  # the demo is about the local control plane, whatever the shell points at
    if command[0] == "kubectl":
        environment["KUBECONFIG"] = kubeconfig()
    pipe = subprocess.PIPE if capture else None
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False, text=True, stdout=pipe, stderr=pipe)
    if check and result.returncode != 0:
        sys.exit(f"demo: {' '.join(command)} ended with exit code {result.returncode}\n{result.stderr or ''}")
    return result.stdout or ""


def kubeconfig() -> str:
    """The local control plane's kubeconfig."""
    home = Path(os.environ.get("SLIPWAY_HOME", Path.home() / ".slipway"))
    return str(home / "apiserver" / "kubeconfig")


def get(name: str) -> dict[str, Any]:
    """An object, as in tj/NAME, ej/NAME or sdeploy/NAME."""
    # kubectl where it is there: it takes an eighth of the CPU, which the runs that are watched can use.
    found: dict[str, Any] = json.loads(run(CLIENT, "get", name, "-o", "json", capture=True))
    return found


def status(name: str) -> dict[str, Any]:
    """Its status."""
    found: dict[str, Any] = get(name).get("status", {})
    return found


def condition(of: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition of a status; empty while there is none."""
    return next((one for one in of.get("conditions", []) if one["type"] == kind), {})


def remove(*names: str) -> None:
    """Delete what an earlier demo has left."""
    for name in names:
        if run("slipway", "get", name, "-o", "name", capture=True, check=False).strip():
            run("slipway", "delete", name)


def finish(jobs: list[str], manifest: str) -> dict[str, Any]:
    """Apply a manifest of these jobs and wait, with a progress bar, until the last has succeeded; its status."""
    remove(*jobs)
    run(CLIENT, "apply", "-f", manifest)
    run("slipway", "wait", jobs[-1], "--for=condition=Succeeded", "--timeout=900s")
    return status(jobs[-1])


def patch(name: str, spec: dict[str, Any]) -> None:
    """Change an object's spec."""
    kind, _, short = name.partition("/")
    run(CLIENT, "patch", kind, short, "--type=merge", "-p", json.dumps({"spec": spec}))


def watch(name: str, tell: Callable[[Status], str], until: Callable[[Status], bool], seconds: float) -> Status:
    """Poll a status, print a line whenever what `tell` says has changed, and return the status that `until` accepts."""
    deadline, last = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        now = status(name)
        line = tell(now)
        if line != last:
            print(f"  {time.monotonic() - STARTED:5.0f} s  {line}", flush=True)
            last = line
        if until(now):
            return now
        time.sleep(_LOOK_SECONDS)
    run("slipway", "describe", name, check=False)
    sys.exit(f"demo: {name} was not as expected after {seconds:.0f} s: {last}")


def table(rows: list[tuple[str, str]]) -> None:
    """Two columns."""
    print()
    for left, right in rows:
        print(f"  {left:<28}{right}")
