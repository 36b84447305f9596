"""Applications for Ray Serve that say who answers. Found by PYTHONPATH, as a user's own would be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import serve


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
class Teller:
    """Answers with its process, its settings and where it was asked."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = args
        self._config: Any = None

    def reconfigure(self, config: Any) -> None:
        self._config = config

    async def __call__(self, request: Any) -> dict[str, Any]:
        sibling = None
        if "sibling" in self._args:
            prefix = os.environ.get("SLIPWAY_SERVE_APPLICATION_PREFIX", "")
            sibling = await serve.get_app_handle(prefix + self._args["sibling"]).who.remote()
        secret = self._args.get("file")
        return {
            "pid": os.getpid(),
            "config": self._config,
            "args": self._args,
            "word": os.environ.get("WORD"),
            "file": Path(secret).read_text() if secret else None,
            "sibling": sibling,
        }

    def who(self) -> int:
        return os.getpid()


def teller(args: dict[str, Any]) -> Any:
    return Teller.bind(args)


def broken(args: dict[str, Any]) -> Any:
    raise ValueError(f"no such weather: {args['weather']}")
