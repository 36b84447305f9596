"""`slipway up`: starts the local control plane and says what to type next."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping

from slipway_cli import local
from slipway_cli.durations import parse_duration
from slipway_local.layout import default_state_dir


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Returns when everything is ready. Raises TargetError with the end of the log of the part that is not."""
    work = local.machinery().up(
        default_state_dir(environment),
        timeout=parse_duration(arguments.timeout),
        cpus=arguments.cpus,
        control_plane="kubernetes" if arguments.kube else "embedded",
        progress=lambda line: print(f"  {line}", flush=True),
    )
    result = local.call(work)
    print(f"Slipway {'was up already' if result.already_running else 'is up'}: {result.url}")
    if result.already_running and arguments.cpus:
        print(f"  --cpus {arguments.cpus} was not taken over: slipway down, then up again")
    print(f"  kubeconfig  {result.kubeconfig}\n  storage     {result.storage}\n")
    print(next_steps(str(result.kubeconfig), has_kubectl=shutil.which("kubectl") is not None))
    return 0


def next_steps(kubeconfig: str, *, has_kubectl: bool) -> str:
    """What to type next."""
    client = "kubectl" if has_kubectl else "slipway"
    first = [f"export KUBECONFIG={kubeconfig}"] if has_kubectl else []
    lines = [
        *first,
        f"{client} apply -f examples/trainjob.yaml",
        "slipway wait tj/stdlib-lm --for=condition=Succeeded     # with a progress bar",
        "slipway logs tj/stdlib-lm -f",
        'slipway generate tj/stdlib-lm --prompt "def "',
        "slipway down",
    ]
    return "\n".join(["Next:", *(f"  {line}" for line in lines)])
