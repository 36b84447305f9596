"""The process that the raylet starts for a worker: asks the template for a fork, or becomes the worker the usual way.

Run as `python -I -S request.py SOCKET PYTHON ARGUMENTS...`, without site-packages, since every millisecond counts here:
it imports what is needed for one message.
"""

import array
import marshal
import os
import socket
import sys

FORKED = b"f"
_TIMEOUT = 60.0  # the template may be in the middle of an import; the raylet gives up after as long


def main(arguments: list[str]) -> None:
    """Leave when there is a fork; else exec. Never returns."""
    path, python, *argv = arguments
    if _ask(path, argv) == FORKED:
        os._exit(0)
    os.execv(python, [python, *argv])


def _ask(path: str, argv: list[str]) -> bytes:
    mask = os.umask(0o077)
    os.umask(mask)
    message = marshal.dumps((argv, dict(os.environ), os.getcwd(), mask))  # noqa: PTH109 - pathlib takes 15 ms
    standard = array.array("i", (0, 1, 2))
    try:
        with socket.socket(socket.AF_UNIX) as template:
            template.settimeout(_TIMEOUT)
            template.connect(path)
            template.sendmsg(
                [len(message).to_bytes(4, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, standard.tobytes())]
            )
            template.sendall(message)
            return template.recv(1)
    except OSError:
        return b""


if __name__ == "__main__":
    main(sys.argv[1:])
