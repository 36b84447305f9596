"""The engine: the same answers as one at a time, whoever else is there; and nothing leaks."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway_jobs.errors import UserError
from slipway_serving.engine import Engine, EngineFailed, Generation, Piece, QueueFull
from slipway_serving.engine.engine import warm_up
from slipway_serving.engine.model import ServedModel

from .conftest import config_for, save_model


async def collect(engine: Engine, generation: Generation) -> list[Piece]:
    return [piece async for piece in engine.stream(generation)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def prompts(served: ServedModel, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    draws = random.Random(seed)
    return [tuple(draws.randrange(1, served.vocabulary) for _ in range(draws.randint(1, 40))) for _ in range(count)]


def reference(served: ServedModel, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """What transformers' own generate says, one at a time, greedily."""
    out = served.lm.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in out[0][len(prompt) :]]


async def test_many_at_a_time_are_the_same_as_one_at_a_time(engine: Engine, served: ServedModel) -> None:
    asked = prompts(served, 20)
    wanted = [reference(served, prompt, 24) for prompt in asked]

    async def one(index: int) -> list[int]:
        await asyncio.sleep(0.003 * index)  # they join while others are under way
        pieces = await collect(engine, Generation(asked[index], 24, temperature=0, logprobs=0))
        return [told.token for piece in pieces for told in piece.logprobs]

    found = await asyncio.gather(*(one(index) for index in range(len(asked))))
    assert list(found) == wanted


async def test_a_seed_gives_the_same_answer_alone_and_in_company(engine: Engine, served: ServedModel) -> None:
    asked = [
        Generation(prompt, 20, temperature=1.3, top_p=0.9, top_k=40, seed=index, logprobs=0)
        for index, prompt in enumerate(prompts(served, 8, seed=1))
    ]
    alone = [await collect(engine, one) for one in asked]
    together = await asyncio.gather(*(collect(engine, one) for one in asked))

    def tokens(pieces: list[Piece]) -> list[int]:
        return [told.token for piece in pieces for told in piece.logprobs]

    assert [tokens(one) for one in together] == [tokens(one) for one in alone]
    other = Generation(asked[0].prompt, 20, temperature=1.3, seed=99, logprobs=0)
    assert tokens(await collect(engine, other)) != tokens(alone[0])


async def test_an_answer_ends_at_its_limit_or_the_end_of_the_context(engine: Engine, served: ServedModel) -> None:
    prompt = prompts(served, 1)[0]
    pieces = await collect(engine, Generation(prompt, 5, temperature=0, ignore_end=True))
    assert (pieces[-1].finish, pieces[-1].tokens) == ("length", 5)
    long = tuple([1] * 250)
    pieces = await collect(engine, Generation(long, 100, temperature=0, ignore_end=True))
    assert (pieces[-1].finish, pieces[-1].tokens) == ("length", 6)


async def test_a_stop_text_ends_it_wherever_it_falls_between_tokens(engine: Engine, served: ServedModel) -> None:
    for prompt in prompts(served, 6, seed=2):
        whole = text_of(await collect(engine, Generation(prompt, 40, temperature=0, ignore_end=True)))
        for start in range(3, max(4, len(whole) - 4), 5):
            stop = whole[start : start + 3]
            pieces = await collect(engine, Generation(prompt, 40, temperature=0, stop=(stop,), ignore_end=True))
            assert text_of(pieces) == whole[: whole.index(stop)]
            assert pieces[-1].finish == "stop"


async def test_no_piece_holds_half_a_character(engine: Engine, served: ServedModel) -> None:
    broken = 0
    for seed in range(12):
        asked = Generation(prompts(served, 1, seed)[0], 60, temperature=1.5, seed=seed, ignore_end=True, logprobs=0)
        pieces = await collect(engine, asked)
        tokens = [told.token for piece in pieces for told in piece.logprobs]
        whole = served.tokenizer.decode(tokens, skip_special_tokens=True)
        assert text_of(pieces) == whole
        broken += whole.count("\ufffd")
    assert broken > 0, "random bytes are broken characters here and there: the whole text has them too"


async def test_penalties_keep_it_from_saying_the_same(engine: Engine, served: ServedModel) -> None:
    prompt = prompts(served, 1, seed=3)[0]
    plain = Generation(prompt, 60, temperature=0, ignore_end=True, logprobs=0)
    penal = Generation(
        prompt, 60, temperature=0, ignore_end=True, logprobs=0, frequency_penalty=2.0, presence_penalty=2.0
    )
    kinds = []
    for asked in (plain, penal):
        pieces = await collect(engine, asked)
        kinds.append(len({told.token for piece in pieces for told in piece.logprobs}))
    assert kinds[1] > kinds[0]


async def test_logprobs_are_those_of_the_model(engine: Engine, served: ServedModel) -> None:
    prompt = prompts(served, 1, seed=4)[0]
    pieces = await collect(engine, Generation(prompt, 8, temperature=0, logprobs=3, ignore_end=True))
    told = [one for piece in pieces for one in piece.logprobs]
    whole = torch.tensor([[*prompt, *(one.token for one in told)]])
    with torch.inference_mode():
        logits = torch.log_softmax(served.lm(whole).logits[0].double(), -1)
    for index, one in enumerate(told):
        row = logits[len(prompt) - 1 + index]
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert [token for token, _ in one.top] == [int(token) for token in row.topk(3).indices]


async def test_whoever_hangs_up_frees_the_row_at_once(engine: Engine, served: ServedModel) -> None:
    draws = random.Random(0)
    asked = prompts(served, 200, seed=5)

    async def impatient(prompt: tuple[int, ...]) -> None:
        stream = engine.stream(Generation(prompt, 200, temperature=0, ignore_end=True))
        try:
            async with asyncio.timeout(draws.uniform(0.001, 0.05)):
                async for _ in stream:
                    pass
        except TimeoutError:
            pass
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    await asyncio.gather(*(impatient(prompt) for prompt in asked))
    async with asyncio.timeout(10):
        while any((engine.load.running, engine.load.waiting, engine.load.cache_tokens)):  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)
    prompt = prompts(served, 1)[0]
    pieces = await collect(engine, Generation(prompt, 24, temperature=0, logprobs=0))
    assert [told.token for piece in pieces for told in piece.logprobs] == reference(served, prompt, 24)


async def test_a_full_queue_refuses_at_once(served: ServedModel) -> None:
    engine, entered, gate = Engine(served, max_batch=1, max_queue=2), threading.Event(), threading.Event()
    held = asyncio.ensure_future(engine.call(lambda _: (entered.set(), gate.wait(10))))  # the thread stands still
    assert await asyncio.to_thread(entered.wait, 10)
    asked = Generation((1,), 2, temperature=0, ignore_end=True)
    waiting = [asyncio.ensure_future(collect(engine, asked)) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(QueueFull):
        await collect(engine, asked)
    gate.set()
    assert all(pieces[-1].finish == "length" for pieces in await asyncio.gather(*waiting))
    assert await held
    assert text_of(await collect(engine, asked)) == text_of(await collect(engine, asked))
    engine.close()


@pytest.mark.parametrize("fails", ["prefill", "step"])
async def test_a_model_that_fails_fails_every_answer_and_says_so(served: ServedModel, fails: str) -> None:
    class Broken:
        tokenizer, max_context, end_tokens = served.tokenizer, 64, frozenset[int]()

        def prefill(self, *arguments: Any) -> Any:
            if fails == "prefill":
                raise RuntimeError("the device is gone")
            return served.prefill(*arguments)

        def step(self, *_: Any) -> Any:
            raise RuntimeError("the device is gone")

    engine = Engine(Broken(), max_batch=4, max_queue=4)  # type: ignore[arg-type]
    asked = Generation((1, 2), 9, temperature=0, ignore_end=True)
    ended = await asyncio.gather(*(collect(engine, asked) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, EngineFailed) and "the device is gone" in str(one) for one in ended)
    assert engine.failure is not None
    with pytest.raises(EngineFailed):
        await collect(engine, asked)


async def test_an_answer_without_numbers_fails_alone_and_leaves_nothing(tmp_path: Path) -> None:
    """A token whose embedding is damaged: what its keys and values leave in the cache must reach nobody."""
    served = ServedModel.load(config_for(save_model(tmp_path / "model")), gpu=False)
    embeddings, head = served.lm.get_input_embeddings(), served.lm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # they may be one
    sound = [tuple(token for token in prompt if token != 3) or (1,) for prompt in prompts(served, 12)]
    wanted = [reference(served, prompt, 30) for prompt in sound]
    with torch.no_grad():
        embeddings.weight[3] = float("nan")
    engine = Engine(served, max_batch=8, max_queue=100)

    async def one(prompt: tuple[int, ...]) -> list[int]:
        pieces = await collect(engine, Generation(prompt, 30, temperature=0, logprobs=0, ignore_end=True))
        return [told.token for piece in pieces for told in piece.logprobs]

    asked = [prompt for pair in zip([(*sound[0], 3, 5)] * len(sound), sound, strict=True) for prompt in pair]
    found = await asyncio.gather(*map(one, asked), return_exceptions=True)
    assert all(isinstance(one, EngineFailed) and "no finite numbers" in str(one) for one in found[::2])
    assert found[1::2] == wanted
    assert await asyncio.gather(*map(one, sound)) == wanted
    assert engine.failure is None
    engine.close()


def test_a_model_without_numbers_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    served = ServedModel.load(config_for(save_model(tmp_path / "model")), gpu=False)
    with torch.no_grad():
        served.lm.get_decoder().norm.weight.fill_(float("nan"))
    engine = Engine(served, max_batch=2, max_queue=2)
    with pytest.raises(EngineFailed, match="the weights are damaged"):
        warm_up(engine)
    engine.close()


async def test_embeddings_are_means_of_length_one(engine: Engine, served: ServedModel) -> None:
    tokens = [5, 6, 7]
    found = torch.tensor(await engine.call(lambda model: model.embed(tokens)))
    with torch.inference_mode():
        hidden = served.lm.get_decoder()(torch.tensor([tokens])).last_hidden_state[0].mean(0)
    assert torch.allclose(found, torch.nn.functional.normalize(hidden, dim=0), atol=1e-5)


def test_files_that_have_changed_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    with pytest.raises(UserError, match="they have changed since") as caught:
        ServedModel.load(config_for(folder, digest="sha256:other"), gpu=False)
    assert caught.value.reason == "ModelDigestMismatch"


async def test_a_compiled_step_says_the_same_and_is_compiled_once(
    model_folder: Path, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The programs run as they were captured: to have them translated to C++ takes a minute and shows no more.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = ServedModel.load(config_for(model_folder, compile=True), gpu=False)
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    engine = Engine(compiled, max_batch=4, max_queue=100)
    warm_up(engine)
    programs = counts["unique_graphs"] - before
    assert 2 <= programs <= 3, "for a single row, again when the length of it has changed, and for any number of rows"
    asked = prompts(served, 12, seed=6)
    wanted = [reference(served, prompt, 20) for prompt in asked]
    pieces = await asyncio.gather(
        *(collect(engine, Generation(prompt, 20, temperature=0, logprobs=0)) for prompt in asked)
    )
    engine.close()
    assert [[told.token for piece in one for told in piece.logprobs] for one in pieces] == wanted
    assert counts["unique_graphs"] - before == programs, "nothing is compiled while clients wait"
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
