"""What serving costs: many answers at a time against one, the way through HTTP, rollouts and cold starts.

    python benchmarks/serving.py [--quick] [--only engine,http,rival,rollout,start]

Starts a control plane of its own in a temporary folder (`slipway up`) and applies Deployments to it, so what is
measured over HTTP is what the operator renders and the local Ray Serve runs. The model: a Llama of 6 layers, 384 wide,
8,192 tokens, 17 M parameters with random weights, float32; its end token is never the likeliest, so all greedy answers
are as long as was asked. Prompts are pieces of the standard library. OMP_NUM_THREADS=1 for all: one core computes.

- engine: 16 streams in the engine in this process, against transformers' `generate` one at a time, taking turns with
  it. Target: >= 3x the tokens/s.
- rival: the same 16 streams over HTTP, against `transformers serve` of the installed version as it comes and with its
  continuous batching, whichever is faster. Target: not below it.
- http: the time to the first token over HTTP less that in this process, the median of the differences request by
  request (target <= 5 ms), and the same for a model of 1 M parameters: the large one's weights pass through the CPU's
  caches for each token, so all that HTTP needs is read from memory again; the small one leaves it where it is.
  GET /v1/models on 16 connections (target >= 1,500/s), with the client's own part of a CPU.
- rollout: a new version under 20 requests/s that do not wait for each other. Targets: no failure, p99 <= 2x.
- start: `slipway apply` to the first answer, with Serve not yet running and running. Target: <= 15 s.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", RAY_USAGE_STATS_ENABLED="0")

import asyncio
import json
import platform
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from http_client import Connection, Response
from serving_rival import rival_tokens_per_second
from slipway_api.references import ModelReference
from slipway_api.serving import EngineConfig
from slipway_jobs.data.tokenizer import train_bpe
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.resource import DEPLOYMENTS
from slipway_serving.replica import EngineReplica

BIN = Path(sys.executable).parent
STREAMS, CONTEXT = 16, 512
Row = tuple[str, str, str, str]


def texts() -> list[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [text for path in paths[:60] if len(text := path.read_text(errors="replace")) > 2000]


def make_model(directory: Path, seed: int, width: int = 384) -> Path:
    directory.mkdir(parents=True)
    train_bpe(texts(), 8192, directory)
    torch.manual_seed(seed)
    layers = heads = width // 64
    config = LlamaConfig(
        vocab_size=8192, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=width * 8 // 3, max_position_embeddings=CONTEXT, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[0] = 0  # some other token is always above zero
    model.save_pretrained(directory)
    return directory


def prompts() -> list[str]:
    return [text[500 + 40 * number :][:200] for number, text in enumerate(texts()[:STREAMS])]


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def met(is_met: bool) -> str:
    return "yes" if is_met else "NO"


class Rows:
    """What has been measured: said at once, and as a table at the end."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, *rows: Row) -> None:
        for row in rows:
            print("...", ": ".join(row[:2]), flush=True)
            self._rows.append(row)

    def print(self) -> None:
        widths = [max(len(row[column]) for row in self._rows) for column in range(3)]
        for row in self._rows:
            print("  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)).rstrip())


# --- in this process ----------------------------------------------------------------------------------------------


async def generate_all(replica: EngineReplica, tokens: int) -> int:
    """Tokens of all streams together."""

    async def one(prompt: str) -> int:
        made = 0
        async for piece in replica.generate({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "top_p": 1}):
            made = piece.get("tokens", made)
        return made

    return sum(await asyncio.gather(*map(one, prompts())))


def generate_each(replica: EngineReplica, tokens: int, count: int) -> int:
    """The first prompts, one after the other, with transformers' own loop."""
    model = replica.engine.model
    for prompt in prompts()[:count]:
        encoded = model.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = model.lm.generate(**encoded, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        assert out.shape[1] == encoded["input_ids"].shape[1] + tokens
    return count * tokens


def engine(replica: EngineReplica, tokens: int, rounds: int) -> list[Row]:
    pairs = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        each = generate_each(replica, tokens, 4) / (time.perf_counter() - started)
        started = time.perf_counter()
        made = asyncio.run(generate_all(replica, tokens))
        assert made == STREAMS * tokens
        pairs.append((made / (time.perf_counter() - started), each))
    ours, theirs = (statistics.median(values) for values in zip(*pairs[1:], strict=True))  # the first warms up
    ratio = statistics.median(a / b for a, b in pairs[1:])
    words = f"{ours:,.0f} against {theirs:,.0f} tokens/s: {ratio:.1f}x"
    return [(f"engine, {STREAMS} streams / generate", words, ">= 3x", met(ratio >= 3))]


def deployment(name: str, model: Path, steps: list[dict[str, int]]) -> dict[str, Any]:
    spec = {
        "model": {"uri": str(model)},
        "engine": {"transformers": {"precision": "fp32", "maxBatch": STREAMS, "maxContextTokens": CONTEXT}},
        "replicas": {"resources": {"cpu": "500m", "memory": "1Gi"}},
        "canary": {"steps": steps},
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "Deployment", "metadata": metadata, "spec": spec}


# --- a control plane ----------------------------------------------------------------------------------------------


class ControlPlane:
    """`slipway up` in a folder of its own, as long as it is entered."""

    def __init__(self, home: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUBECONFIG", "RAY_", "SLIPWAY_"))}
        self.kubeconfig = home / "apiserver" / "kubeconfig"
        self._environment = kept | {"SLIPWAY_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def __enter__(self) -> ControlPlane:
        self("up", "--cpus", "2")
        return self

    def __exit__(self, *_: object) -> None:
        self("down")

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [str(BIN / "slipway"), *arguments],
            env=self._environment, input=stdin, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"slipway {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def serve(self, name: str, model: Path, steps: list[dict[str, int]]) -> None:
        self("apply", "-f", "-", stdin=json.dumps(deployment(name, model, steps)))

    def answering(self, name: str) -> str:
        """Its URL, once it is available and has answered."""
        self("wait", f"sdeploy/{name}", "--for=condition=Available", "--timeout=180s")
        url = str(json.loads(self("get", f"sdeploy/{name}", "-o", "json"))["status"]["url"])
        answer = asyncio.run(ask_once(url, "/v1/completions", {"prompt": "a", "max_tokens": 1}))
        assert answer.status == 200, answer.body
        return url


async def ask_once(url: str, path: str, document: dict[str, Any] | None = None) -> Response:
    connection = Connection(url)
    try:
        return await connection.send(connection.request(path, document), 30)
    finally:
        connection.close()


# --- over HTTP ----------------------------------------------------------------------------------------------------


def body(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, **more}


async def stream_all(url: str, tokens: int, **more: Any) -> float:
    """Tokens/s of all streams together."""
    connections = [Connection(url) for _ in range(STREAMS)]

    async def one(connection: Connection, prompt: str) -> Response:
        return await connection.send(connection.request("/v1/completions", body(prompt, tokens, **more)), 300)

    started = time.perf_counter()
    asked: list[Awaitable[Response]] = [one(c, prompt) for c, prompt in zip(connections, prompts(), strict=True)]
    answers = await asyncio.gather(*asked)
    seconds = time.perf_counter() - started
    for connection, answer in zip(connections, answers, strict=True):
        connection.close()
        assert answer.status == 200 and b"error" not in answer.body[-200:], answer.body[-500:]
    return STREAMS * tokens / seconds


def streams(url: str, replica: EngineReplica, model: Path, tokens: int, rounds: int, ask_rival: bool) -> list[Row]:
    ours = statistics.median([asyncio.run(stream_all(url, tokens)) for _ in range(rounds + 1)][1:])
    rows = [(f"HTTP, {STREAMS} streams", f"{ours:,.0f} tokens/s", "", "")]
    if ask_rival:
        words, theirs = rival_tokens_per_second(
            model, lambda address: asyncio.run(stream_all(address, tokens, model=str(model))), rounds
        )
        again = asyncio.run(stream_all(url, tokens))  # on both sides of the rival
        ratio = statistics.median([ours, again]) / theirs if theirs else 0.0
        said = (
            f"{ours:,.0f}, {again:,.0f} after it, against {theirs:,.0f}: {ratio:.1f}x" if theirs else "it did not run"
        )
        rows.append((f"HTTP / transformers serve ({words})", said, ">= 1x", met(ratio >= 1) if theirs else ""))
    return rows


def replica_of(model: Path) -> EngineReplica:
    """As `ControlPlane.serve` has it served, in this process."""
    reference = ModelReference(uri=str(model))
    config = EngineConfig(
        version="v-1", model=reference, precision="fp32", max_batch=STREAMS, max_context_tokens=CONTEXT
    )
    return EngineReplica(config, gpu=False)


async def first_tokens(url: str, replica: EngineReplica, count: int, which: str = "") -> Row:
    connection, inside, outside = Connection(url), [], []
    for number in range(count + 5):
        prompt = prompts()[number % STREAMS]
        started = time.perf_counter()
        waited = 0.0
        # To its end: a second token that is still being computed here would take the CPU from the request that follows.
        async for piece in replica.generate({"prompt": prompt, "max_tokens": 2, "temperature": 0, "top_p": 1}):
            if "tokens" in piece:
                waited = waited or time.perf_counter() - started
        inside.append(waited)
        outside.append((await connection.send(connection.request("/v1/completions", body(prompt, 2)))).first)
    connection.close()
    within, over = statistics.median(inside[5:]), statistics.median(outside[5:])
    # Of each prompt the two times were taken one after the other: what slows both for a while is in neither difference.
    more = statistics.median(b - a for a, b in zip(inside[5:], outside[5:], strict=True))
    words = f"{1000 * over:.1f} ms, in-process {1000 * within:.1f} ms: {1000 * more:+.1f} ms, request by request"
    return (f"time to first token, HTTP - engine{which}", words, "<= 5 ms", met(more <= 0.005))


async def models_per_second(url: str, seconds: float) -> Row:
    counts, end = [0] * STREAMS, time.perf_counter() + seconds

    async def one(number: int) -> None:
        connection = Connection(url)
        request = connection.request("/v1/models")
        while time.perf_counter() < end:
            assert (await connection.send(request)).status == 200
            counts[number] += 1
        connection.close()

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(one, range(STREAMS)))
    wall = time.perf_counter() - started
    rate, share = sum(counts) / wall, (time.process_time() - cpu) / wall
    words = f"{rate:,.0f}/s; the client takes {100 * share:.0f}% of a CPU"
    return ("GET /v1/models, 16 connections", words, ">= 1,500/s", met(rate >= 1500))


# --- rollout ------------------------------------------------------------------------------------------------------


class Load:
    """20 requests a second, whether the ones before are answered or not."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    async def _one(self) -> None:
        connection = self._free.pop() if self._free else Connection(self._url)
        try:
            asked = {"prompt": "def main(", "max_tokens": 4, "temperature": 0}
            answer = await connection.send(connection.request("/v1/completions", asked), 30)
            self.seconds.append(answer.whole)
            if answer.status != 200:
                self.failures.append(f"{answer.status} {answer.body[:200]!r}")
            self._free.append(connection)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.failures.append(repr(error))

    async def until(self, ended: Any) -> tuple[list[float], list[str]]:
        """Ask until `ended()`; (latencies, failures)."""
        self.seconds, self.failures = [], []
        begin = time.perf_counter()
        number = 0
        while not ended():
            task = asyncio.create_task(self._one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
            await asyncio.sleep(max(0, begin + number / 20 - time.perf_counter()))
        await asyncio.gather(*self._tasks)
        return self.seconds, self.failures


async def versions(url: str) -> set[str]:
    answer = await ask_once(url, "/v1/models")
    if answer.status != 200:
        raise ValueError(f"GET /v1/models: {answer.status} {answer.body[:200]!r}")
    return set(answer.json()["data"][0]["versions"])


async def rollout(plane: ControlPlane, url: str, other: Path, steady_seconds: float) -> list[Row]:
    load, before = Load(url), await versions(url)
    looks: list[str] = []  # that failed

    async def taken_over() -> bool:
        try:
            now = await versions(url)
        except (OSError, EOFError, ValueError) as error:
            looks.append(repr(error))
            return False
        return len(now) == 1 and now != before

    steady_end = time.perf_counter() + steady_seconds
    steady, failed = await load.until(lambda: time.perf_counter() > steady_end)

    async def roll() -> None:
        steps = [{"weight": 25, "pauseSeconds": 3}, {"weight": 50, "pauseSeconds": 3}]
        # Not by a command: it would take a second of the CPUs that serve, where it is run on another machine.
        async with Client(await load_config(str(plane.kubeconfig))) as client:
            await client.apply(DEPLOYMENTS, deployment("first", other, steps), field_manager="benchmark")
        async with asyncio.timeout(150):
            # Asked of the endpoint: a command for each look would be a load of its own.
            while not await taken_over():  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        await asyncio.sleep(2)

    rolling = asyncio.ensure_future(roll())
    during, failed_then = await load.until(rolling.done)
    await rolling
    was, now = percentile(steady, 99), percentile(during, 99)
    count, failures = len(steady) + len(during), failed + failed_then + looks
    for failure in failures[:5]:
        print("failure:", failure)
    return [
        ("failures in a rollout at 20/s", f"{len(failures)} of {count}", "0", met(not failures)),
        (
            "p99 in it / steady",
            f"{1000 * now:.0f} / {1000 * was:.0f} ms: {now / was:.1f}x (medians "
            f"{1000 * statistics.median(during):.0f} / {1000 * statistics.median(steady):.0f} ms)",
            "<= 2x",
            met(now <= 2 * was),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter: a test of the script more than a measurement")
    parser.add_argument("--only", default="engine,http,rival,rollout,start")
    options = parser.parse_args()
    asked, quick = options.only.split(","), options.quick
    tokens, rounds = (32, 1) if quick else (96, 3)
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended before the last measurement")
    )  # the control plane goes too
    before, rows = os.getloadavg()[0], Rows()
    with tempfile.TemporaryDirectory(prefix="slipway-serving-") as scratch:
        model, other = (make_model(Path(scratch) / f"model-{seed}", seed) for seed in (0, 1))
        replica = replica_of(model)
        if "engine" in asked:
            rows.add(*engine(replica, tokens, rounds))
        if set(asked) - {"engine"}:
            with ControlPlane(Path(scratch) / "home") as plane:
                started = time.perf_counter()
                plane.serve("first", model, [])
                url = plane.answering("first")
                cold = time.perf_counter() - started
                rows.add(("cold start, Serve included", f"{cold:.1f} s", "<= 15 s", met(cold <= 15)))
                if "http" in asked:
                    rows.add(asyncio.run(first_tokens(url, replica, 20 if quick else 200)))
                    rows.add(asyncio.run(models_per_second(url, 2 if quick else 10)))
                    small = make_model(Path(scratch) / "small", 0, width=64)
                    plane.serve("small", small, [])
                    asked_of = plane.answering("small"), replica_of(small)
                    rows.add(asyncio.run(first_tokens(*asked_of, 20 if quick else 200, ", 1 M parameters")))
                    plane("delete", "sdeploy/small")
                if {"http", "rival"} & set(asked):
                    rows.add(*streams(url, replica, model, tokens, rounds, "rival" in asked))
                if "rollout" in asked:
                    rows.add(*asyncio.run(rollout(plane, url, other, 5 if quick else 20)))
                if "start" in asked:
                    started = time.perf_counter()
                    plane.serve("second", model, [])
                    plane.answering("second")
                    cold = time.perf_counter() - started
                    rows.add(("cold start of another", f"{cold:.1f} s", "<= 15 s", met(cold <= 15)))
    rows.print()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {before:.1f} before, torch {torch.__version__}")


if __name__ == "__main__":
    main()
