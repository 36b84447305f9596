"""`python -m slipway_operator --config FILE [--kubeconfig FILE] [--context NAME]`: run the operator until SIGTERM.

Exit status: 0 after an orderly stop, 78 (EX_CONFIG) for a configuration that cannot be used, 1 when something that
should not end has ended; whoever started it starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from slipway_operator.app import Operator
from slipway_operator.config import ConfigError, OperatorConfig, load
from slipway_operator.kube import logs
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import KubeError

log = logging.getLogger("slipway_operator")


async def _run(config: OperatorConfig, kubeconfig: str | None, context: str | None) -> None:
    connection = await load_config(kubeconfig, context)
    await Operator(config, connection).run()


def main(argv: list[str] | None = None) -> int:
    """Parse, load, run; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m slipway_operator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the operator's configuration file (YAML)")
    parser.add_argument("--kubeconfig", help="default: $KUBECONFIG, ~/.kube/config, or the pod's service account")
    parser.add_argument("--context", help="context of the kubeconfig; default: its current one")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    arguments = parser.parse_args(argv)
    logs.configure(arguments.log_level)
    try:
        asyncio.run(_run(load(arguments.config), arguments.kubeconfig, arguments.context))
    except ConfigError as error:
        log.error("%s", error)
        return 78
    except KubeError as error:
        log.error("stopped: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
