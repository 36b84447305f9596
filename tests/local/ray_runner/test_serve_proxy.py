"""What keeps Serve's ports on loopback: the script in HAProxy's place, and the hook of Ray's workers."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway_local.loopback import on_loopback
from slipway_local.ray_runner import serve_proxy

PORTS = serve_proxy.Ports(statistics=1, metrics=2, fallback=3, fallback_grpc=4)
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
    variables = serve_proxy.haproxy(short_path, PORTS)
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
    assert serve_proxy.haproxy(tmp_path / ("x" * 60), PORTS) == {}


def test_replicas_of_each_head_have_a_block_of_ports(short_path: Path) -> None:
    blocks = set()
    for number in range(200):
        (directory := short_path / str(number)).mkdir()
        variables = serve_proxy.haproxy(directory, PORTS)
        assert variables["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] == "3"
        kinds = [
            [int(variables[f"RAY_SERVE_DIRECT_INGRESS_{bound}_{kind}_PORT"]) for bound in ("MIN", "MAX")]
            for kind in ("HTTP", "GRPC")
        ]
        assert [last - first for first, last in kinds] == [199, 199]
        assert kinds[1][0] == kinds[0][1] + 1
        blocks.add((kinds[0][0], kinds[1][1]))
    ordered = sorted(blocks)
    assert len(ordered) > 20, "heads are spread over the blocks"
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ordered))
    assert ordered[0][0] > 1023 and ordered[-1][1] < 32768, "outside what the kernel hands out"


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
