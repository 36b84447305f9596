"""Engine vllm: the configuration against ray.serve.llm's own class, the adaptor against a server of the same protocol.

vLLM is not installed here, and there is no GPU: what a real server answers has not been seen. The events are those of
vLLM's OpenAI server (https://docs.vllm.ai/en/stable/serving/openai_compatible_server/).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from slipway_api.references import ModelReference
from slipway_api.serving import RouterConfig, RouterUserConfig, VllmConfig, WeightedVersion
from slipway_serving.openai import http
from slipway_serving.router import Router
from slipway_serving.vllm.adaptor import VllmAdaptor
from slipway_serving.vllm.config import llm_config
from slipway_serving.vllm.translation import error_of


def config(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return llm_config(VllmConfig(version="v-1", model=ModelReference.model_validate(model), gpus=2, **changes))


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ({"uri": "/models/m"}, "/models/m"),
        ({"uri": "file:///models/a%20b"}, "/models/a b"),
        ({"uri": "s3://models/m"}, {"bucket_uri": "s3://models/m"}),
        ({"hub": {"repo": "owner/m", "revision": "abc"}}, "owner/m"),
    ],
)
def test_ray_serve_llm_takes_the_configuration(model: dict[str, Any], source: Any) -> None:
    # Its public module imports vLLM; the class itself does not.
    from ray.llm._internal.serve.core.configs.llm_config import (  # noqa: PLC0415
        CloudMirrorConfig,
        LLMConfig,
        ModelLoadingConfig,
    )

    made = LLMConfig(**config(model))
    loading = made.model_loading_config
    assert isinstance(loading, ModelLoadingConfig)
    told = loading.model_source
    assert (told.model_dump(exclude_defaults=True) if isinstance(told, CloudMirrorConfig) else told) == source
    assert (made.model_id, made.max_request_context_length) == ("v-1", 8192)
    assert made.engine_kwargs["tensor_parallel_size"] == len(made.placement_group_config["bundles"]) == 2
    assert made.engine_kwargs["trust_remote_code"] is False
    assert made.engine_kwargs.get("revision") == (model.get("hub") or {}).get("revision")
    with pytest.raises(ValidationError, match="Extra inputs"):
        LLMConfig(**config(model), unknown=1)


def test_the_deployment_has_the_name_that_the_operator_scales() -> None:
    """The RayService overrides the replicas of LLMServer:<version> by name."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig  # noqa: PLC0415

    from slipway_api.serving import VLLM_DEPLOYMENT_PREFIX  # noqa: PLC0415

    # ray/llm/_internal/serve/core/server/builder.py: f"{deployment_cls.__name__}:" + the id without / and .
    name = LLMConfig(**config({"uri": "/m"})).model_id.replace("/", "--").replace(".", "_")
    assert VLLM_DEPLOYMENT_PREFIX + name == "LLMServer:v-1"


# --- the adaptor --------------------------------------------------------------------------------------------------


def sse(*events: dict[str, Any] | str) -> list[str]:
    return [f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in events]


def usage(done: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": done, "total_tokens": 3 + done}


class FakeVllm:
    """Answers three words as vLLM streams them; what it was asked."""

    def __init__(self, *, refuses: Any = None, breaks_after: int | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0
        self._refuses, self._breaks_after = refuses, breaks_after

    async def ask(self, method: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        self.asked.append((method, body))
        if self._refuses is not None:
            yield self._refuses
            return
        chat = method == "chat"
        try:
            if chat:
                first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield sse({"choices": [first], "usage": usage(0)})
            for number, word in enumerate(("one", " two", " three"), start=1):
                if number == self._breaks_after:
                    raise ConnectionError("the replica died")
                choice = {"index": 0, "finish_reason": "stop" if number == 3 else None, "logprobs": None}
                if body.get("logprobs") is not None:
                    choice["logprobs"] = self._logprobs(word, chat)
                choice |= {"delta": {"content": word}} if chat else {"text": word}
                yield sse({"choices": [choice], "usage": usage(number)})
            yield sse({"choices": [], "usage": usage(3)}, "[DONE]")
        finally:
            self.closed += 1

    @staticmethod
    def _logprobs(word: str, chat: bool) -> dict[str, Any]:
        if chat:
            top = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
            return {"content": [{**top, "top_logprobs": [top]}]}
        return {"tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [{word: -0.5}], "text_offset": [0]}


class World:
    """Our endpoint before a version that vLLM holds, and perhaps another."""

    def __init__(self, *servers: FakeVllm) -> None:
        backends = {f"v-{number}": VllmAdaptor(f"v-{number}", server) for number, server in enumerate(servers)}
        self.router = router = Router(RouterConfig(namespace="team", name="chat", uid="u"), backends.__getitem__)
        versions = [WeightedVersion(name=n, application=n, weight=100 * (n == "v-0")) for n in backends]
        router.configure(RouterUserConfig(versions=versions))
        transport = httpx.ASGITransport(http.build(lambda: router))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://endpoint")

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)


MESSAGES = [{"role": "user", "content": "count"}]


async def test_a_chat_whole_and_streamed() -> None:
    server = FakeVllm()
    world = World(server)
    whole = (await world.post("/v1/chat/completions", messages=MESSAGES, seed=0, stop="x", max_tokens=5)).json()
    assert whole["choices"][0]["message"]["content"] == "one two three"
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] == usage(3)
    method, body = server.asked[0]
    assert method == "chat"
    assert (body["model"], body["seed"], body["stop"], body["max_tokens"]) == ("v-0", 0, ["x"], 5)
    assert body["stream_options"]["continuous_usage_stats"] is True
    streamed = await world.post(
        "/v1/chat/completions", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.split("\n\n")[:-2]]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == "one two three"
    assert events[-1]["usage"] == usage(3)


async def test_a_completion_with_logprobs_and_echo() -> None:
    server = FakeVllm()
    answer = (await World(server).post("/v1/completions", prompt="count: ", logprobs=1, echo=True)).json()
    choice = answer["choices"][0]
    assert choice["text"] == "count: one two three"
    assert choice["logprobs"]["tokens"] == ["one", " two", " three"]
    assert choice["logprobs"]["top_logprobs"][0] == {"one": -0.5}
    assert (server.asked[0][0], server.asked[0][1]["logprobs"]) == ("completions", 1)
    chat = await World(server).post("/v1/chat/completions", messages=MESSAGES, logprobs=True, top_logprobs=1)
    content = chat.json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["one", " two", " three"]


@pytest.mark.parametrize("shape", ["object", "event"])
async def test_what_it_refuses_is_the_clients_mistake(shape: str) -> None:
    told = {"message": "the prompt is too long", "type": "BadRequestError", "param": "prompt", "code": 400}
    refusal: Any = SimpleNamespace(error=SimpleNamespace(**told)) if shape == "object" else sse({"error": told})
    answer = await World(FakeVllm(refuses=refusal), FakeVllm()).post("/v1/completions", prompt="x")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "the prompt is too long"


async def test_one_that_dies_before_its_first_word_is_replaced_and_later_it_is_told() -> None:
    answer = await World(FakeVllm(breaks_after=1), FakeVllm()).post("/v1/completions", prompt="x")
    assert answer.headers["x-slipway-version"] == "v-1"
    late = await World(FakeVllm(breaks_after=2)).post("/v1/completions", prompt="x")
    assert (late.status_code, late.json()["error"]["code"]) == (502, "version_failed")


async def test_a_client_that_goes_ends_the_answer_there() -> None:
    server = FakeVllm()
    stream = VllmAdaptor("v-0", server).generate({"prompt": "x", "max_tokens": 3})
    assert "start" in await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert server.closed == 1


async def test_it_is_captured_without_what_it_does_not_tell() -> None:
    server = FakeVllm()
    world = World(server)
    world.router.capture.application = "watcher"
    batches: list[dict[str, Any]] = []

    async def send(_: str, batch: dict[str, Any]) -> dict[str, Any]:
        batches.append(batch)
        return {}

    world.router.capture.send = send
    await world.post("/v1/completions", prompt="x")
    await world.router.capture.flush()
    ((_, body),) = server.asked
    assert "signals" not in body  # vLLM would refuse it
    (record,) = batches[0]["records"]
    assert record["text"] == "one two three"
    assert not {"entropy", "loss"} & record.keys()


async def test_what_it_cannot_do_is_refused_by_name() -> None:
    world = World(FakeVllm())
    assert (await world.post("/v1/embeddings", input="x")).json()["error"]["code"] == "not_supported"
    assert (await world.post("/v1/completions", prompt=[1, 2], echo=True)).json()["error"]["param"] == "echo"
    with pytest.raises(TypeError, match="answered with"):
        error_of(object())
