"""Copies standard input to standard output and to the end of a file, until the last writer of the pipe is gone.

Run by run_log.py as a script, with the bare interpreter: it imports nothing but `os`, `signal` and `sys`. A full disk
or a closed terminal costs the copy that cannot be written, never the other one and never the writer of the pipe.
"""

import os
import signal
import sys

_CHUNK = 1 << 16


def _write(descriptor: int, data: bytes) -> bool:
    """Write all of it; False when that is not possible."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return False
    return True


def main() -> None:
    """`run_log_copier.py FILE`"""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        log = -1  # the driver has just created it, so this is a disk that went away: go on with the terminal alone
    terminal = True
    while data := os.read(0, _CHUNK):
        if log >= 0:
            _write(log, data)  # tried again with the next chunk: a disk may get room
        if terminal:
            terminal = _write(1, data)


if __name__ == "__main__":
    main()
