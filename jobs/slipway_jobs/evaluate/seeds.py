"""Where the draws of an example come from: its own seed, whatever is scored beside it and by whom."""

from __future__ import annotations

import hashlib


def example_seed(seed: int, identity: str) -> int:
    """The seed of one example's draws: its own, whatever is scored beside it."""
    return int.from_bytes(hashlib.sha256(f"sampling:{seed}:{identity}".encode()).digest()[:8], "big") >> 1
