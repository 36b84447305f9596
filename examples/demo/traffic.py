"""The demo's users: they ask for what follows a piece of text. First of Python, later of C and English.

Everything comes from files that are there wherever Slipway is installed: the standard library's modules that the
example holds out of training, C headers (Python's own or NumPy's), and the texts of Python's `help()`.
"""

from __future__ import annotations

import json
import random
import sysconfig
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

CLIENTS = 4
_SHORTEST, _LONGEST = 64, 512  # characters of a request


def python() -> list[str]:
    """Modules that examples/trainjob.yaml has held out."""
    library = Path(json.__file__).parents[1]
    files = [library / name for name in ("heapq.py", "shutil.py", "statistics.py", "textwrap.py")]
    return [file.read_text() for file in (*files, *sorted((library / "json").glob("*.py")))]


def c_and_english() -> list[str]:
    """C headers and English prose."""
    from pydoc_data.topics import topics  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415 - only here

    headers = sorted(Path(sysconfig.get_paths()["include"]).rglob("*.h")) or sorted(Path(np.get_include()).rglob("*.h"))
    prose = "\n".join(topics[name] for name in sorted(topics))
    return [*(file.read_text(errors="replace") for file in headers[:120]), prose]


def pieces(documents: list[str], seed: int) -> Iterator[str]:
    """Runs of whole lines, without end, from places spread evenly over all characters."""
    draw = random.Random(seed)
    lines = [document.splitlines(keepends=True) for document in documents]
    sizes = [len(document) for document in documents]
    while True:
        (chosen,) = draw.choices(lines, weights=sizes)
        start, wanted, piece = draw.randrange(len(chosen)), draw.randint(_SHORTEST, _LONGEST), ""
        for line in chosen[start:]:
            if len(piece) + len(line) > _LONGEST:
                break
            piece += line
            if len(piece) >= wanted:
                break
        if len(piece.strip()) >= _SHORTEST:
            yield piece


@dataclass
class Traffic:
    """Requests that go on while the block is open, and how they went. `pause`: seconds between two of one client."""

    url: str
    model: str
    source: Iterator[str]
    pause: float
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)

    def __enter__(self) -> Traffic:
        for _ in range(CLIENTS):
            self._pool.submit(self._ask_on)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown()

    def _ask_on(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stopping.is_set():
                with self._lock:
                    prompt = next(self.source)
                began = time.monotonic()
                body = {"model": self.model, "prompt": prompt, "max_tokens": 8}
                try:
                    answer = client.post(f"{self.url}/v1/completions", json=body)
                    problem = "" if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:200]}"
                except httpx.HTTPError as error:
                    problem = repr(error)
                with self._lock:
                    self.answered += 1
                    self.seconds.append(time.monotonic() - began)
                    if problem:
                        self.failed.append(problem)
                self._stopping.wait(self.pause)
