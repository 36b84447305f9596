"""`slipway status`: what of the local control plane and of its services runs, and what is wrong with the rest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli import local
from slipway_cli.tables import render
from slipway_cli.terminal import one_line
from slipway_local.layout import Layout, default_state_dir


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints a line for each part; 0 when everything is ready, 1 when not."""
    layout = Layout(default_state_dir(environment))
    found = local.call(local.machinery().status(layout.state_dir))
    if not found.parts:
        print(f"Slipway is down ({layout.state_dir}). To start it: slipway up")
        return 1
    names = sorted(found.parts.keys() | found.problems.keys())
    rows = [
        [
            name,
            str(found.parts.get(name, "")),
            "no" if name in found.problems else "yes",
            found.problems.get(name, "").splitlines()[0] if found.problems.get(name) else "",
            str(layout.log(name)),
        ]
        for name in names
    ]
    print(f"Slipway is {'up' if found.ready else 'not ready'} ({layout.state_dir})")
    print(render(["PART", "PID", "READY", "PROBLEM", "LOG"], rows))
    if found.services:
        lines = [[one.name, "yes" if one.ready else "no", one.url, one_line(one.problem)] for one in found.services]
        print(f"\n{render(['SERVICE', 'READY', 'URL', 'PROBLEM'], lines)}")
        if found.serve_logs is not None:
            print(f"logs of replicas: {found.serve_logs}/replica_*.log")
    if found.kubeconfig is not None:
        print(f"\nkubeconfig  {found.kubeconfig}")
    if found.dashboard:
        print(f"Ray         {found.dashboard}")
    return 0 if found.ready else 1
