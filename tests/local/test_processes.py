"""Naming, finding and ending processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from slipway_local import parts
from slipway_local.layout import Layout, default_state_dir
from slipway_local.machine import Machine, detect
from slipway_local.processes import ProcessRef, in_session, marked, read_json, stop, write_json
from slipway_local.supervisor import bound_log


def start(code: str, **environment: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('up', flush=True)\nimport time; time.sleep(60)"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_a_process_is_not_another_one_of_the_same_pid() -> None:
    me = ProcessRef.of(os.getpid())
    assert me is not None
    assert me.alive()
    assert not ProcessRef(me.pid, me.started - 60).alive()
    assert ProcessRef.from_json(me.to_json()) == me
    # A signal to a name that no longer fits reaches nobody: this would be the end of the test run.
    ProcessRef(me.pid, me.started - 60).signal(signal.SIGKILL)


def test_a_zombie_does_not_live() -> None:
    process = subprocess.Popen(["true"])
    ref = ProcessRef.of(process.pid)
    assert ref is not None
    deadline = time.monotonic() + 10
    while ref.alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()


async def test_families_are_found_by_their_mark_and_ended_even_when_deaf() -> None:
    value = f"v{os.getpid()}"
    deaf = "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    process = start(f"{deaf}\nsubprocess.Popen(['sleep', '60'], start_new_session=True)", SLIPWAY_TEST_MARK=value)
    other = start("pass", SLIPWAY_TEST_MARK=f"{value}x")
    try:
        found = marked("SLIPWAY_TEST_MARK", value)
        assert len(found) == 2, "the process and what it started"
        assert {ref.pid for ref in in_session(process.pid)} == {process.pid}
        assert await stop(lambda: marked("SLIPWAY_TEST_MARK", value), grace=0.3)
        assert not marked("SLIPWAY_TEST_MARK", value)
        assert other.poll() is None, "a stranger is left alone"
    finally:
        for one in (process, other):
            one.kill()
            one.wait()


async def test_what_was_found_once_is_ended_though_nothing_points_to_it_any_more() -> None:
    """A process that is known only by another, which goes at once; itself it does not care about SIGTERM."""
    known, stubborn = start(""), start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    refs = [ProcessRef.of(process.pid) for process in (known, stubborn)]
    try:
        assert None not in refs
        found = [ref for ref in refs if ref is not None]
        assert await stop(lambda: found if found[0].alive() else [], grace=0.3)
        assert not found[1].alive()
    finally:
        for one in (known, stubborn):
            one.kill()
            one.wait()


def test_files_are_replaced_as_a_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_json(path) == {"a": 1}
    path.write_text('{"a": ')
    assert read_json(path) is None
    assert read_json(tmp_path / "none") is None
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]


def test_a_log_is_bounded_while_its_writer_keeps_it_open(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * 600)
        bound_log(path, limit=1000)
        assert path.stat().st_size == 600
        writer.write(b"b" * 600)
        bound_log(path, limit=1000)
        writer.write(b"c")
    assert path.read_bytes() == b"c"
    assert (tmp_path / "part.log.1").read_bytes() == b"a" * 400 + b"b" * 600


def test_the_operators_configuration(tmp_path: Path) -> None:
    from slipway_operator.config import load  # noqa: PLC0415

    layout = Layout(tmp_path)
    ports = parts.choose_ports(layout)
    machine = Machine(cpus=3, gpus=1, memory=5 * 1024**3)
    assert parts.write_operator_config(layout, ports, machine)
    assert not parts.write_operator_config(layout, ports, machine), "nothing has changed"
    config = load(layout.operator_config)
    assert config.storage.uri == (tmp_path / "storage").as_uri()
    assert config.reports.url == f"http://127.0.0.1:{ports.reports}"
    assert [(p.cpus, p.gpus, p.memory, p.nodes) for p in config.pools] == [(3, 1, "5Gi", 1)]
    assert not config.leader_election.enabled
    key = layout.report_key
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(key.read_text())) == 32
    assert parts.choose_ports(layout) == ports, "a kubeconfig and running jobs keep their address"
    assert yaml.safe_load(layout.operator_config.read_text())["metrics"]["listen"].startswith("127.0.0.1:")


def test_ports_that_somebody_has_taken_are_replaced(tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    layout = Layout(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        write_json(layout.ports, {"reports": taken.getsockname()[1], "metrics": "nonsense"})
        ports = parts.choose_ports(layout)
        assert taken.getsockname()[1] not in (ports.reports, ports.metrics)
        assert ports.reports != ports.metrics


def test_what_parts_inherit(tmp_path: Path) -> None:
    given = {"KUBECONFIG": "/x", "RAY_ADDRESS": "y", "PYTHONPATH": "z", "HF_HUB_OFFLINE": "1", "PATH": "/bin"}
    environment = parts.environment(Layout(tmp_path), given)
    assert not {"KUBECONFIG", "RAY_ADDRESS", "PYTHONPATH"} & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"] == f"{Path(sys.executable).absolute().parent}:/bin"
    assert environment["SLIPWAY_HOME"] == str(tmp_path)


def test_the_state_directory() -> None:
    assert default_state_dir({"SLIPWAY_HOME": "/x/y"}) == Path("/x/y")
    assert default_state_dir({}) == Path.home() / ".slipway"


def test_this_machine() -> None:
    found = detect()
    assert found.cpus == os.cpu_count()
    assert found.memory % 1024**3 == 0
    assert found.memory >= 1024**3
    assert detect(cpus=7).cpus == 7
