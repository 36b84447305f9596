"""`make demo`: the whole main job on this machine, printed as you would type it.

    slipway up → apply → watch it train (FSDP, 2 workers) → look at the model → one DeepSpeed ZeRO-3 run of a few steps

The input is real: the source code of this Python's standard library, with some modules held out. Nothing is faked or
cached between runs but tokens (by content digest) and DeepSpeed's compiled extension; a second run starts at once.
Ends 1 when a promise is not kept.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
JOB, ZERO = "stdlib-lm", "stdlib-zero3"
IMPROVEMENT = 10  # held-out perplexity must fall by this factor


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


def status(name: str) -> dict[str, Any]:
    """The job's status."""
    found: dict[str, Any] = json.loads(run("slipway", "get", f"tj/{name}", "-o", "json", capture=True))["status"]
    return found


def train(name: str, manifest: str) -> dict[str, Any]:
    """Apply a manifest and wait, with a progress bar, until it has succeeded."""
    if run("slipway", "get", f"tj/{name}", "-o", "name", capture=True, check=False).strip():
        run("slipway", "delete", f"tj/{name}")  # of an earlier demo
    client = "kubectl" if shutil.which("kubectl") else "slipway"
    run(client, "apply", "-f", manifest)
    run("slipway", "wait", f"tj/{name}", "--for=condition=Succeeded", "--timeout=900s")
    return status(name)


def table(rows: list[tuple[str, str]]) -> None:
    """Two columns."""
    print()
    for left, right in rows:
        print(f"  {left:<28}{right}")


def main() -> int:
    """The demo; the exit status."""
    started = time.monotonic()
    run("slipway", "up")
    ready = time.monotonic()
    trained = train(JOB, "examples/trainjob.yaml")
    client = "kubectl" if shutil.which("kubectl") else "slipway"
    run(client, "get", "tj")
    run("slipway", "generate", f"tj/{JOB}", "--prompt", "def __init__(self, ", "--max-new-tokens", "48")
    zero = train(ZERO, "examples/trainjob-zero3.yaml")

    model, plan, zero_plan = trained["model"], trained["plan"], zero["plan"]
    before, after = float(model["initialPerplexity"]), float(model["perplexity"])
    table(
        [
            ("held-out perplexity", f"{before:,.0f} before, {after:,.1f} after ({before / after:,.0f}x lower)"),
            ("throughput", f"{trained['progress']['tokensPerSecond']:,} tokens/s"),
            ("strategy", f"{plan['strategy']}: {plan['parametersPerRank']:,} of {plan['parameters']:,} per rank"),
            ("and with DeepSpeed", f"{zero_plan['strategy']}: {zero_plan['parametersPerRank']:,} per rank"),
            ("training data", f"{plan['trainTokens']:,} tokens, {plan['dataDigest']}"),
            ("model", model["uri"]),
            ("log", f"{trained['storage']}/logs"),
            ("kubeconfig", kubeconfig()),
            ("control plane ready after", f"{ready - started:.0f} s"),
            ("the whole demo took", f"{time.monotonic() - started:.0f} s"),
        ]
    )
    print("\nIt is still running: slipway status, slipway logs tj/stdlib-lm, slipway down")
    if before / after < IMPROVEMENT:
        print(f"FAILED: the held-out perplexity fell by less than {IMPROVEMENT}x", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
