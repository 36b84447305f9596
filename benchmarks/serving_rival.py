"""`transformers serve`, as a rival of benchmarks/serving.py: a process of its own, on loopback, without a network."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_READY, _WAYS = 120.0, {"as it comes": [], "continuous batching": ["--continuous-batching"]}


def rival_tokens_per_second(model: Path, measure: Callable[[str], float], rounds: int) -> tuple[str, float]:
    """(how, tokens/s) of its faster way; 0 when neither works, and what it said is printed."""
    found: dict[str, float] = {}
    for way, arguments in _WAYS.items():
        try:
            with _server(model, arguments) as url:
                values = [measure(url)]  # the first is slow with what is done once
                while values[0] > 5 and len(values) <= rounds:
                    values.append(measure(url))
                found[way] = max(values)
        except (OSError, EOFError, AssertionError, RuntimeError) as error:
            print(f"transformers serve, {way}: {type(error).__name__}: {str(error)[-600:]}")
    print("transformers serve:", {way: f"{value:.0f} tokens/s" for way, value in found.items()})
    best = max(found, key=lambda way: found[way], default="neither way")
    return best, found.get(best, 0.0)


@contextlib.contextmanager
def _server(model: Path, arguments: list[str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(Path(sys.executable).parent / "transformers"), "serve", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32", *arguments),
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ))
        try:
            deadline = time.monotonic() + _READY
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"it did not start: {log.read()[-500:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
