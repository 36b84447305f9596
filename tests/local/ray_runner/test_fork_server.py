"""The template that Ray's workers are forked from: what it forks, what it leaves alone, and that a fork is a process
like any other. (test_runner.py has a real worker.)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from slipway_local.processes import marked
from slipway_local.ray_runner.fork_server.template import (
    Request,
    Worker,
    differing,
    environment_with_room,
    expanded,
    worker,
)

PYTHON = "/venv/bin/python"
SETUP, SCRIPT = "/ray/workers/setup_worker.py", "/ray/workers/default_worker.py"


def request(*argv: str, **environment: str) -> Request:
    return Request(list(argv), environment, "/", 0o22)


def with_setup(context: dict[str, Any], language: str = "PYTHON") -> Request:
    words = (
        f"--language={language}",
        "--runtime-env-hash=7",
        f"--serialized-runtime-env-context={json.dumps(context)}",
    )
    return request(SETUP, SCRIPT, "--worker-id=1", *words, A="a")


# Ray 2.60 writes all of them.
CONTEXT = {
    "command_prefix": [],
    "env_vars": {},
    "py_executable": PYTHON,
    "override_worker_entrypoint": None,
    "java_jars": [],
}


def test_a_worker_without_a_runtime_environment() -> None:
    assert worker(request(SCRIPT, "--worker-id=1", A="a"), PYTHON) == Worker(SCRIPT, ["--worker-id=1"], {"A": "a"})


def test_a_worker_with_variables() -> None:
    found = worker(with_setup({**CONTEXT, "env_vars": {"B": "${A}b", "C": "${NONE}c"}}), PYTHON)
    assert found == Worker(SCRIPT, ["--worker-id=1", "--runtime-env-hash=7"], {"A": "a", "B": "ab", "C": "c"})


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (with_setup({**CONTEXT, "py_executable": "/other/python"}), "another interpreter"),
        (with_setup({**CONTEXT, "command_prefix": ["nice"]}), "command_prefix"),
        (with_setup({**CONTEXT, "override_worker_entrypoint": "/other.py"}), "override_worker_entrypoint"),
        (with_setup({**CONTEXT, "something_new": 1}), "something_new"),
        (with_setup(CONTEXT, "JAVA"), "JAVA"),
        (request(SETUP, "-m", "ray.util.client.server"), "not a Python worker"),
        (request(SETUP), "not a Python worker"),
    ],
)
def test_what_is_not_forked(asked: Request, why: str) -> None:
    found = worker(asked, PYTHON)
    assert isinstance(found, str)
    assert why in found


def test_variables_expand_as_in_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import update_envs  # noqa: PLC0415 - the reference

    given = {
        "X_A": "$X_BASE/1",
        "X_B": "${X_A}:${X_NONE}:$X_NONE",
        "X_C": "100%",
        "X_D": "${x_lower}",
        "X_E": "$$X_BASE",
    }
    monkeypatch.setenv("X_BASE", "base")
    mine = expanded(os.environ, given)
    update_envs(given)
    rays = {name: os.environ[name] for name in given}
    for name in given:
        monkeypatch.delenv(name)
    assert {name: mine[name] for name in given} == rays


def test_rays_runtime_environment_has_no_part_that_is_not_known() -> None:
    from ray._private.runtime_env.context import RuntimeEnvContext  # noqa: PLC0415

    assert set(RuntimeEnvContext().__dict__) == set(CONTEXT)


def test_variables_that_an_import_may_have_read() -> None:
    mine = {"HOME": "/root", "HF_HOME": "/a", "OMP_NUM_THREADS": "4", "ANY": "1"}
    assert differing(mine, {**mine, "OMP_NUM_THREADS": "1", "ANY": "2", "RAY_JOB_ID": "01", "MORE": "x"}) == []
    assert differing(mine, {**mine, "HF_HOME": "/b"}) == ["HF_HOME"]
    assert differing(mine, {"HOME": "/root"}) == ["HF_HOME"]
    assert differing(mine, {**mine, "PYTHONPATH": "/x"}) == ["PYTHONPATH"]


def test_there_is_room_for_another_environment() -> None:
    assert sum(map(len, environment_with_room({"A": "a"}).values())) > 16_000


# -- real processes ------------------------------------------------------------------------------------------------

REPORT = """
import json, os, random, sys, time
with open("/proc/self/environ", "rb") as file:
    shown = [v.decode() for v in file.read().split(b"\\0") if v]
report = dict(pid=os.getpid(), parent=os.getppid(), group=os.getpgid(0), argv=sys.argv, cwd=os.getcwd(), shown=shown,
    environment=dict(os.environ), preloaded="decimal" in sys.modules, name=__name__, random=random.random(),
    main=sys.modules["__main__"].__file__, mask=os.umask(0), path=sys.path[0],
    nice=os.nice(0))
print(json.dumps(report), flush=True)
print("to stderr", file=sys.stderr, flush=True)
if "--wait" in sys.argv:
    time.sleep(60)
if "--fail" in sys.argv:
    raise RuntimeError("a worker that fails")
"""


class Forks:
    """A template and the interpreter that asks it, as `ray start` would have them."""

    def __init__(self, directory: Path, modules: tuple[str, ...]) -> None:
        self.directory = directory
        # (The shell sets PWD to where it is, whatever it was.)
        self.environment = {**os.environ, "SLIPWAY_RAY_HEAD": "test", "PWD": str(directory)}
        code = (
            "import sys; from pathlib import Path; from slipway_local.ray_runner.fork_server import start\n"
            f"print(start.launch(Path(sys.argv[1]), sys.executable, {modules!r}))"
        )
        self.python = subprocess.run(
            [sys.executable, "-P", "-c", code, directory],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        self.script = directory / "default_worker.py"
        self.script.write_text(REPORT)
        deadline = time.monotonic() + 30
        while not (directory / "template.sock").exists():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)
        self.template = next(p for p in psutil.process_iter() if str(directory / "template.sock") in _words(p))

    @property
    def log(self) -> str:
        return (self.directory / "template.log").read_text()

    def start(self, *arguments: str, **variables: str) -> Path:
        """Ask for a worker; where its output goes. The process that asks is waited for."""
        output = self.directory / f"{time.monotonic_ns()}.out"
        with output.open("wb") as file:
            subprocess.run(
                [self.python, self.script, *arguments],
                env={**self.environment, **variables},
                cwd=self.directory,
                stdout=file,
                stderr=file,
                timeout=60,
                check=False,
                process_group=0,  # as the raylet does; all of a head is in one session, as here
            )
        return output

    def report(self, *arguments: str, **variables: str) -> dict[str, Any]:
        return _report(self.start(*arguments, **variables))


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _report(output: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while "to stderr" not in (text := output.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
    report: dict[str, Any] = json.loads(text.splitlines()[0])
    return report


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    forks = Forks(tmp_path, ("decimal", "no_such_module", "numpy"))
    yield forks
    if forks.template.is_running():
        forks.template.kill()


def test_a_fork_is_the_worker_that_was_asked_for(forks: Forks) -> None:
    found = forks.report("--worker-id=1", OMP_NUM_THREADS="1", MARKED="yes", SLIPWAY_RAY_JOB="one")
    assert found["parent"] == forks.template.pid
    assert found["preloaded"]
    assert found["argv"] == [str(forks.script), "--worker-id=1"]
    assert found["name"] == "__main__"
    assert found["main"] == str(forks.script)
    assert found["path"] == str(forks.directory)
    assert found["cwd"] == str(forks.directory)
    os.umask(mine := os.umask(0))
    assert found["mask"] == mine
    wanted = {**forks.environment, "OMP_NUM_THREADS": "1", "MARKED": "yes", "SLIPWAY_RAY_JOB": "one"}
    wanted["RAY_worker_niceness"] = "0"  # it is that nice already
    assert found["environment"] == wanted
    assert dict(v.split("=", 1) for v in found["shown"]) == wanted, "the environment that other processes see"
    assert "no_such_module" in forks.log


@pytest.mark.parametrize(("asked", "nice"), [(None, 15), ("0", 0), ("3", 3), ("-1", 0)])
def test_a_fork_is_as_nice_as_ray_would_make_it_from_its_first_line(forks: Forks, asked: str | None, nice: int) -> None:
    found = forks.report(**({} if asked is None else {"RAY_worker_niceness": asked}))
    assert found["nice"] == min(19, nice + os.nice(0))
    assert found["environment"]["RAY_worker_niceness"] == ("-1" if asked == "-1" else "0"), "Ray adds nothing to it"


def test_forks_have_nothing_random_in_common(forks: Forks) -> None:
    assert forks.report()["random"] != forks.report()["random"]


def test_a_fork_is_found_by_its_mark_and_is_in_the_group_that_was_started_for_it(forks: Forks) -> None:
    mark = forks.directory.name
    found = _report(forks.start("--wait", SLIPWAY_RAY_JOB=mark))
    assert [ref.pid for ref in marked("SLIPWAY_RAY_JOB", mark)] == [found["pid"]]
    assert found["group"] not in (os.getpgid(0), os.getpgid(forks.template.pid), found["pid"])
    os.killpg(found["group"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(found["pid"]):
        assert time.monotonic() < deadline, "the template does not wait for its children"
        time.sleep(0.01)
    assert forks.template.is_running()


def test_another_value_of_what_an_import_has_read(forks: Forks) -> None:
    found = forks.report(HF_HOME="/elsewhere")
    assert found["parent"] != forks.template.pid
    assert not found["preloaded"]
    assert found["environment"]["HF_HOME"] == "/elsewhere"
    assert "not forked: other values of HF_HOME" in forks.log


def test_a_worker_that_fails_is_no_worry_of_the_template(forks: Forks) -> None:
    output = forks.start("--fail")
    _report(output)
    deadline = time.monotonic() + 10
    while "a worker that fails" not in output.read_text():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.01)
    assert forks.report()["parent"] == forks.template.pid


def test_without_a_template_workers_start_as_ever(forks: Forks) -> None:
    forks.template.kill()
    forks.template.wait(10)
    found = forks.report("--worker-id=1")
    assert not found["preloaded"]
    assert found["argv"] == [str(forks.script), "--worker-id=1"]


def test_everything_else_is_the_plain_interpreter(forks: Forks) -> None:
    code = "import sys; print(sys.executable, sys.prefix)"
    said = [subprocess.check_output([python, "-c", code], text=True) for python in (forks.python, sys.executable)]
    assert said[0] == said[1]


IMPORT_ALL = """
import importlib, sys, torch
from slipway_local.ray_runner.fork_server.template import MODULES
calls = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, lambda name=name: calls.append(name) or 0)
for name in MODULES:
    importlib.import_module(name)
undecided = "ray", "transformers.modeling_utils", "deepspeed", "torchao"
print([name for name in undecided if name in sys.modules], calls)
"""


def test_what_is_imported_has_no_ray_decides_nothing_about_transformers_and_touches_no_gpu() -> None:
    """CUDA does not work in a fork of a process that has so much as counted the devices."""
    found = subprocess.check_output([sys.executable, "-P", "-c", IMPORT_ALL], text=True)
    assert found.strip() == "[] []"


def test_launching_needs_no_quiet_name(tmp_path: Path) -> None:
    """A directory with a blank in it: the script quotes."""
    place = tmp_path / "a b"
    place.mkdir()
    forks = Forks(place, ("decimal",))
    try:
        assert forks.report()["parent"] == forks.template.pid
    finally:
        forks.template.kill()
