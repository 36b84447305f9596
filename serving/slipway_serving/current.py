"""The router of this process.

Apart from app.py, because Serve sends its deployments' classes by value: what they refer to by a module's name is the
same for all, while a variable of their own module would be a copy.
"""

from __future__ import annotations

from slipway_serving.router import Router

_routers: list[Router] = []


def put(router: Router) -> None:
    """This process has a router now."""
    _routers.append(router)


def get() -> Router:
    """The router. Raises RuntimeError before there is one."""
    if not _routers:
        raise RuntimeError("this process has no router yet")
    return _routers[-1]
