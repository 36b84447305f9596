"""Times that a user waits: `slipway up`, apply to first optimizer step, and what the operator's process costs.

    python benchmarks/start_up.py [--repeats 3]

Starts a control plane of its own in a temporary folder and stops it at the end. The job: 2 FSDP workers, a small model,
on the standard library's json and asyncio packages. "first" prepares the data; the others find their tokens cached.
At the end the template that workers are forked from (docs/local-control-plane.md) is killed: runs without it.
Targets on 2 cores: API server and operator answer <= 2.5 s, apply to first step <= 20 s, operator <= 200 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

BIN = Path(sys.executable).parent


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUBECONFIG", "RAY_", "SLIPWAY_"))}
    return kept | {"SLIPWAY_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def slipway(home: Path, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(BIN / "slipway"), *arguments],
        env=environment(home),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"slipway {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def manifest(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"fresh": {"hiddenSize": 128, "layers": 4, "heads": 4}},
            "tokenizer": {"train": {"vocabSize": 2048}},
            "data": {
                "sources": [{"uri": "python://stdlib", "include": ["json/**", "asyncio/**"]}],
                "sequenceLength": 128,
            },
            "training": {"steps": 3, "globalBatchSize": 8, "microBatchSize": 4},
            "workers": {"count": 2, "resources": {"cpu": "1", "memory": "1Gi"}},
        },
    }


def first_step_after(home: Path, name: str) -> float:
    """Seconds from apply to the end of the first optimizer step, as the run's history dates it."""
    applied = time.time()
    slipway(home, "apply", "-f", "-", stdin=json.dumps(manifest(name)))
    slipway(home, "wait", f"tj/{name}", "--for=condition=Succeeded", "--timeout=120s")
    storage = json.loads(slipway(home, "get", f"tj/{name}", "-o", "json"))["status"]["storage"]
    history = Path(storage.removeprefix("file://")) / "metrics" / "attempt-0001.jsonl"
    first = next(row for row in map(json.loads, history.read_text().splitlines()) if row.get("step") == 1)
    at = first["time"]
    moment = datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() if isinstance(at, str) else float(at)
    return moment - applied


def kill_template(home: Path) -> int:
    """From now on each worker is a Python of its own. What the template had: resident bytes that nobody shares."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        mine = (process.info["environ"] or {}).get("SLIPWAY_HOME") == str(home)
        if mine and "slipway_local.ray_runner.fork_server.template" in (process.info["cmdline"] or []):
            unshared = int(process.memory_full_info().uss)
            process.kill()
            return unshared
    sys.exit("there is no template of Ray workers")


def control_plane_answers(home: Path) -> tuple[float, int]:
    """Seconds until API server and operator (without Ray) are ready, and the operator's resident bytes."""
    home.mkdir()
    (home / "key").write_text("0" * 32)
    started = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "slipway_local.apiserver", "--state-dir", str(home / "apiserver")],
        stdout=subprocess.DEVNULL,
    )
    kubeconfig = home / "apiserver" / "kubeconfig"
    config = {
        "storage": {"uri": f"file://{home}/storage"},
        "reports": {"listen": "127.0.0.1:18099", "url": "http://127.0.0.1:18099", "keyFile": str(home / "key")},
        "metrics": {"listen": "127.0.0.1:18098"},
        "leaderElection": {"enabled": False},
    }
    (home / "operator.yaml").write_text(yaml.safe_dump(config))
    while not kubeconfig.exists():
        time.sleep(0.01)
    command = ["-m", "slipway_operator", "--config", str(home / "operator.yaml"), "--kubeconfig", str(kubeconfig)]
    operator = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen("http://127.0.0.1:18098/readyz", timeout=1).close()
                break
            except OSError:
                if time.monotonic() - started > 30:
                    sys.exit("the operator did not become ready in 30 s")
                time.sleep(0.02)
        return time.monotonic() - started, psutil.Process(operator.pid).memory_info().rss
    finally:
        operator.terminate()
        server.terminate()
        operator.wait(10)
        server.wait(10)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="slipway-") as folder:
        answers = [control_plane_answers(Path(folder) / f"plain-{i}") for i in range(repeats)]
        home = Path(folder) / "up"
        started = time.monotonic()
        slipway(home, "up")
        up = time.monotonic() - started
        try:
            started = time.monotonic()
            slipway(home, "up")
            again = time.monotonic() - started
            cold = first_step_after(home, "cold")
            warm = [first_step_after(home, f"warm-{i}") for i in range(repeats)]
            template = kill_template(home)
            single = [first_step_after(home, f"single-{i}") for i in range(repeats)]
        finally:
            slipway(home, "down")
    rows = [
        ("API server + operator answer", statistics.median(a for a, _ in answers), "s", 2.5),
        ("operator, resident", statistics.median(m for _, m in answers) / 2**20, "MiB", 200),
        ("slipway up, with Ray", up, "s", None),
        ("slipway up, already up", again, "s", None),
        ("apply to first step, data prepared", cold, "s", 20),
        ("apply to first step, tokens cached (median)", statistics.median(warm), "s", 20),
        ("the same without the template (median)", statistics.median(single), "s", None),
        ("template of Ray workers, unshared", template / 2**20, "MiB", None),
    ]
    print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, {repeats} repeats")
    for name, value, unit, target in rows:
        print(f"{name:<46}{value:>8.1f} {unit:<4}{f'target <= {target:g} {unit}' if target else ''}")


if __name__ == "__main__":
    main()
