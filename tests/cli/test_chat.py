"""chat, promote and abort: a Deployment on the real API server, and a small server that speaks OpenAI's stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from slipway_operator.kube.resource import DEPLOYMENTS, Json

from .conftest import World

MANIFEST = """\
apiVersion: slipway.dev/v1alpha1
kind: Deployment
metadata:
  name: {name}
spec:
  model: {{trainJob: {{name: base}}}}
"""


@dataclass
class Answerer:
    """An endpoint that repeats what it is asked, word by word, and remembers the requests."""

    url: str = ""
    requests: list[Json] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    refuse: int = 0


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    found = Answerer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests.append({"path": self.path, **body})
            found.keys.append(self.headers.get("Authorization"))
            self.send_response(found.refuse or 200)
            self.send_header("Connection", "close")
            self.end_headers()
            if found.refuse:
                error = {"message": "queue is full", "type": "rate_limit_error", "param": None, "code": "queue_full"}
                self.wfile.write(json.dumps({"error": error}).encode())
                return
            for word in ["You", " said: ", body["messages"][-1]["content"]]:
                chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/team/chat"
    yield found
    server.shutdown()


def deploy(world: World, name: str, **status: Any) -> None:
    result = world.slipway("apply", "-f", "-", stdin=MANIFEST.format(name=name))
    assert result.code == 0, result.err
    patch = {"status": status}
    world.api(lambda client: client.merge_patch(DEPLOYMENTS, "default", name, patch, subresource="status"))


def condition(status: str, message: str) -> Json:
    time = "2026-01-01T00:00:00Z"
    return {"type": "Available", "status": status, "reason": "X", "message": message, "lastTransitionTime": time}


def test_one_message_and_its_answer(world: World, answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_API_KEY", "sesame")
    deploy(world, "chat", url=answerer.url, conditions=[condition("True", "answers")])
    words = ("chat", "sdeploy/chat", "-m", "grüß dich", "--system", "be brief", "--max-tokens", "7", "--seed", "1")
    result = world.slipway(*words)
    assert (result.code, result.out) == (0, "You said: grüß dich\n")
    assert answerer.keys == ["Bearer sesame"]
    assert answerer.requests == [
        {
            "path": "/team/chat/v1/chat/completions",
            "model": "chat",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "grüß dich"}],
            "stream": True,
            "max_tokens": 7,
            "seed": 1,
        }
    ]


def test_a_conversation_keeps_what_was_said(world: World, answerer: Answerer) -> None:
    deploy(world, "talk", url=answerer.url, conditions=[condition("True", "answers")])
    result = world.slipway("chat", "sdeploy/talk", stdin="one\n\ntwo\n")
    assert result.out == "You said: one\nYou said: two\n"
    assert [m["content"] for m in answerer.requests[1]["messages"]] == ["one", "You said: one", "two"]


def test_a_refusal_is_shown_with_what_to_do(world: World, answerer: Answerer) -> None:
    deploy(world, "full", url=answerer.url, conditions=[condition("True", "answers")])
    answerer.refuse = 429
    result = world.slipway("chat", "sdeploy/full", "-m", "x")
    assert result.code == 1
    assert "429: queue is full" in result.err
    assert "try again in a moment" in result.err


def test_a_deployment_that_does_not_answer_says_why(world: World) -> None:
    deploy(world, "sad", conditions=[condition("False", "the model is DEPLOY_FAILED: no such file")])
    result = world.slipway("chat", "sdeploy/sad", "-m", "x")
    assert result.code == 1
    assert "sdeploy/sad does not answer: the model is DEPLOY_FAILED: no such file" in result.err


def test_an_endpoint_that_is_gone(world: World) -> None:
    deploy(world, "gone", url="http://127.0.0.1:9", conditions=[condition("True", "answers")])
    result = world.slipway("chat", "sdeploy/gone", "-m", "x")
    assert result.code == 1
    assert "http://127.0.0.1:9 does not answer" in result.err
    assert "kubectl port-forward svc/gone-serve-svc" in result.err


@pytest.mark.parametrize("command", ["promote", "abort"])
def test_a_rollout_is_ended_by_naming_its_candidate(world: World, command: str) -> None:
    name = f"roll-{command}"
    deploy(world, name)
    result = world.slipway(command, f"sdeploy/{name}")
    assert result.code == 2
    assert "has no candidate" in result.err
    candidate = {"version": "v-0123456789", "reference": {"uri": "/x"}, "weight": 10, "engine": {}}
    deploy(world, name, candidate=candidate)
    result = world.slipway(command, f"sdeploy/{name}")
    assert result.code == 0, result.err
    stored = world.api(lambda client: client.get(DEPLOYMENTS, "default", name))
    assert stored["metadata"]["annotations"][f"slipway.dev/{command}"] == "v-0123456789"


def test_other_kinds_are_refused(world: World) -> None:
    world.apply("job")
    result = world.slipway("chat", "tj/job", "-m", "x")
    assert result.code == 2
    assert "not a TrainJob" in result.err
