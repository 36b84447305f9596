"""A small world of two kinds of text, a model directory with tokenizer and reference profile, and a clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from slipway_api.references import ModelReference
from slipway_api.serving import WatcherConfig
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.reference import FOLDER, build_profile, prompts_of
from slipway_serving.watcher.watcher import Watcher

WINDOW = 100
_PROSE = "the a of harbour morning letter never walked quietly under bridge her old winter and said light"
_CODE = "#define static const uint32_t *ptr sizeof(x) return 0; #endif (void) __attribute__ 0xFF !="
_WORDS = {"prose": _PROSE.split(), "code": _CODE.split()}


def document(kind: str, number: int) -> str:
    """Lines of words of one kind."""
    draws = random.Random(f"{kind}{number}")
    lines = (" ".join(draws.choices(_WORDS[kind], k=draws.randint(3, 14))) for _ in range(60))
    return "\n".join(lines) + "\n"


def prompts(kind: str, count: int, *, start: int = 1000) -> list[str]:
    """Requests of one kind that no document of the reference has."""
    found: list[str] = []
    number = start
    while len(found) < count:
        found += prompts_of(document(kind, number), str(number))
        number += 1
    return found[:count]


def save_tokenizer(folder: Path, size: int = 400) -> Path:
    """tokenizer.json, as far as a watcher needs a model."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([document(kind, n) for kind in _WORDS for n in range(5)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_reference(folder: Path) -> None:
    """A profile of prose beside the tokenizer in this folder."""
    profile = build_profile(load_backend(folder), ((str(n), document("prose", n)) for n in range(60)))
    (folder / FOLDER).mkdir()
    profile.write(folder / FOLDER)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tokenizer(tmp_path_factory.mktemp("watched") / "model")
    write_reference(folder)
    return folder


class Clock:
    """Two clocks in one, set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def config(model: Path, tmp_path: Path) -> WatcherConfig:
    return WatcherConfig(
        namespace="team",
        name="chat",
        uid="u",
        version="v-1",
        model=ModelReference(uri=str(model)),
        storage=str(tmp_path / "drift"),
        content="examples",
        window_requests=WINDOW,
    )


Start = Callable[..., Watcher]
Signals = Callable[[int], dict[str, float]]


@pytest.fixture
def start(config: WatcherConfig) -> Start:
    """Starts a watcher over the same storage."""

    def made(clock: Clock | None = None, **changes: Any) -> Watcher:
        time = clock or Clock()
        watcher = Watcher(config.model_copy(update=changes), clock=time, wall=time)
        watcher.prepare()
        return watcher

    return made


def batch(
    texts: list[str], *, name: str = "r", dropped: int = 0, version: str = "v-1", signals: Signals | None = None
) -> dict[str, Any]:
    """What a router sends. `signals`: what the engine tells of the request with this number."""
    records = [
        {
            "key": f"{name}/{number}",
            "id": f"{name}-{number}",
            "version": version,
            "time": 0.0,
            "prompt": text,
            "text": "what the model said",
            "tokens": 5,
            "finish": "stop",
            **(signals(number) if signals is not None else {}),
        }
        for number, text in enumerate(texts)
    ]
    return {"replica": "one", "records": records, "dropped": dropped}


def feed(watcher: Watcher, texts: list[str], *, name: str = "r", signals: Signals | None = None) -> None:
    """Requests with these texts."""
    watcher.take(batch(texts, name=name, signals=signals))
    watcher.step()
