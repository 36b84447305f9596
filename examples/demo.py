"""`make demo`: the whole main job on this machine, printed as you would type it.

    slipway up → apply → watch it train (FSDP, 2 workers) → look at the model → evaluate it against an untrained one,
    which fails at the gate that it passes → one DeepSpeed ZeRO-3 run of a few steps

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
UNTRAINED = "stdlib-untrained"
EVALUATION, UNTRAINED_EVALUATION = "stdlib-eval", "stdlib-untrained-eval"
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


def status(job: str) -> dict[str, Any]:
    """The status of a job, as in tj/NAME or ej/NAME."""
    found: dict[str, Any] = json.loads(run("slipway", "get", job, "-o", "json", capture=True))["status"]
    return found


def finish(jobs: list[str], manifest: str) -> dict[str, Any]:
    """Apply a manifest of these jobs and wait, with a progress bar, until the last has succeeded; its status."""
    for job in jobs:
        if run("slipway", "get", job, "-o", "name", capture=True, check=False).strip():
            run("slipway", "delete", job)  # of an earlier demo
    client = "kubectl" if shutil.which("kubectl") else "slipway"
    run(client, "apply", "-f", manifest)
    run("slipway", "wait", jobs[-1], "--for=condition=Succeeded", "--timeout=900s")
    return status(jobs[-1])


def perplexity(measured: dict[str, Any]) -> dict[str, Any]:
    """The held-out perplexity of an EvalJob, over all modules."""
    found: dict[str, Any] = next(
        one
        for one in measured["metrics"]
        if (one["suite"], one["metric"], one.get("slice", "")) == ("held-out", "perplexity", "")
    )
    return found


def in_words(score: dict[str, Any]) -> str:
    """A score with its interval."""
    interval = next(one for one in score["intervals"] if one["confidence"] == "0.95")
    return f"{float(score['value']):,.1f} (95%: {float(interval['low']):,.1f} to {float(interval['high']):,.1f})"


def verdict(measured: dict[str, Any]) -> tuple[str, str]:
    """Status and message of the condition Passed."""
    found = next(one for one in measured["conditions"] if one["type"] == "Passed")
    return found["status"], found["message"]


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
    trained = finish([f"tj/{JOB}"], "examples/trainjob.yaml")
    client = "kubectl" if shutil.which("kubectl") else "slipway"
    run(client, "get", "tj")
    run("slipway", "generate", f"tj/{JOB}", "--prompt", "def __init__(self, ", "--max-new-tokens", "48")
    ours = finish([f"tj/{UNTRAINED}", f"ej/{EVALUATION}"], "examples/evaljob.yaml")
    theirs = finish([f"ej/{UNTRAINED_EVALUATION}"], "examples/evaljob-untrained.yaml")
    run(client, "get", "ej")
    zero = finish([f"tj/{ZERO}"], "examples/trainjob-zero3.yaml")

    model, plan, zero_plan = trained["model"], trained["plan"], zero["plan"]
    before, after = float(model["initialPerplexity"]), float(model["perplexity"])
    table(
        [
            ("held-out perplexity", f"{before:,.0f} before, {after:,.1f} after ({before / after:,.0f}x lower)"),
            ("and evaluated", in_words(perplexity(ours))),
            ("the untrained model's", in_words(perplexity(theirs))),
            ("the gate, trained", "passed" if verdict(ours)[0] == "True" else f"failed: {verdict(ours)[1]}"),
            ("the gate, untrained", "passed" if verdict(theirs)[0] == "True" else f"failed: {verdict(theirs)[1]}"),
            ("throughput", f"{trained['progress']['tokensPerSecond']:,} tokens/s"),
            ("strategy", f"{plan['strategy']}: {plan['parametersPerRank']:,} of {plan['parameters']:,} per rank"),
            ("and with DeepSpeed", f"{zero_plan['strategy']}: {zero_plan['parametersPerRank']:,} per rank"),
            ("training data", f"{plan['trainTokens']:,} tokens, {plan['dataDigest']}"),
            ("model", model["uri"]),
            ("report", f"{ours['results']['uri']}/report.html"),
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
    if (verdict(ours)[0], verdict(theirs)[0]) != ("True", "False"):
        print("FAILED: the gate must pass the trained model and stop the untrained one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
