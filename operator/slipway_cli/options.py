"""From parsed arguments to what every command that talks to a target needs."""

from __future__ import annotations

import argparse

from slipway_cli.target import Choice


def choice_of(arguments: argparse.Namespace) -> Choice:
    """The target that the command line names."""
    return Choice(arguments.kubeconfig, arguments.context, arguments.namespace)
