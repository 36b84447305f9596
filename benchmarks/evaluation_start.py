"""From `slipway apply` of an EvalJob to its first scored example, on a control plane that is up: for evaluation.py.

Each round is another seed, so that no score is there already. The first example counts as scored when its shard is in
storage (the file's own time), and as seen when status.progress says so. The first round also hashes the data; the
others find their digests known. The CPU time spent until then tells a slow control plane from a busy machine.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import ssl
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import yaml

BIN = Path(sys.executable).parent
PATIENCE = 120.0  # seconds


def start(folder: Path, model: Path, texts: list[str], repeats: int) -> None:
    """Measure `repeats` rounds and print them."""
    home, data = folder / "home", folder / "text"
    data.mkdir(parents=True)
    for number, text in enumerate(texts):
        (data / f"{number:04}.txt").write_text(text)
    slipway(home, "up")
    try:
        rounds = [first_score_after(home, model, data, seed) for seed in range(repeats)]
    finally:
        slipway(home, "down")
    scored, seen, cpu = (statistics.median(one[column] for one in rounds) for column in (0, 1, 2))
    each = ", ".join(f"{one[0]:.1f}" for one in rounds)
    print(
        f"start: {scored:.1f} s from apply to the first scored example on a warm control plane, two workers, median of "
        f"{each} (target <= 15 s); seen in status after {seen:.1f} s, until when {cpu:.1f} s of CPU were spent "
        f"({cpu / 2:.1f} s on two cores that do nothing else)",
        flush=True,
    )


def first_score_after(home: Path, model: Path, data: Path, seed: int) -> tuple[float, float, float]:
    """Seconds from the start of the apply command to the first stored shard, and to the first example in status; and
    the CPU seconds of all that time."""
    name = f"start-{seed}"
    applied, before = time.time(), cpu_seconds(home)
    slipway(home, "apply", "-f", "-", stdin=json.dumps(manifest(name, model, data, seed)))
    seen, cpu = None, 0.0
    while seen is None:
        if time.time() - applied > PATIENCE:
            raise TimeoutError(f"{name}: no example scored in {PATIENCE:g} s: {status(home, name)}")
        if status(home, name).get("progress", {}).get("done"):
            seen, cpu = time.time(), cpu_seconds(home) - before
        time.sleep(0.1)
    slipway(home, "wait", f"ej/{name}", "--for=condition=Succeeded", "--timeout=300s")
    shards = (home / "storage").rglob(f"eval/*/*-{seed}/shards/*.parquet")
    return min(shard.stat().st_mtime for shard in shards) - applied, seen - applied, cpu


def cpu_seconds(home: Path) -> float:
    """Of every process of that control plane that is alive, and of the commands that this process has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = used.ru_utime + used.ru_stime
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLIPWAY_HOME") == str(home):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def manifest(name: str, model: Path, data: Path, seed: int) -> dict[str, Any]:
    suite = {
        "name": "text",
        "languageModeling": {"windowTokens": 256, "strideTokens": 256},
        "data": {"sources": [{"uri": data.as_uri()}]},
    }
    workers = {"count": 2, "resources": {"cpu": "1", "memory": "1Gi"}}
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "EvalJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"model": {"uri": model.as_uri()}, "suites": [suite], "seed": seed, "workers": workers},
    }


def status(home: Path, name: str) -> dict[str, Any]:
    """By plain HTTPS: a process for each look would take the CPU that is measured."""
    config = yaml.safe_load((home / "apiserver" / "kubeconfig").read_text())
    cluster = config["clusters"][0]["cluster"]
    request = urllib.request.Request(
        f"{cluster['server']}/apis/slipway.dev/v1alpha1/namespaces/default/evaljobs/{name}",
        headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
    )
    trust = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
        found: dict[str, Any] = json.load(answer).get("status") or {}
    return found


def slipway(home: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run the command against that control plane; its output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUBECONFIG", "RAY_", "SLIPWAY_"))}
    environment = kept | {"SLIPWAY_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(BIN / "slipway"), *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"slipway {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout
