"""The process's own HTTP endpoint: /healthz (is a restart needed?), /readyz (are the caches warm?), /metrics.

It shares the event loop with the work on purpose: a loop that is blocked cannot answer its probe.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from slipway_operator.kube.metrics import Metrics

Check = Callable[[], str | None]
"""Returns what is wrong, None when nothing is."""


def health_app(healthz: Mapping[str, Check], readyz: Mapping[str, Check], metrics: Metrics) -> web.Application:
    """The application; each probe answers 200, or 503 with one line for each check that fails."""

    def probe(checks: Mapping[str, Check]) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            problems = [f"{name}: {problem}" for name, check in checks.items() if (problem := check()) is not None]
            return web.Response(status=503 if problems else 200, text="\n".join(problems or ["ok"]) + "\n")

        return answer

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", probe(healthz))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(readyz))  # type: ignore[arg-type]
    app.router.add_get("/metrics", scrape)
    return app


class HealthServer:
    """Serves an application on one address."""

    def __init__(
        self, app: web.Application, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """Port 0 takes any free one. `tls` makes it https."""
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._host = host
        self._port = port
        self._tls = tls
        self.url = ""
        """Where it listens, once started."""

    async def start(self) -> None:
        """Listens. Raises OSError when the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls).start()
        host, port = self._runner.addresses[0][:2]
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def stop(self) -> None:
        """Stops listening; does nothing when it never started."""
        await self._runner.cleanup()
