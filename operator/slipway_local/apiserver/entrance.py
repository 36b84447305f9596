"""How one gets in: the state directory's lock, credentials, the port, the kubeconfig. All that is needed to be found.

It is there before the server is, which takes a second to import and to open its state: whoever finds the kubeconfig
starts meanwhile, and a connection waits in the kernel until the server takes it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slipway_local.apiserver import credentials
from slipway_local.lock import locked

BACKLOG = 1024


class StateDirInUseError(Exception):
    """Another process serves from this state directory."""


@dataclass(frozen=True)
class Entrance:
    """An open port of loopback, and what a client needs to come in."""

    state_dir: Path
    listener: socket.socket
    url: str
    tls: ssl.SSLContext
    ca: bytes
    token: str

    @property
    def kubeconfig(self) -> Path:
        """The file that leads here."""
        return self.state_dir / "kubeconfig"


@contextlib.contextmanager
def entrance(state_dir: Path, port: int = 0) -> Iterator[Entrance]:
    """Open until left. `port=0` takes the port that the directory had before, if it is free, else any.

    Raises StateDirInUseError; OSError where an explicit port is taken.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    in_use = StateDirInUseError(f"{state_dir}: another API server serves from this directory")
    with locked(state_dir / "lock", in_use):
        token = credentials.load_token(state_dir)
        tls, ca = credentials.tls_context(state_dir)
        with _listener(state_dir, port) as listener:
            listener.listen(BACKLOG)
            taken = int(listener.getsockname()[1])
            opened = Entrance(state_dir, listener, f"https://127.0.0.1:{taken}", tls, ca, token)
            credentials.write_private(state_dir / "port", str(taken).encode())
            credentials.write_private(opened.kubeconfig, credentials.kubeconfig(opened.url, ca, token))
            yield opened


def _listener(state_dir: Path, asked: int) -> socket.socket:
    candidates = [asked]
    if not asked:
        with contextlib.suppress(OSError, ValueError):
            candidates.insert(0, int((state_dir / "port").read_text()))
    for position, port in enumerate(candidates):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            if position == len(candidates) - 1:
                raise
            continue
        return listener
    raise AssertionError("unreachable")
