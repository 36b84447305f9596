"""What `up`, `down` and `status` share: the way to the local control plane's package, and its failures in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import ModuleType
from typing import Any, TypeVar

from slipway_cli.errors import CliError, TargetError

T = TypeVar("T")


def machinery() -> ModuleType:
    """The module that starts and stops the local control plane. Raises CliError where its packages are missing."""
    try:
        from slipway_local import up  # noqa: PLC0415 - 0.4 s and the extra [local]
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("slipway_"):
            raise
        raise CliError(
            f"the local control plane needs the package {error.name}, which is not installed",
            hint="pip install 'slipway[local]'",
        ) from error
    return up


def call(work: Coroutine[Any, Any, T]) -> T:
    """Runs one of its functions to the end. Its UpError becomes a TargetError: first line message, the rest details."""
    try:
        return asyncio.run(work)
    except machinery().UpError as error:
        message, *rest = str(error).splitlines()
        raise TargetError(message, details=tuple(rest), hint="slipway status; slipway down; slipway up") from error
