"""The template: imports, waits for requests, forks. `python -m slipway_local.ray_runner.fork_server.template`.

Between two imports it serves whoever has asked meanwhile, so that the first workers of a head wait for what they would
have imported themselves and not for everything.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import marshal
import os
import random
import re
import runpy
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slipway_local.ray_runner.fork_server.request import FORKED

log = logging.getLogger(__name__)

REFUSED = b"n"

MODULES = (
    # Of every worker of Ray.
    *(
        "google.protobuf.descriptor_pb2",
        "google.protobuf.json_format",
        "grpc.aio",
        "grpc_reflection.v1alpha.reflection",
        "jsonschema",
        "msgpack",
        "opentelemetry.sdk.trace.export",
        "psutil",
        "requests",
        "wcwidth",
        "yaml",
        "click",
        "aiohttp.web",
        "pydantic",
    ),
    # Of ray.train and ray.serve.
    *(
        "numpy",
        "pandas",
        "pyarrow.parquet",
        "pyarrow.dataset",
        "pyarrow.json",
        "fsspec.implementations.local",
        "fastapi",
        "uvicorn.lifespan.on",
        "uvloop",
        "prometheus_client",
        "pydantic.v1",
        "pydantic.dataclasses",
        "pydantic.deprecated.class_validators",
        "slipway_api.run",
        "slipway_api.serving",
        "slipway_serving.openai.http",
        "slipway_serving.router",
    ),
    # Of ranks, replicas and evaluations.
    *("torch", "torch.distributed.fsdp", "slipway_jobs.train.engine", "slipway_jobs.train.ranks", "slipway_jobs.data"),
    # What transformers imports for its models, not these themselves: a process decides before it imports them whether
    # transformers may use its optional packages (slipway_jobs.lean_transformers).
    *(
        "transformers.utils",
        "accelerate",
        "tokenizers.processors",
        "torch._dynamo",
        "torch.nn.attention.flex_attention",
        "slipway_jobs.evaluate.worker",
        "slipway_serving.replica",
    ),
)
"""What workers import, in the order in which a head needs it.

Nothing of Ray, whose C++ reads when it is loaded which job the worker is for.
"""

READ_BY_IMPORTS = re.compile(
    r"(PYTHON|LD_|DYLD_|HF_|HUGGINGFACE_|TRANSFORMERS_|TORCH|PYTORCH_|CUDA_|ROCR_|HIP_|MKL_|KMP_|GOMP_|GOTO_|OPENBLAS_"
    r"|ARROW_|GRPC_|TOKENIZERS_|TQDM_|MALLOC_|MIMALLOC_|SAFETENSORS_|USE_|HOME$|XDG_|LANG$|LC_|TZ$|PATH$|VIRTUAL_ENV$)"
)
"""Variables that may decide what an import does. A worker for which one of these differs is not forked."""

_NICENESS, _RAYS_NICENESS = "RAY_worker_niceness", 15

_ROOM = "SLIPWAY_FORK_ROOM"
_ROOM_BYTES = 16 * 1024
_SHUTDOWN = (signal.SIGTERM, signal.SIGINT)
_UNEXPANDED = re.compile(r"\$\{[A-Z0-9_]+\}")


@dataclass(frozen=True, slots=True)
class Request:
    """A worker that the raylet wants: its command without the interpreter, and what a process has besides."""

    argv: list[str]
    environment: dict[str, str]
    directory: str
    mask: int


@dataclass(frozen=True, slots=True)
class Worker:
    """What to run in the fork: a script, its arguments and the whole environment."""

    script: str
    arguments: list[str]
    environment: dict[str, str]


def environment_with_room(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment to start a template with: there is room to write another one over it."""
    return {**environment, _ROOM: "-" * _ROOM_BYTES}


def worker(request: Request, python: str) -> Worker | str:
    """What Ray's setup_worker.py would turn into, or why that is not a plain worker of this interpreter.

    That is RuntimeEnvContext.exec_worker: `update_envs`, then exec of `py_executable` with the arguments that it does
    not know itself.
    """
    script, *arguments = request.argv
    if Path(script).name == "default_worker.py":
        return Worker(script, arguments, request.environment)
    rest, context, language = [], "{}", "PYTHON"
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--serialized-runtime-env-context":
            context = value
        elif name == "--language":
            language = value
        else:
            rest.append(argument)
    if language != "PYTHON" or not rest or Path(rest[0]).name != "default_worker.py":
        return f"not a Python worker: {rest[:1]} in {language}"
    setup = json.loads(context)
    variables = setup.pop("env_vars", None) or {}
    if (setup.pop("py_executable", None) or python) != python:
        return "another interpreter"
    if any(setup.values()):
        return f"a runtime environment with {', '.join(name for name, value in setup.items() if value)}"
    return Worker(rest[0], rest[1:], expanded(request.environment, variables))


def expanded(environment: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The environment with these variables, in which ${X} stands for the X there is so far, or nothing."""
    result = dict(environment)
    for name, value in variables.items():
        known = re.sub(r"\$(\w+|\{[^}]*\})", lambda m: result.get(m[1].strip("{}"), m[0]), value)
        result[name] = _UNEXPANDED.sub("", known)
    return result


def begin_nice(environment: Mapping[str, str]) -> dict[str, str]:
    """Be as nice as Ray makes its workers; the environment with which Ray adds nothing to it.

    Ray does so only when a worker has imported Ray: until then it would take the CPU from replicas that answer.
    """
    wanted = environment.get(_NICENESS, str(_RAYS_NICENESS))
    if not wanted.isdigit():
        return dict(environment)  # Ray knows what it is
    os.nice(int(wanted))
    return {**environment, _NICENESS: "0"}


def differing(mine: Mapping[str, str], its: Mapping[str, str]) -> list[str]:
    """The variables that imports may have read and that this worker has otherwise."""
    names = {n for n in (*mine, *its) if READ_BY_IMPORTS.match(n)}
    return sorted(name for name in names if mine.get(name) != its.get(name))


class Template:
    """Listens on a socket that only its owner can reach, in a directory that only its owner can enter."""

    def __init__(self, path: Path, python: str, environment: Mapping[str, str]) -> None:
        self._python = python
        self._environment = {name: value for name, value in environment.items() if name != _ROOM}
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._listener.setblocking(False)
        # A child's end interrupts the wait for requests.
        self._woken, wake = socket.socketpair()
        self._woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._wake = wake

    def run(self, modules: Iterable[str]) -> NoReturn:
        """Import and serve, for ever. A module that cannot be imported is for its workers to complain about."""
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception:
                log.exception("the template cannot import %s", module)
            self._serve(wait=0.0)
        gc.collect()
        gc.freeze()  # or the first collection in each fork would copy every page of what they share
        while True:
            self._serve(wait=None)

    def _serve(self, *, wait: float | None) -> None:
        """Everybody who waits; first for somebody to come, if wanted. Seconds, None for as long as it takes."""
        select.select([self._listener, self._woken], [], [], wait)
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            with connection:
                connection.settimeout(5.0)
                try:
                    self._answer(connection)
                except (OSError, ValueError, EOFError) as error:
                    log.warning("a request for a worker failed: %s", error)

    def _answer(self, connection: socket.socket) -> None:
        request, standard = _receive(connection)
        try:
            wanted = worker(request, self._python)
            if isinstance(wanted, Worker) and (names := differing(self._environment, wanted.environment)):
                wanted = f"other values of {', '.join(names)}"
            if isinstance(wanted, str):
                log.info("not forked: %s", wanted)
                connection.sendall(REFUSED)
                return
            group = os.getpgid(_peer(connection))
            if os.fork() == 0:
                self._become(wanted, request, standard, group, connection)
        finally:
            for descriptor in standard:
                os.close(descriptor)

    def _become(
        self, wanted: Worker, request: Request, standard: list[int], group: int, connection: socket.socket
    ) -> NoReturn:
        """In the fork: be the worker. It says itself that it is there, so that nobody else can in its place."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *_SHUTDOWN):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.setpgid(0, group)  # what the raylet ends when it ends the worker
            for target, descriptor in enumerate(standard):
                os.dup2(descriptor, target)
            os.chdir(request.directory)
            os.umask(request.mask)
            _set_environment(begin_nice(wanted.environment))
            _reseed()
            _number_of_threads()
            connection.sendall(FORKED)
            for owned in (connection, self._listener, self._woken, self._wake):
                owned.close()
            for descriptor in standard:
                os.close(descriptor)
            sys.argv = [wanted.script, *wanted.arguments]
            sys.path.insert(0, str(Path(wanted.script).parent))
            runpy.run_path(wanted.script, run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            logging.getLogger(__name__).exception("a forked worker failed")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            _leave(status)


def _leave(status: int) -> NoReturn:
    """End as a Python that was started would: with what was registered to run at exit, without the template's stack."""
    import atexit  # noqa: PLC0415 - for forks only

    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    os._exit(status)


def _receive(connection: socket.socket) -> tuple[Request, list[int]]:
    header, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * 4))
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    standard = list(descriptors)
    try:
        size = int.from_bytes(header, "little")
        message = b""
        while len(message) < size:
            part = connection.recv(size - len(message))
            if not part:
                raise EOFError("it was cut off")
            message += part
        if len(standard) != 3:
            raise ValueError("it came without its standard streams")
        argv, environment, directory, mask = marshal.loads(message)
        return Request(argv, environment, directory, mask), standard
    except BaseException:
        for descriptor in standard:
            os.close(descriptor)
        raise


def _peer(connection: socket.socket) -> int:
    """The pid at the other end. Raises PermissionError where it is somebody else's."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.getuid():
        raise PermissionError(f"uid {user} asked for a worker")
    return int(pid)


def _set_environment(environment: Mapping[str, str]) -> None:
    """For this process, and for who looks at it in /proc. Ours come first there, should the room not suffice."""
    os.environ.clear()
    os.environ.update(environment)
    ordered = sorted(environment.items(), key=lambda item: not item[0].startswith("SLIPWAY_"))
    start, end = _shown_environment()
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in ordered)
    if len(text) > end - start:
        text = text[: text.rfind(b"\0", 0, end - start) + 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


def _shown_environment() -> tuple[int, int]:
    """Where the kernel looks for the environment of this process: env_start and env_end of proc(5)."""
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    return int(fields[50 - 3]), int(fields[51 - 3])


def _reseed() -> None:
    """What a new process draws from the system, and forks would have in common. (`random` does so by itself.)"""
    random.seed()
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _number_of_threads() -> None:
    """Torch reads OMP_NUM_THREADS when it is imported, which Ray relies on: it sets the variable before the first task
    to the CPUs that the task has. Here torch is there already and has to be told."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    utils: Any = importlib.import_module("ray._private.utils")
    set_by_ray = utils.set_omp_num_threads_if_unset

    def set_and_tell() -> bool:
        changed = bool(set_by_ray())
        if changed:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return changed

    utils.set_omp_num_threads_if_unset = set_and_tell


def main() -> NoReturn:
    """`template.py SOCKET PYTHON [MODULE...]`; without modules, MODULES."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    path, python, *modules = sys.argv[1:]
    Template(Path(path), python, os.environ).run(modules or MODULES)


if __name__ == "__main__":
    main()
