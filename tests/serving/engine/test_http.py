"""The HTTP endpoint over real engines, in this process: the OpenAI API, its errors, limits and versions."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shutil
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from slipway_api.references import ModelReference
from slipway_api.serving import RouterConfig, RouterUserConfig, WatcherConfig, WeightedVersion
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.reference import FOLDER, build_profile, prompts_of
from slipway_jobs.train.exported_model import ExportedModel
from slipway_serving.openai import http
from slipway_serving.replica import EngineReplica
from slipway_serving.router import Router
from slipway_serving.watcher.watcher import Watcher

from .conftest import config_for

BODY = {"model": "chat", "prompt": "the quick", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def replica(model_folder: Path) -> Iterator[EngineReplica]:
    made = EngineReplica(config_for(model_folder), gpu=False)
    yield made
    made.engine.close()


class Fails:
    """A version that fails in some way."""

    def __init__(self, how: str) -> None:
        self._how = how

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if self._how == "error":
            yield {"error": {"status": 500, "code": "engine_failed", "message": "broken"}}
            return
        if self._how == "late":
            yield {"start": {"prompt_tokens": 1, "echo": ""}}
            yield {"text": "so far", "tokens": 1}
        raise ConnectionError("the replica died")

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        raise ConnectionError("the replica died")


def version(name: str, weight: int) -> WeightedVersion:
    return WeightedVersion(name=name, application=name, weight=weight)


class World:
    """A router, its endpoint, and a client."""

    def __init__(self, backends: dict[str, Any], **config: Any) -> None:
        def backend(name: str) -> Any:
            return backends[name]

        self.router = Router(RouterConfig(namespace="team", name="chat", uid="u", **config), backend)
        transport = httpx.ASGITransport(http.build(lambda: self.router))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://endpoint")

    def configure(self, *versions: WeightedVersion, **settings: Any) -> World:
        self.router.configure(RouterUserConfig(versions=list(versions), **settings))
        return self

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(path, content=content, headers=headers)


@pytest.fixture
def world(replica: EngineReplica) -> World:
    return World({"v-1": replica}).configure(version("v-1", 100))


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_completion_whole_and_streamed_is_the_same(world: World) -> None:
    whole = await world.post("/v1/completions", BODY)
    assert whole.status_code == 200
    choice = whole.json()["choices"][0]
    assert whole.json()["usage"]["completion_tokens"] <= 8
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = events(await world.post("/v1/completions", BODY | options))
    assert "".join(e["choices"][0]["text"] for e in streamed if e["choices"]) == choice["text"]
    assert streamed[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert streamed[-1]["usage"] == whole.json()["usage"]
    assert whole.headers["x-slipway-version"] == "v-1"


async def test_a_chat_goes_through_the_models_template(world: World, replica: EngineReplica) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "temperature": 0}
    chat = (await world.post("/v1/chat/completions", body)).json()
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["role"] == "assistant"
    plain = {"prompt": "<user>hello\n<assistant>", "max_tokens": 6, "temperature": 0}
    same = (await world.post("/v1/completions", plain)).json()
    assert chat["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}
    assert (await world.post("/v1/chat/completions", body | parts)).json()["choices"] == chat["choices"]
    streamed = events(await world.post("/v1/chat/completions", body | {"stream": True}))
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in streamed)
    assert text == chat["choices"][0]["message"]["content"]


async def test_several_choices_seeds_and_logprobs(world: World) -> None:
    body = BODY | {"n": 3, "seed": 5, "temperature": 1.2, "logprobs": 2, "echo": True}
    first, again = [(await world.post("/v1/completions", body)).json()["choices"] for _ in range(2)]
    assert [c["text"] for c in first] == [c["text"] for c in again]
    assert len({c["text"] for c in first}) == 3
    assert all(c["text"].startswith("the quick") for c in first)
    told = first[0]["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"])
    assert all(len(top) <= 2 for top in told["top_logprobs"])
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 3, "max_tokens": 2}
    content = (await world.post("/v1/chat/completions", chat)).json()["choices"][0]["logprobs"]["content"]
    assert len(content[0]["top_logprobs"]) == 3


async def test_embeddings_models_health_and_metrics(world: World) -> None:
    found = (await world.post("/v1/embeddings", {"input": ["one", "two"], "model": "chat"})).json()
    assert [d["index"] for d in found["data"]] == [0, 1]
    packed = await world.post("/v1/embeddings", {"input": "one", "encoding_format": "base64"})
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(found["data"][0]["embedding"], abs=1e-6)
    models = (await world.client.get("/v1/models")).json()
    assert [m["id"] for m in models["data"]] == ["chat"]
    assert (await world.client.get("/v1/models/other")).status_code == 404
    assert (await world.client.get("/healthz")).text == "ok\n"
    await world.post("/v1/completions", BODY)
    metrics = (await world.client.get("/metrics")).text
    assert 'slipway_requests_total{status="200",version="v-1"}' in metrics
    assert "slipway_time_to_first_token_seconds_bucket" in metrics


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/v1/completions", b"\xff\xfe", 400, "invalid_encoding", "not UTF-8"),
        ("/v1/completions", b"{", 400, "invalid_json", "not JSON"),
        ("/v1/completions", b"[" * 5000, 400, "invalid_json", "not JSON"),
        ("/v1/completions", {**BODY, "best_of": 3}, 400, "unsupported_parameter", "best_of is not supported"),
        ("/v1/completions", {**BODY, "temperature": 3}, 400, "invalid_parameter", "temperature"),
        ("/v1/completions", {**BODY, "prompt": []}, 400, "invalid_parameter", "1 to 64 prompts"),
        ("/v1/completions", {**BODY, "prompt": [99999]}, 400, "invalid_token", "99999"),
        ("/v1/completions", {**BODY, "prompt": "word " * 900}, 400, "context_length_exceeded", "shorten the prompt"),
        ("/v1/completions", {**BODY, "max_tokens": 100000}, 400, "max_tokens_too_large", "4096"),
        ("/v1/completions", {**BODY, "model": "gpt-x"}, 404, "model_not_found", "'chat' is"),
        ("/v1/completions", {**BODY, "prompt": "x" * 1_100_000}, 413, "request_too_large", "at most 1048576"),
        ("/v1/chat/completions", {"messages": []}, 400, "invalid_parameter", "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_parameter", "role"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "tools": []},
            400,
            "unsupported_parameter",
            "tools",
        ),
        ("/v1/feedback", {"request_id": "never", "rating": 1}, 404, "unknown_request", "not recent"),
        ("/v1/images", {}, 404, "unknown_url", "/v1/images"),
    ],
)
async def test_bad_requests_are_answered_in_openais_shape(
    world: World, replica: EngineReplica, path: str, body: Any, status: int, code: str, words: str
) -> None:
    answer = await world.post(path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert replica.engine.load.running == 0


async def test_keys_come_from_a_file_and_may_change(replica: EngineReplica, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sesame\nother\n")
    world = World({"v-1": replica}, api_keys_file=str(file)).configure(version("v-1", 100))
    assert (await world.post("/v1/completions", BODY)).json()["error"]["code"] == "missing_api_key"
    wrong = await world.post("/v1/completions", BODY, Authorization="Bearer open")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await world.post("/v1/completions", BODY, Authorization="Bearer sesame")).status_code == 200
    assert (await world.client.get("/healthz")).status_code == 200
    file.write_text("changed\n")
    world.router.keys._looked = float("-inf")
    assert (await world.post("/v1/completions", BODY, Authorization="Bearer sesame")).status_code == 401
    assert (await world.post("/v1/completions", BODY, Authorization="Bearer changed")).status_code == 200


async def test_too_many_requests_are_told_when_to_come_again(world: World) -> None:
    world.configure(version("v-1", 100), requests_per_minute=2)
    answers = [await world.post("/v1/completions", BODY) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 31
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"


async def test_requests_follow_the_weights_and_an_id_stays_with_its_version(replica: EngineReplica) -> None:
    world = World({"v-1": replica, "v-2": replica}).configure(version("v-1", 75), version("v-2", 25))
    body = BODY | {"max_tokens": 1}
    seen = [(await world.post("/v1/completions", body)).headers["x-slipway-version"] for _ in range(200)]
    assert 25 <= seen.count("v-2") <= 80
    same = {
        (await world.post("/v1/completions", body, **{"x-request-id": "mine"})).headers["x-slipway-version"]
        for _ in range(10)
    }
    assert len(same) == 1
    world.configure(version("v-1", 0), version("v-2", 100))
    seen = [(await world.post("/v1/completions", body)).headers["x-slipway-version"] for _ in range(10)]
    assert set(seen) == {"v-2"}


@pytest.mark.parametrize("how", ["error", "dead"])
def test_a_version_that_cannot_begin_is_replaced_by_another(replica: EngineReplica, how: str) -> None:
    async def run() -> None:
        world = World({"v-1": replica, "v-2": Fails(how)}).configure(version("v-1", 50), version("v-2", 50))
        answers = [await world.post("/v1/completions", BODY | {"max_tokens": 1}) for _ in range(30)]
        assert {a.status_code for a in answers} == {200}
        told = {one.name: one for one in world.router.statistics.told()}
        assert told["v-2"].errors == told["v-2"].requests > 5
        assert told["v-1"].errors == 0
        assert told["v-1"].requests == 30

    asyncio.run(run())


async def test_a_version_that_dies_in_the_middle_ends_the_stream_with_an_error() -> None:
    world = World({"v-1": Fails("late")}).configure(version("v-1", 100))
    streamed = events(await world.post("/v1/completions", BODY | {"stream": True}))
    assert streamed[0]["choices"][0]["text"] == "so far"
    assert streamed[-1]["error"]["code"] == "version_failed"
    whole = await world.post("/v1/completions", BODY)
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "version_failed")
    assert world.router.statistics.told()[0].errors == 2


class Sleeps:
    """A version without replicas: one is started for the first request, and takes a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._born = seconds, 0.0
        self.cancelled = 0

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if not self._born:
            try:
                await asyncio.sleep(self._seconds / 2)
                self._born = time.monotonic()
                await asyncio.sleep(self._seconds / 2)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        yield {"start": {"prompt_tokens": 1, "echo": "", "age_seconds": time.monotonic() - self._born}}
        yield {"text": "awake", "tokens": 1, "finish": "stop"}

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        await asyncio.sleep(self._seconds)
        return {}


async def test_a_request_that_comes_at_zero_waits_and_the_cold_start_is_told() -> None:
    world = World({"v-1": Sleeps(0.4)}).configure(version("v-1", 100))
    assert (await world.post("/v1/completions", BODY)).json()["choices"][0]["text"] == "awake"
    [told] = world.router.statistics.told()
    assert 0.4 <= (told.cold_start_seconds or 0) < 5
    assert (await world.post("/v1/completions", BODY)).status_code == 200
    [again] = world.router.statistics.told()
    assert again.cold_start_seconds == told.cold_start_seconds, "a warm answer is no cold start"
    assert "slipway_cold_start_seconds" in (await world.client.get("/metrics")).text


async def test_no_request_waits_for_ever_not_even_for_several_versions() -> None:
    asleep = Sleeps(60)
    world = World({"v-1": asleep, "v-2": Sleeps(60)})
    world.configure(version("v-1", 100), version("v-2", 0), start_timeout_seconds=0.2)
    began = time.monotonic()
    answer = await world.post("/v1/completions", BODY)
    assert time.monotonic() - began < 5
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
    assert answer.headers["retry-after"] == "10"
    assert asleep.cancelled == 1, "nobody waits for it any more"
    assert (await world.post("/v1/embeddings", {"input": "x"})).json()["error"]["code"] == "starting"


async def test_without_a_version_it_says_so(world: World) -> None:
    world.configure()
    answer = await world.post("/v1/completions", BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_version")
    assert answer.headers["retry-after"] == "5"


async def test_feedback_is_joined_by_id_and_kept(replica: EngineReplica, tmp_path: Path) -> None:
    folder = tmp_path / "feedback"
    world = World({"v-1": replica}, feedback_directory=str(folder)).configure(version("v-1", 100))
    await world.post("/v1/completions", BODY, **{"x-request-id": "mine"})
    body = {"request_id": "mine", "rating": 1, "corrected": "better – ü"}
    answer = await world.post("/v1/feedback", body)
    assert answer.json() == {"object": "feedback", "request_id": "mine", "version": "v-1"}
    async with asyncio.timeout(10):
        while not list(folder.glob("*.jsonl")):  # noqa: ASYNC110 - written by a thread
            await asyncio.sleep(0.02)
    (file,) = folder.glob("*.jsonl")
    entry = json.loads(file.read_text())
    assert {k: entry[k] for k in body} == body
    assert (await world.post("/v1/feedback", {"request_id": "mine"})).status_code == 400


async def test_each_answer_is_judged_once_and_a_label_is_no_verdict(world: World) -> None:
    for name, entries in {
        "good": [{"rating": 0.5}, {"rating": -1}],  # the second one is not counted
        "bad": [{"label": "x"}, {"corrected": "better"}],
        "unsaid": [{"label": "x"}],
    }.items():
        await world.post("/v1/completions", BODY, **{"x-request-id": name})
        for entry in entries:
            assert (await world.post("/v1/feedback", {"request_id": name, **entry})).status_code == 200
    (told,) = world.router.statistics.told()
    assert (told.judged, told.bad) == (2, 1)
    metrics = (await world.client.get("/metrics")).text
    assert f'slipway_judged_answers_total{{verdict="bad",version="{told.name}"}} 1.0' in metrics


_WORDS = {
    "fox": "the quick brown fox jumps over the lazy dog",
    "code": "#define 0xFF; static void (*f)(int); return -1;",
}


def _document(kind: str, number: int) -> str:
    draws = random.Random(f"{kind}{number}")
    return "".join(" ".join(draws.choices(_WORDS[kind].split(), k=draws.randint(3, 9))) + "\n" for _ in range(4))


async def test_traffic_that_leaves_the_reference_is_found(
    replica: EngineReplica, model_folder: Path, tmp_path: Path
) -> None:
    """From HTTP through the router's capture to the watcher's alarm and snapshot."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / FOLDER).mkdir()
    documents, held_out = (
        [(str(number), _document("fox", number)) for number in range(first, first + 400)] for first in (0, 400)
    )
    profile = build_profile(load_backend(model), documents, held_out=held_out, model=ExportedModel(model))
    profile.write(model / FOLDER)
    config = WatcherConfig(
        namespace="team",
        name="chat",
        uid="u",
        version="v-1",
        model=ModelReference(uri=str(model)),
        storage=str(tmp_path / "drift"),
        content="examples",
        window_requests=50,
    )
    watcher = Watcher(config)
    assert watcher.prepare()

    async def send(application: str, batch: dict[str, Any]) -> dict[str, Any]:
        assert application == "watcher"
        batch = json.loads(json.dumps(batch))  # what travels is plain
        return watcher.take(batch)

    world = World({"v-1": replica}).configure(version("v-1", 100), capture="watcher")
    world.router.capture.send = send

    async def traffic(kind: str) -> None:
        prompts = [
            prompt for number in range(1000, 1200) for prompt in prompts_of(_document(kind, number), str(number))
        ]
        for number, prompt in enumerate(prompts[:100]):
            body = {"prompt": prompt, "max_tokens": 1, "stream": number % 2 == 0}
            answer = await world.post("/v1/completions", body, **{"x-request-id": f"{kind}-{number}"})
            assert answer.status_code == 200
            assert "entropy" not in answer.text  # it is for the watcher
        corrected = {"request_id": f"{kind}-99", "rating": -1, "corrected": "what it should have said"}
        assert (await world.post("/v1/feedback", corrected)).status_code == 200
        await world.router.capture.flush()
        watcher.step()

    await traffic("fox")
    quiet = watcher.status()
    assert (quiet.windows, quiet.requests, quiet.dropped, quiet.snapshot) == (2, 100, 0, None)
    assert [alarm.signal for alarm in quiet.alarms if alarm.kind != "data"] == []
    assert "input.tokenRanks" not in quiet.active
    # What the engine says of requests and what the model's files said of the reference's is one quantity.
    losses = watcher._history.points["input.loss"]
    assert len(losses) == 2
    assert all(point.effect < point.threshold for point in losses)
    await traffic("code")
    found = watcher.status()
    assert found.windows == 4
    assert "input.tokenRanks" in found.active
    assert found.snapshot is not None
    assert Path(found.snapshot.uri, "train").is_dir()
    await world.post("/v1/completions", BODY)
    await world.router.capture.flush()
    metrics = (await world.client.get("/metrics")).text
    assert "slipway_captured_requests_total 201.0" in metrics
    assert 'slipway_drift_active{signal="input.tokenRanks"} 1.0' in metrics
