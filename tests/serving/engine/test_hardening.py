"""What bad requests and clients that hang up leave behind: nothing. The ASGI application itself, without a network."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.responses import Response

from slipway_api.serving import RouterConfig, RouterUserConfig, WeightedVersion
from slipway_serving.engine.model import ServedModel
from slipway_serving.openai import access_log, http
from slipway_serving.replica import EngineReplica
from slipway_serving.router import Router

from .conftest import config_for

pytestmark = pytest.mark.timeout(180)
SPECIAL = "<|endoftext|>"
BAD = 10_000


@pytest.fixture(scope="module")
def replica(model_folder: Path) -> Iterator[EngineReplica]:
    made = EngineReplica(config_for(model_folder, max_queue=2000), gpu=False, name="r-1")
    yield made
    made.engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a nice value belongs to a thread on Linux only")
def test_a_model_is_loaded_at_the_expense_of_nobody_and_answers_at_normal_priority(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, seen = ServedModel.load, []

    def watched(*arguments: Any, **named: Any) -> ServedModel:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return load(*arguments, **named)

    monkeypatch.setattr(ServedModel, "load", watched)
    made = EngineReplica(config_for(model_folder), gpu=False)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    computing = made.engine._thread.native_id
    assert computing is not None
    assert os.getpriority(os.PRIO_PROCESS, computing) == usual
    assert seen == [min(19, usual + 10)]
    made.engine.close()


class Client:
    """Calls an ASGI application; `patience` events later it hangs up."""

    def __init__(self, *versions: tuple[str, Any], **settings: Any) -> None:
        backends = dict(versions)
        self.router = Router(RouterConfig(namespace="team", name="chat", uid="u"), backends.__getitem__)
        weighted = [WeightedVersion(name=name, application=name, weight=100 // len(versions)) for name, _ in versions]
        self.router.configure(RouterUserConfig(versions=weighted, **settings))
        self._app = http.build(lambda: self.router)

    async def __call__(
        self,
        path: str,
        *chunks: bytes,
        method: str = "POST",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        patience: float = float("inf"),
        http_version: str = "2.0",
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body). `http_version` is ASGI's: in 2.4 a hang-up is an OSError of send."""
        gone, sent = asyncio.Event(), [0]
        left = iter(
            [{"type": "http.request", "body": c, "more_body": True} for c in chunks] + [{"type": "http.request"}]
        )
        if patience <= 0:
            gone.set()

        async def receive() -> dict[str, Any]:
            for message in left:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        status, told, body = 0, dict[str, str](), bytearray()

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if gone.is_set() and http_version == "2.4":
                raise OSError("the connection is gone")
            if message["type"] == "http.response.start":
                status = message["status"]
                told.update({name.decode(): value.decode() for name, value in message["headers"]})
            else:
                body.extend(message.get("body", b""))
                sent[0] += 1
                if sent[0] >= patience:
                    gone.set()
            await asyncio.sleep(0)

        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": http_version}, "http_version": "1.1",
            "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": list(headers), "scheme": "http", "server": ("endpoint", 80), "client": ("client", 1),
        }  # fmt: skip
        ends = asyncio.ensure_future(self._app(scope, receive, send))
        if patience == 0.5:  # while its answer is being written, as a whole
            await asyncio.sleep(0.02)
            gone.set()
        try:
            await ends
        except OSError:
            assert gone.is_set()
        except Exception as error:
            assert gone.is_set() and type(error).__name__ == "ClientDisconnect", error
        return status, told, bytes(body)

    def ongoing(self) -> float:
        value = self.router.statistics.registry.get_sample_value("slipway_ongoing_requests", {"version": "v-1"})
        return value or 0.0


def bad_requests() -> Iterator[tuple[set[int], str, dict[str, Any]]]:
    """(statuses that are right, path, how to ask), for ever."""
    draws = random.Random(0)

    def sent(path: str, body: Any, **more: Any) -> tuple[str, dict[str, Any]]:
        return path, {"chunks": (body if isinstance(body, bytes) else json.dumps(body).encode(),), **more}

    completions, chat = "/v1/completions", "/v1/chat/completions"
    values = [None, True, [], {}, "x", -1, 1e400, "\ud800", [[]], {"a": 1}, 10**30, [1.5], ["", 1]]
    fields = ["prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "stream", "model"]
    big = b"x" * 100_000
    for number in itertools.count():
        yield {400}, *sent(completions, draws.randbytes(draws.randint(1, 200)))
        yield (
            {400},
            *sent(chat, json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()[: draws.randint(1, 40)]),
        )
        yield {400}, *sent(completions, b"[" * draws.randint(1, 5000))
        yield {404}, *sent(completions, {"prompt": "a", "model": f"model-{number}"})
        yield {400}, *sent(completions, {"prompt": "word " * 400})
        yield {400}, *sent(completions, b'{"prompt": "half a pair \\ud83d", "max_tokens": 1}')
        yield {400}, *sent(completions, {"prompt": [draws.randint(301, 2**40)]})
        yield (
            {400, 404, 200},
            *sent(completions, {"prompt": "a", "max_tokens": 1, draws.choice(fields): draws.choice(values)}),
        )
        yield {400}, *sent(chat, {"messages": [{"role": "user", "content": draws.choice(values)}], "n": 99})
        yield {400}, *sent("/v1/embeddings", {"input": draws.choice([None, [], {}, [[-1]], [""] * 65])})
        yield {404, 400}, *sent("/v1/feedback", {"request_id": f"req-{number}", "rating": 1})
        yield {404}, f"/v1/{number}", {"chunks": (), "method": draws.choice(["GET", "PUT", "DELETE", "POST"])}
        if number % 20 == 0:  # 10 MB, announced and not
            yield {413}, *sent(completions, b"", headers=((b"content-length", b"10485760"),))
            yield {413}, completions, {"chunks": (big,) * 100}
            yield {200}, *sent(completions, {"prompt": SPECIAL * 2, "max_tokens": 1, "temperature": 0})


async def test_ten_thousand_bad_requests_leave_nothing(replica: EngineReplica) -> None:
    client, process, made = Client(("v-1", replica), default_max_tokens=1), psutil.Process(), bad_requests()
    logging.getLogger("slipway.access").setLevel(logging.WARNING)
    counts: dict[int, int] = {}

    async def some(count: int) -> None:
        for right, path, how in itertools.islice(made, count):
            chunks = how.pop("chunks")
            status, headers, body = await client(path, *chunks, **how)
            assert status in right, (status, path, chunks[:1], body[:300])
            assert "x-request-id" in headers
            if status >= 400 and how.get("method") != "HEAD":
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
            counts[status] = counts.get(status, 0) + 1

    def state() -> tuple[int, int]:
        gc.collect()
        return process.memory_info().rss, len(gc.get_objects())

    await some(BAD // 5)
    rss, objects = state()
    await some(BAD - BAD // 5)
    rss_after, objects_after = state()
    assert sum(counts.values()) == BAD
    assert set(counts) == {200, 400, 404, 413}
    assert rss_after - rss < 8 * 2**20, f"{(rss_after - rss) / 2**20:.1f} MiB more"
    assert objects_after - objects < 20_000
    load = replica.engine.load
    assert (load.running, load.waiting, load.cache_tokens, client.ongoing()) == (0, 0, 0, 0)
    assert {one.name: one.errors for one in client.router.statistics.told()} == {"v-1": 0}, (
        "none was the version's fault"
    )


@pytest.mark.parametrize("http_version", ["2.0", "2.4"])
async def test_a_thousand_clients_that_hang_up_free_their_rows(replica: EngineReplica, http_version: str) -> None:
    client, draws = Client(("v-1", replica)), random.Random(1)

    async def one(number: int) -> None:
        stream = number % 4 != 0
        body = {"prompt": "the quick", "max_tokens": 200, "temperature": 1, "stream": stream, "n": 1 + number % 2}
        patience = draws.choice([0, 1, 2, 5, 20]) if stream else 0.5
        await client("/v1/completions", json.dumps(body).encode(), patience=patience, http_version=http_version)

    for start in range(0, 500, 50):
        await asyncio.gather(*(one(start + number) for number in range(50)))
    async with asyncio.timeout(10):
        while replica.engine.load.running or replica.engine.load.waiting:  # noqa: ASYNC110 - another thread frees them
            await asyncio.sleep(0.01)
    assert (replica.engine.load.cache_tokens, client.ongoing()) == (0, 0)
    text = (await client("/metrics", method="GET"))[2].decode()
    assert 'slipway_requests_total{status="499",version="v-1"}' in text
    status, _, _ = await client("/v1/completions", json.dumps({"prompt": "a", "max_tokens": 2}).encode())
    assert status == 200


async def test_control_tokens_in_what_people_write_are_text(replica: EngineReplica) -> None:
    end = replica.engine.model.tokenizer.convert_tokens_to_ids(SPECIAL)
    text = f"a{SPECIAL}b"
    found = replica._generation({"prompt": text, "max_tokens": 4, "temperature": 0, "top_p": 1}).prompt
    assert end not in found
    assert replica.engine.model.tokenizer.decode(list(found)) == text
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "\ue0f00\ue0f1 and more"}]
    chat = replica._generation({"messages": messages, "max_tokens": 4, "temperature": 0, "top_p": 1}).prompt
    assert end not in chat
    said = replica.engine.model.tokenizer.decode(list(chat))
    assert said == f"<user>{text}\n<assistant>\ufffd0\ufffd and more\n<assistant>"
    plain = [{"role": "user", "content": "hello"}]
    template = replica.engine.model.tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    same = replica._generation({"messages": plain, "max_tokens": 4, "temperature": 0, "top_p": 1}).prompt
    assert list(same) == list(template)


class Nonsense:
    """A version that answers what no engine says."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = pieces

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for piece in self._pieces:
            yield piece

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        ({},),
        ({"start": {}},),
        ({"start": None},),
        ("garbage",),
        ({"start": {"prompt_tokens": 1, "echo": ""}},),
        ({"start": {"prompt_tokens": 1, "echo": ""}}, {"text": "no count"}),
        ({"start": {"prompt_tokens": 1, "echo": ""}}, {"text": None, "tokens": 1, "finish": "stop"}),
        ({"start": {"prompt_tokens": 1, "echo": ""}}, {"text": "breaks off", "tokens": 1}),
    ],
)
async def test_nonsense_is_the_versions_failure_and_counted_as_one(pieces: tuple[Any, ...]) -> None:
    client = Client(("v-1", Nonsense(*pieces)))
    status, _, body = await client("/v1/completions", json.dumps({"prompt": "a"}).encode())
    assert (status, json.loads(body)["error"]["code"]) == (502, "version_failed")
    told = client.router.statistics.told()[0]
    assert (told.requests, told.errors, client.ongoing()) == (1, 1, 0)


async def test_a_candidate_that_talks_nonsense_costs_no_request_that_it_cannot_begin(replica: EngineReplica) -> None:
    client = Client(("v-1", replica), ("v-2", Nonsense({"start": {}})))
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    statuses = {(await client("/v1/completions", body))[0] for _ in range(40)}
    assert statuses == {200}
    told = {one.name: one for one in client.router.statistics.told()}
    assert told["v-2"].errors == told["v-2"].requests > 5
    assert told["v-1"].errors == 0


async def test_a_full_queue_is_429_before_a_stream_begins(model_folder: Path) -> None:
    small = EngineReplica(config_for(model_folder, max_batch=1, max_queue=0), gpu=False)
    client = Client(("v-1", small))
    body = json.dumps({"prompt": "a", "max_tokens": 200, "stream": True}).encode()
    answers = await asyncio.gather(*(client("/v1/completions", body) for _ in range(8)))
    small.engine.close()
    refused = [answer for answer in answers if answer[0] == 429]
    assert 1 <= len(refused) < 8
    assert all(headers["retry-after"] == "1" for _, headers, _ in refused)
    assert all(json.loads(text)["error"]["code"] == "queue_full" for _, _, text in refused)


async def test_the_access_log_holds_no_more_than_a_thousand_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slipway.access")
    for number in range(1001):
        access_log.Entry(str(number), "GET", "/v1/models").answered(Response())
    written = [line for record in caplog.records for line in record.message.splitlines()]
    assert len(written) == 1000, "at once, though their time has not come"


async def test_each_request_has_one_line_in_the_access_log(
    replica: EngineReplica, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(("v-1", replica))
    caplog.set_level(logging.INFO, "slipway.access")
    mine = ((b"x-request-id", b"mine"),)
    body = {"prompt": "a secret", "max_tokens": 30, "stream": True}
    await client("/v1/completions", json.dumps(body).encode(), headers=mine)
    await client("/v1/completions", json.dumps(body).encode(), headers=mine, patience=1)
    await client("/v1/completions", b"{", headers=mine)
    records = [record.message for record in caplog.records if record.name == "slipway.access"]
    assert not records, "they are held for a moment"
    await asyncio.sleep(0.3)
    records = [record.message for record in caplog.records if record.name == "slipway.access"]
    assert len(records) == 1
    lines = [json.loads(line) for line in records[0].splitlines()]
    lines = [line for line in lines if line["request"] == "mine"]  # another test's loop may have left some
    assert [(line["request"], line["status"], line.get("complete")) for line in lines] == [
        ("mine", 200, True),
        ("mine", 200, False),
        ("mine", 400, None),
    ]
    assert lines[0]["version"] == "v-1"
    assert "secret" not in caplog.text
