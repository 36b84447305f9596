"""Ray Serve's REST API (https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api), as far as it is used.

PUT replaces the whole configuration: applications that it does not name are removed. Its first call also starts Serve,
with one HTTP proxy on loopback. Every request carries the token and has a deadline.

The proxy is HAProxy where there is one (serve_proxy.py), and it listens where `http_options` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiohttp

from slipway_local.ray_runner.errors import ConfigRefused, RayUnavailable

_PATH = "/api/serve/applications/"
_READ = 10.0
_PROBE = 2.0
_WRITE = 90.0  # starting Serve takes seconds, and Ray itself gives its proxy a minute


class ServeApi:
    """A client of Serve on one Ray head. Close it after use."""

    def __init__(self, url: str, token: str) -> None:
        """`url` is the dashboard's."""
        self._url = url + _PATH
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})

        self._proxy = aiohttp.ClientSession()  # which has no business with Ray's token

    async def close(self) -> None:
        """Closes the connections."""
        await self._proxy.close()
        await self._session.close()

    async def put(self, applications: Sequence[dict[str, Any]], port: int) -> None:
        """Makes these the applications that run. Returns before they do.

        Raises ConfigRefused when Serve takes none of it, RayUnavailable when it is not known whether it did.
        """
        body = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": list(applications),
        }
        status, answer = await self._request("PUT", body, _WRITE)
        if status == 400:
            raise ConfigRefused(str(answer).strip()[-2000:])
        if status != 200:
            raise RayUnavailable(f"PUT {_PATH}: HTTP {status}: {_last_line(answer)}")

    async def details(self) -> dict[str, Any]:
        """ServeInstanceDetails (ray.serve.schema); without `controller_info` when Serve has not been started."""
        status, answer = await self._request("GET", None, _READ)
        if status != 200 or not isinstance(answer, dict):
            raise RayUnavailable(f"GET {_PATH}: HTTP {status}: {_last_line(answer)}")
        return answer

    async def routes(self, port: int) -> frozenset[str] | None:
        """The route prefixes that the HTTP proxy on this port knows the way to; None when it is not well."""
        limit = aiohttp.ClientTimeout(total=_PROBE)
        # A new connection each time: HAProxy answers an old one from the configuration that it came under.
        alone = {"Connection": "close"}
        try:
            async with self._proxy.get(f"http://127.0.0.1:{port}/-/routes", timeout=limit, headers=alone) as response:
                return frozenset(await response.json()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _request(self, method: str, body: Any, seconds: float) -> tuple[int, Any]:
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(method, self._url, json=body, timeout=limit) as response:
                if response.content_type == "application/json":
                    return response.status, await response.json()
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RayUnavailable(f"{method} {self._url}: {type(error).__name__}: {error}") from error


def _last_line(answer: Any) -> str:
    lines = [line for line in str(answer).strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no text"
