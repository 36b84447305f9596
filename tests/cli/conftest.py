"""A real API server in a thread, the command line in this process, and a hand that plays the operator."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from slipway_cli.main import main
from slipway_local.apiserver.server import ApiServer
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.resource import EVENTS, TRAINJOBS, Json

T = TypeVar("T")

MANIFEST = """\
apiVersion: slipway.dev/v1alpha1
kind: TrainJob
metadata:
  name: {name}
spec:
  model:
    fresh: {{hiddenSize: 64, layers: 2, heads: 4, maxPositionEmbeddings: 128}}
  tokenizer:
    train: {{vocabSize: 512}}
  data:
    sources:
    - uri: python://stdlib
    sequenceLength: 64
  training:
    steps: {steps}
"""


class ServerThread:
    """An ApiServer on a loop of its own, because every command runs a loop of its own too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-server", daemon=True)
        self._server: ApiServer | None = None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self._server = self.call(self._enter())

    async def _enter(self) -> ApiServer:
        return await ApiServer(self._folder).__aenter__()

    def stop(self) -> None:
        if self._server is not None:
            self.call(self._server.__aexit__(None, None, None))
            self._server = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@dataclass
class Result:
    """What a command line left."""

    code: int
    out: str
    err: str


class World:
    """The control plane's folder and everything that a test does to it."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.kubeconfig = home / "apiserver" / "kubeconfig"
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def slipway(self, *words: str, stdin: str | None = None) -> Result:
        """Runs a command line to its end, in this thread."""
        self._capfd.readouterr()
        if stdin is not None:
            self._monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main(words)
        out, err = self._capfd.readouterr()
        return Result(code, out, err)

    def api(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Talks to the server as the operator would."""

        async def call() -> T:
            async with Client(await load_config(str(self.kubeconfig))) as client:
                return await work(client)

        return asyncio.run(call())

    def apply(self, name: str, steps: int = 20) -> Json:
        result = self.slipway("apply", "-f", "-", stdin=MANIFEST.format(name=name, steps=steps))
        assert result.code == 0, result.err
        return self.get(name)

    def get(self, name: str) -> Json:
        return self.api(lambda client: client.get(TRAINJOBS, "default", name))

    def patch_status(self, name: str, **status: Any) -> Json:
        """Sets fields of a job's status, as the operator would."""
        patch = {"status": status}
        return self.api(lambda client: client.merge_patch(TRAINJOBS, "default", name, patch, subresource="status"))

    def event(self, job: Json, reason: str, message: str) -> None:
        metadata = job["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{reason.lower()}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": job["apiVersion"],
                "kind": job["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": "Normal",
            "reason": reason,
            "message": message,
            "firstTimestamp": "2026-01-01T00:00:00Z",
            "lastTimestamp": "2026-01-01T00:00:00Z",
            "source": {"component": "slipway-operator"},
        }
        self.api(lambda client: client.create(EVENTS, event))


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One server for all tests that do not stop it; its home, laid out as $SLIPWAY_HOME."""
    home = tmp_path_factory.mktemp("slipway-home")
    thread = ServerThread(home / "apiserver")
    thread.start()
    yield home
    thread.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[Path, ServerThread]]:
    """A server that the test may stop and start."""
    thread = ServerThread(tmp_path / "home" / "apiserver")
    thread.start()
    yield tmp_path / "home", thread
    thread.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No target leaks in from the machine that runs the tests."""
    for variable in ("KUBECONFIG", "SLIPWAY_HOME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


@pytest.fixture
def world(shared_server: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> World:
    monkeypatch.setenv("SLIPWAY_HOME", str(shared_server))
    return World(shared_server, monkeypatch, capfd)


def condition(type_: str, status: str, reason: str, message: str) -> Json:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def running(reason: str = "Training", message: str = "training", **more: Any) -> Json:
    """The status of a job that has not ended."""
    return {
        "state": reason,
        "attempt": 1,
        "attempts": [{"number": 1, "startTime": "2026-01-01T00:00:00Z"}],
        "conditions": [
            condition("Running", "True", reason, message),
            condition("Succeeded", "False", "InProgress", "the job has not finished"),
            condition("Failed", "False", "InProgress", "the job has not finished"),
        ],
        **more,
    }


def ended(outcome: str = "Succeeded", reason: str = "ModelSaved", message: str = "saved", **more: Any) -> Json:
    """The status of a job that has ended."""
    good = outcome == "Succeeded"
    return {
        "state": outcome,
        "attempt": 1,
        "attempts": [
            {
                "number": 1,
                "startTime": "2026-01-01T00:00:00Z",
                "endTime": "2026-01-01T00:01:30Z",
                "outcome": "Succeeded" if good else "UserError",
                "message": message,
            }
        ],
        "conditions": [
            condition("Running", "False", "Finished", "the job has finished"),
            condition("Succeeded", "True" if good else "False", reason, message if good else "see Failed"),
            condition("Failed", "False" if good else "True", "NotFailed" if good else reason, message),
        ],
        **more,
    }
