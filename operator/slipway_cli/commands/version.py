"""`slipway version`: of this command and of the server that it would talk to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import metadata

import orjson

from slipway_cli import session
from slipway_cli.errors import TargetError
from slipway_cli.options import choice_of
from slipway_cli.session import Session


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints both versions; a server that does not answer is said, and is no failure of this command."""
    print(f"slipway: {metadata.version('slipway')}")
    if arguments.client:
        return 0

    async def command(opened: Session) -> int:
        found = orjson.loads(await opened.client.raw("GET", "/version"))
        print(f"server:  {found.get('gitVersion')} ({opened.target})")
        return 0

    try:
        return session.run(choice_of(arguments), environment, command)
    except TargetError as error:
        print(f"server:  none ({error.message})")
        return 0
