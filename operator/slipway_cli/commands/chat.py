"""`slipway chat`: talks to a Deployment through its OpenAI-compatible endpoint, token by token."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from slipway_cli import endpoint, session
from slipway_cli.endpoint import Endpoint
from slipway_cli.errors import CliError
from slipway_cli.options import choice_of

API_KEY = "SLIPWAY_API_KEY"


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """One answer to --message, else a conversation until the end of input."""
    key = environment.get(API_KEY)
    found = session.run(
        choice_of(arguments),
        environment,
        lambda opened: endpoint.find(opened, arguments.what, url=arguments.url, api_key=key),
    )
    options: dict[str, Any] = {
        name: value
        for name, value in (
            ("max_tokens", arguments.max_tokens),
            ("temperature", arguments.temperature),
            ("seed", arguments.seed),
        )
        if value is not None
    }
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    if arguments.message is not None:
        _say(found, [*messages, {"role": "user", "content": arguments.message}], options)
        return 0
    return _converse(found, messages, options)


def _converse(found: Endpoint, messages: list[dict[str, str]], options: dict[str, Any]) -> int:
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{found.name} at {found.url}; end with Ctrl-D", file=sys.stderr)
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        if not line.strip():
            continue
        asked = [*messages, {"role": "user", "content": line.rstrip("\n")}]
        try:
            answer = _say(found, asked, options)
        except CliError as error:
            if not interactive:
                raise
            print(f"error: {error.message}", file=sys.stderr)  # the conversation goes on without this turn
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]


def _say(found: Endpoint, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    pieces = []
    for piece in found.chat(messages, options):
        sys.stdout.write(piece)
        sys.stdout.flush()
        pieces.append(piece)
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(pieces)
