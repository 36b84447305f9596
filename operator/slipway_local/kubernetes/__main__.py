"""`python -m slipway_local.kubernetes --state-dir DIR --kubeconfig FILE`: a real control plane until SIGTERM or SIGINT.

The supervisor runs it in the place of the embedded API server. The kubeconfig is written when everything is ready. When
one of the programs ends, all are ended and the exit status is 1: whoever started this starts it again.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import threading
from pathlib import Path

from slipway_local.kubernetes.binaries import MissingBinaryError
from slipway_local.kubernetes.control_plane import ControlPlane, ControlPlaneError
from slipway_operator.kube.logs import configure

log = logging.getLogger("slipway_local.kubernetes")

_POLL = 0.5


def main() -> int:
    """Parse the arguments and run. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m slipway_local.kubernetes", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--kubeconfig", type=Path, required=True, help="where the administrator's kubeconfig goes")
    arguments = parser.parse_args()
    configure()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with ControlPlane(arguments.state_dir) as plane:
            _hand_over(plane.kubeconfig, arguments.kubeconfig)
            log.info("ready: %s", plane.url)
            while not stop.wait(_POLL):
                if (name := plane.ended()) is not None:
                    log.error("%s ended; see %s", name, plane.log(name))
                    return 1
    except (MissingBinaryError, ControlPlaneError) as error:
        log.error("%s", error)
        return 1
    return 0


def _hand_over(made: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    shutil.copyfile(made, temporary)
    temporary.chmod(0o600)
    temporary.replace(target)


if __name__ == "__main__":
    sys.exit(main())
