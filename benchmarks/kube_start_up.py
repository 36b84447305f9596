"""How long the real control plane takes to start from cached binaries, and what it costs.

    python benchmarks/kube_start_up.py [--repeats 3]

Each start is in a directory of its own, ends in etcd, kube-apiserver and kube-controller-manager being ready with
Slipway's and KubeRay's definitions served, and is stopped again; then one directory is started a second time.
`make control-plane` must have built the binaries. Target on 2 cores: <= 10 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options

TARGET = 10.0


def start_and_stop(directory: Path, options: Options) -> tuple[float, float, dict[str, float]]:
    """Seconds to be ready, seconds to be gone, and resident MiB of each program when it is ready."""
    plane = ControlPlane(directory, options)
    began = time.monotonic()
    plane.start()
    ready = time.monotonic() - began
    resident = {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in plane.pids.items()}
    began = time.monotonic()
    plane.stop()
    return ready, time.monotonic() - began, resident


def main() -> int:
    """Measure and print the table; 1 when the target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for_tests = Options(unsafe_no_fsync=True, audit="writes")
    with tempfile.TemporaryDirectory(prefix="slipway-") as folder:
        starts = [start_and_stop(Path(folder) / f"tests-{number}", for_tests) for number in range(repeats)]
        again = start_and_stop(Path(folder) / "tests-0", for_tests)
        durable = start_and_stop(Path(folder) / "durable", Options())
    first = statistics.median(ready for ready, _, _ in starts)
    rows = [
        (f"start, as tests do (median of {repeats})", first),
        ("start, slowest", max(ready for ready, _, _ in starts)),
        ("start again in the same directory", again[0]),
        ("start, durable etcd, as slipway up --kube", durable[0]),
        ("stop (median)", statistics.median(gone for _, gone, _ in starts)),
    ]
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs, load {load:.1f}, Python {sys.version.split()[0]}")
    for name, seconds in rows:
        print(f"{name:<46}{seconds:>8.1f} s")
    for name, mebibytes in starts[-1][2].items():
        print(f"{name + ', resident':<46}{mebibytes:>8.0f} MiB")
    print(f"target: start <= {TARGET:g} s")
    return int(first > TARGET)


if __name__ == "__main__":
    sys.exit(main())
