"""Entropy and loss: what transformers and torch say of the same tokens, whoever else is there, and only when asked."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway_jobs.drift.features import LOSS_TOKENS
from slipway_serving.engine import Engine, Generation, Piece
from slipway_serving.engine import signals as module
from slipway_serving.engine.model import ServedModel
from slipway_serving.replica import EngineReplica

from .conftest import config_for, save_model


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its context is longer than what a loss is taken over."""
    return save_model(tmp_path_factory.mktemp("long"), positions=512)


@pytest.fixture(scope="module")
def replica(long_folder: Path) -> Iterator[EngineReplica]:
    made = EngineReplica(config_for(long_folder, max_context_tokens=512), gpu=False)
    yield made
    made.engine.close()


async def collect(engine: Engine, generation: Generation) -> list[Piece]:
    return [piece async for piece in engine.stream(generation)]


def tokens(pieces: list[Piece]) -> list[int]:
    return [told.token for piece in pieces for told in piece.logprobs]


def generations(model: ServedModel, *lengths: int) -> list[Generation]:
    """Prompts of these lengths, whose answers have all kinds of sampling."""
    draws = random.Random(5)
    return [
        Generation(
            tuple(draws.randrange(1, model.vocabulary) for _ in range(length)),
            6 + index,
            temperature=(0, 0.7, 1.5)[index % 3],
            top_p=0.9 if index % 2 else 1,
            presence_penalty=0.5 * (index % 2),
            seed=index,
            logprobs=0,
            ignore_end=True,
            entropy=True,
            loss=True,
        )
        for index, length in enumerate(lengths)
    ]


@torch.inference_mode()
def loss_of(model: ServedModel, prompt: tuple[int, ...]) -> float:
    """transformers' own loss."""
    read = torch.tensor([prompt[:LOSS_TOKENS]])
    return float(model.lm(input_ids=read, labels=read).loss)


@torch.inference_mode()
def entropy_of(model: ServedModel, prompt: tuple[int, ...], written: list[int]) -> float:
    """The mean entropy of the distributions that these tokens were drawn from."""
    logits = model.lm(torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1]
    return float(torch.distributions.Categorical(logits=logits.double()).entropy().mean())


async def test_they_are_those_of_the_model_alone_and_in_company(
    replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model = replica.engine, replica.engine.model
    monkeypatch.setitem(module._BLOCK_ELEMENTS, "cpu", 1)  # so that a prompt is more than one block
    asked = generations(model, 1, 2, 40, 255, 256, 257, 400)
    alone = [await collect(engine, one) for one in asked]
    silent = [replace(one, entropy=False, loss=False) for one in asked]
    together = await asyncio.gather(*(collect(engine, one) for one in [*asked, *silent]))
    for one, pieces, company in zip(asked, alone, together[: len(asked)], strict=True):
        assert len(tokens(pieces)) == one.max_tokens
        for found in (pieces[-1], company[-1]):
            assert found.entropy == pytest.approx(entropy_of(model, one.prompt, tokens(pieces)), abs=1e-5)
            if len(one.prompt) == 1:
                assert found.loss is None
            else:
                assert found.loss == pytest.approx(loss_of(model, one.prompt), abs=1e-5)
        assert all(piece.entropy is piece.loss is None for piece in pieces[:-1])
    # The answers themselves are the same, and who does not ask is told nothing.
    assert [tokens(pieces) for pieces in together] == [tokens(pieces) for pieces in alone] * 2
    assert all(piece.entropy is piece.loss is None for pieces in together[len(asked) :] for piece in pieces)


async def test_nothing_is_computed_for_who_does_not_ask(
    replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = replica.engine
    (asked,) = generations(engine.model, 30)
    done: list[tuple[int, ...]] = []
    real = module.entropies

    def counted(logits: torch.Tensor) -> torch.Tensor:
        done.append(tuple(logits.shape))
        return real(logits)

    monkeypatch.setattr("slipway_serving.engine.engine.entropies", counted)
    await collect(engine, replace(asked, entropy=False, loss=False))
    assert done == []
    await collect(engine, asked)
    assert done == [(1, engine.model.vocabulary)] * asked.max_tokens


async def test_a_replica_tells_them_with_the_last_piece_when_the_router_asks(replica: EngineReplica) -> None:
    async def ask(**request: Any) -> list[dict[str, Any]]:
        whole = {"max_tokens": 5, "temperature": 0, "top_p": 1, **request}
        return [piece async for piece in replica.generate(whole) if "start" not in piece]

    text = "the quick brown fox jumps"
    found = await ask(prompt=text, signals=True)
    prompt = tuple(replica.engine.model.tokenizer.encode(text))
    assert found[-1]["loss"] == pytest.approx(loss_of(replica.engine.model, prompt), abs=1e-5)
    assert found[-1]["entropy"] > 0
    assert not any({"loss", "entropy"} & set(piece) for piece in [*found[:-1], *await ask(prompt=text)])
    # A chat's tokens are those of its template, too: its loss would be compared with something else.
    chat = await ask(messages=[{"role": "user", "content": text}], signals=True)
    assert "loss" not in chat[-1]
    assert chat[-1]["entropy"] > 0


async def test_no_first_token_waits_for_the_loss_of_its_prompt(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model cannot tell the loss before somebody has the first token."""
    arrived, told = threading.Event(), ServedModel.losses

    def losses(model: ServedModel, *arguments: Any) -> dict[int, float]:
        assert arrived.wait(10), "nobody has got the first token yet"
        return told(model, *arguments)

    monkeypatch.setattr(ServedModel, "losses", losses)
    engine, prompt = Engine(served, max_batch=2, max_queue=2), (1, 2, 3)
    try:
        pieces = []
        async for piece in engine.stream(Generation(prompt, 3, temperature=0, loss=True, ignore_end=True)):
            arrived.set()
            pieces.append(piece)
    finally:
        engine.close()
    assert pieces[-1].loss == pytest.approx(loss_of(served, prompt), abs=1e-5)
