"""`python -m slipway_local.apiserver --state-dir DIR [--port 0]`: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slipway_local.apiserver.entrance import Entrance, StateDirInUseError, entrance

if TYPE_CHECKING:
    from slipway_local.apiserver.server import ApiServer


def main() -> int:
    """Parse the arguments and serve. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slipway_local.apiserver", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: the one it had before, or any")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        with entrance(arguments.state_dir, arguments.port) as opened:
            # A second's work, and others look for the kubeconfig.
            from slipway_local.apiserver import server, storage  # noqa: PLC0415

            try:
                asyncio.run(_serve(server.ApiServer(opened), opened))
            except storage.StorageError as failure:
                sys.stderr.write(f"{failure}\n")
                return 1
    except (StateDirInUseError, OSError) as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    return 0


async def _serve(server: ApiServer, opened: Entrance) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        # What is here now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        # A request makes thousands of small objects that reference counting frees: look for cycles less often.
        gc.set_threshold(20_000, 20, 50)
        sys.stdout.write(f"{opened.url}\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
