"""What the tests of the driver share: a run contract and an operator that listens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from slipway_api.run import ReportTarget, RunSpec

TOKEN = "s3cret-" + "0123456789abcdef" * 3


class Operator:
    """A report endpoint on a real socket that remembers what came and answers what the test wants.

    `answers` is consumed from the front; afterwards everything is 200.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []  # path, token, body, by arrival
        self.answers: list[int] = []
        self.changed = threading.Condition()
        operator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with operator.changed:
                    operator.requests.append(
                        {
                            "path": self.path,
                            "token": self.headers["Authorization"].removeprefix("Bearer "),
                            "body": json.loads(body),
                        }
                    )
                    status = operator.answers.pop(0) if operator.answers else 200
                    operator.changed.notify_all()
                text = json.dumps({"message": f"answer {status}"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request["body"] for request in list(self.requests)]

    @property
    def end(self) -> dict[str, Any]:
        """The `end` of the last report."""
        found: dict[str, Any] = self.bodies[-1]["end"]
        return found

    def wait(self, count: int, timeout: float = 5.0) -> None:
        """Wait for that many requests in all."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, timeout), f"{len(self.requests)} requests"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def operator() -> Iterator[Operator]:
    server = Operator()
    yield server
    server.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def run_spec(tmp_path: Path, operator: Operator, token_file: Path) -> RunSpec:
    """A small run that reports to `operator`."""
    return make_run(tmp_path, report=ReportTarget(url=operator.url, token_file=str(token_file), interval_seconds=1))


def make_run(tmp_path: Path, **changes: Any) -> RunSpec:
    """A small text run on two workers, all of it below tmp_path. `changes` are top-level fields, camelCase."""
    document: dict[str, Any] = {
        "namespace": "default",
        "name": "small",
        "uid": f"uid-{tmp_path.name}",
        "attempt": 1,
        "storage": str(tmp_path / "store" / "job"),
        "cache": str(tmp_path / "store" / "cache"),
        "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4, "maxPositionEmbeddings": 128}},
        "tokenizer": {"train": {"vocabSize": 300}},
        "data": {
            "sources": [{"uri": str(tmp_path / "text"), "exclude": ["held-out.txt"]}],
            "evalSources": [{"uri": str(tmp_path / "text"), "include": ["held-out.txt"]}],
            "sequenceLength": 64,
        },
        "training": {"steps": 20, "globalBatchSize": 4, "microBatchSize": 2, "precision": "fp32"},
        "strategy": {"fsdp": {}},
        "workers": {"count": 2, "resources": {"cpu": "1"}},
        "checkpoint": {"everySteps": 5, "keepLast": 2},
    }
    document.update(changes)
    return RunSpec.model_validate(document)


def write_text(folder: Path) -> None:
    """A few deterministic documents and one that is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    verbs = ["reads", "writes", "keeps", "drops", "waits for", "starts"]
    for part in range(4):
        lines = [f"Node {i} {verbs[(i * part) % 6]} shard {(i * 7 + part) % 97}." for i in range(200)]
        (folder / ("held-out.txt" if part == 3 else f"part-{part}.txt")).write_text("\n".join(lines))
