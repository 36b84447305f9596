"""Free ports on 127.0.0.1, for servers that should come back on the port that they had."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

from slipway_local.processes import read_json, write_json


def keep_ports(path: Path, names: Iterable[str]) -> dict[str, int]:
    """A port for each name: the one that the file says, or another where somebody else has taken that one since.

    Writes the file. Call it only while none of the servers runs.
    """
    known = read_json(path)
    ports: dict[str, int] = {}
    for name in names:
        port = known.get(name) if isinstance(known, dict) else None
        ports[name] = port if isinstance(port, int) and _is_free(port) else _free_port(set(ports.values()))
    write_json(path, ports)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A port whose last connections are still in TIME_WAIT is free for a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
