"""`slipway down`: stops the local control plane, with everything that runs in it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli import local
from slipway_local.layout import default_state_dir


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Returns when nothing of it runs any more. Raises TargetError when something cannot be ended."""
    state = default_state_dir(environment)
    existed = state.exists()
    work = local.machinery().down(state, purge=arguments.purge, progress=lambda line: print(f"  {line}", flush=True))
    was_running = local.call(work)
    print("Slipway is down." if was_running else "Slipway was not running.")
    if arguments.purge and existed:
        print(f"  {state} was deleted" if not state.exists() else f"  {state} is not ours to delete; it was left alone")
    elif state.exists():
        print(f"  What it stored stays in {state}; slipway up goes on with it, slipway down --purge deletes it.")
    return 0
