"""What this machine can give to runs: one answer, by which the operator plans and the Ray runner admits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_GIB = 1024**3
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Machine:
    """CPUs, GPUs and bytes of memory that runs may use."""

    cpus: int
    gpus: int
    memory: int


def detect(cpus: int | None = None) -> Machine:
    """This machine; `cpus` overrides the number that was found.

    Memory is a whole number of GiB below what there is, less a reserve of 1 GiB or a twentieth for the control plane,
    Ray itself and the user. Never less than 1 GiB.
    """
    memory = memory_limit()
    usable = memory - max(_GIB, memory // 20)
    return Machine(cpus or os.cpu_count() or 1, _gpus(os.environ), max(1, usable // _GIB) * _GIB)


def memory_limit() -> int:
    """Bytes of memory: the machine's, or the container's when that is less."""
    found = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)


def _gpus(environment: Mapping[str, str]) -> int:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
