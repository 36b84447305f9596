"""What keeps Serve's ports on loopback: the script in HAProxy's place, and the hook of Ray's workers."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway_local.loopback import on_loopback
from slipway_local.ray_runner import serve_proxy

CONFIGURATION = """
global
    maxconn 10
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend prometheus
    bind :19101
frontend http
    bind 127.0.0.1:18000
    use_backend one
frontend wide
    bind *:18001
    bind [::]:18002
listen stats
  bind *:18404
  stats enable
backend one
    server a 127.0.0.1:18003 # bind *:1
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)


@pytest.fixture
def short_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as folder:
        yield Path(folder)


def test_haproxy_listens_on_loopback_whatever_ray_writes(short_path: Path) -> None:
    variables = serve_proxy.haproxy(short_path, statistics_port=1, metrics_port=2)
    file = short_path / "haproxy.cfg"
    file.write_text(CONFIGURATION)
    script = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    # -c: HAProxy reads the configuration, says whether it is valid, and ends.
    done = run(script, "-db", "-f", str(file), "-c")
    assert done.returncode == 0, done.stderr
    binds = [line.split()[1] for line in file.read_text().splitlines() if line.split()[:1] == ["bind"]]
    assert [bind.rsplit(":", 1)[0] for bind in binds] == ["127.0.0.1"] * 5
    assert "# bind *:1" in file.read_text()
    odd = run(script, "-v")
    assert (odd.returncode, odd.stderr) == (64, "unexpected arguments: -v\n"), "what it cannot guard it does not start"


def test_a_path_that_sockets_cannot_have_means_rays_own_proxy(tmp_path: Path) -> None:
    assert serve_proxy.haproxy(tmp_path / ("x" * 60), statistics_port=1, metrics_port=2) == {}


@pytest.mark.parametrize(
    ("asked", "bound"),
    [
        ("[::]:0", "127.0.0.1:0"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("unix:/a", "unix:/a"),
    ],
)
def test_addresses_of_grpc_servers(asked: str, bound: str) -> None:
    assert on_loopback(asked) == bound
