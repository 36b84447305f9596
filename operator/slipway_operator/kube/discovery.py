"""Whether the server has an API group: asked when somebody needs to know, remembered for a while.

For groups whose objects nobody here reads, so that no reflector would notice them (Kueue's, which acts on a label).
Every authenticated user may ask (the ClusterRole system:discovery). Nothing is asked while nobody wants to know.
"""

from __future__ import annotations

import asyncio

from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import NotFound


class Discovery:
    """Remembers for `memory` seconds which API groups are served."""

    def __init__(self, client: Client, *, memory: float = 30.0) -> None:
        self._client = client
        self._memory = memory
        self._known: dict[str, tuple[float, bool]] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def serves(self, group: str) -> bool:
        """Whether any version of the group is served. Raises KubeError when the server does not say."""
        async with self._asking.setdefault(group, asyncio.Lock()):  # a thousand jobs of one queue ask once
            asked_at, answer = self._known.get(group, (float("-inf"), False))
            now = asyncio.get_running_loop().time()
            if now - asked_at >= self._memory:
                try:
                    await self._client.raw("GET", f"/apis/{group}")
                    answer = True
                except NotFound:
                    answer = False
                self._known[group] = (now, answer)
            return answer
