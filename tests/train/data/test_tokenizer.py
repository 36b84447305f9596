from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_api.references import TrainingModel
from slipway_api.trainjob import Tokenizer
from slipway_jobs.data.cache import Cache, Entry
from slipway_jobs.data.documents import Piece
from slipway_jobs.data.tokenizer import (
    TokenizerInfo,
    check_vocabulary,
    load_backend,
    resolve_tokenizer,
    sample,
    train_bpe,
)
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage

TEXTS = [f"def function_{number}(value):\n    return value + {number}  # ünïcode ☃\n" * 5 for number in range(50)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    assert train_bpe(TEXTS, 350, directory) == 350
    return directory


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> Cache:
    return Cache(Storage(tmp_path / "cache"), progress=said.append)


def resolved(spec: dict[str, Any] | None, model: dict[str, Any], cache: Cache, said: list[str]) -> Entry:
    tokenizer = None if spec is None else Tokenizer.model_validate(spec)
    return resolve_tokenizer(tokenizer, TrainingModel.model_validate(model), [], cache, said.append)


@given(st.text(max_size=50))
def test_every_text_comes_back(trained: Path, text: str) -> None:
    backend = load_backend(trained)
    ids = backend.encode(text, add_special_tokens=False).ids
    assert backend.decode(ids, skip_special_tokens=False) == text
    assert all(0 < token < 350 for token in ids)


def test_data_cannot_say_end_of_text(trained: Path) -> None:
    backend = load_backend(trained)
    ids = backend.encode("a<|endoftext|>b", add_special_tokens=False).ids
    assert 0 not in ids
    assert backend.decode(ids, skip_special_tokens=False) == "a<|endoftext|>b"


def test_the_same_texts_give_the_same_tokenizer_in_every_process(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    program = (
        "import json, pathlib, sys; from slipway_jobs.data.tokenizer import train_bpe;"
        "train_bpe(json.loads(pathlib.Path(sys.argv[1]).read_text()), 350, pathlib.Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "texts.json", tmp_path / "other"], check=True, timeout=60)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "other" / name).read_bytes() == (trained / name).read_bytes()


def test_transformers_loads_what_was_trained(trained: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415

    loaded = AutoTokenizer.from_pretrained(str(trained))
    assert loaded.is_fast
    assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (0, 0, 0)
    assert len(loaded) == 350
    backend = load_backend(trained)
    for text in TEXTS[:5]:
        ids = loaded(text)["input_ids"]
        assert ids == backend.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == text


def test_sample_is_bounded_spread_and_repeatable() -> None:
    pieces = [Piece(f"{number:04d}" * 250, True) for number in range(2000)]  # 2 MB
    kept = sample(pieces, 300_000)
    assert 150_000 <= sum(map(len, kept)) <= 300_000
    assert kept == sample(iter(pieces), 300_000)
    numbers = [int(text[:4]) for text in kept]
    assert numbers == sorted(numbers)
    assert numbers[-1] > 1900
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 16
    assert sample(pieces, 10**9) == [piece.text for piece in pieces]
    long = sample([Piece("x" * 10_000_000, True)], 1_000_000)
    assert 500_000 <= sum(map(len, long)) <= 1_000_000


def test_a_directory_is_loaded_once(trained: Path, cache: Cache, said: list[str]) -> None:
    entries = [
        resolved({"uri": str(trained)}, {"uri": "/nowhere"}, cache, said),
        resolved(None, {"uri": str(trained)}, cache, said),
    ]
    assert entries[0] == entries[1]
    assert len(said) == 1
    info = TokenizerInfo.of(entries[0])
    assert (info.vocab_size, info.eos_id, info.pad_id) == (350, 0, 0)
    config = json.loads((info.path / "tokenizer_config.json").read_text())
    assert "is_local" not in config
    text = TEXTS[3]
    assert load_backend(info.path).encode(text).ids == load_backend(trained).encode(text).ids


def test_what_tokenizer_json_cuts_and_pads_is_not_cut_and_padded(trained: Path, tmp_path: Path) -> None:
    document = json.loads((trained / "tokenizer.json").read_text())
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 600}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    text = TEXTS[1]
    assert load_backend(tmp_path).encode(text).ids == load_backend(trained).encode(text).ids


def directory_with(trained: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    (target / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    config = json.loads((trained / "tokenizer_config.json").read_text())
    config.update(changes)
    (target / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return target


def test_one_clear_error(trained: Path, tmp_path: Path, cache: Cache, said: list[str]) -> None:
    fresh = {"fresh": {"hiddenSize": 16, "layers": 1, "heads": 2}}
    (tmp_path / "hollow").mkdir()
    no_end = directory_with(trained, tmp_path / "no-end", eos_token=None)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{")
    cases: list[tuple[dict[str, Any] | None, dict[str, Any], str, str]] = [
        (None, fresh, "TokenizerMissing", "tokenizer.train"),
        ({"uri": str(tmp_path / "hollow")}, fresh, "TokenizerNotFound", "tokenizer.uri"),
        ({"uri": str(tmp_path / "nowhere")}, fresh, "TokenizerNotFound", "tokenizer.uri"),
        (None, {"uri": str(tmp_path / "hollow")}, "TokenizerNotFound", "model.uri"),
        ({"uri": str(no_end)}, fresh, "TokenizerWithoutEnd", "eos_token"),
        ({"uri": str(broken)}, fresh, "TokenizerUnusable", "tokenizer.uri"),
        (None, {"trainJob": {"name": "first"}}, "ModelUnresolved", "first"),
    ]
    for spec, model, reason, tells in cases:
        with pytest.raises(UserError) as caught:
            resolved(spec, model, cache, said)
        assert caught.value.reason == reason, str(caught.value)
        assert tells in str(caught.value)


def test_code_beside_a_tokenizer_never_runs(trained: Path, tmp_path: Path, cache: Cache, said: list[str]) -> None:
    evil = directory_with(
        trained,
        tmp_path / "evil",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )
    mark = tmp_path / "ran"
    (evil / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    try:
        entry = resolved({"uri": str(evil)}, {"uri": "/x"}, cache, said)
    except UserError as error:
        assert error.reason == "TokenizerUnusable"
    else:
        assert not list(entry.path.rglob("*.py"))
    assert not mark.exists()


def test_a_hub_that_cannot_be_reached(cache: Cache, said: list[str], tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from slipway_api.references import HubModel;"
        "from slipway_jobs.data.cache import Cache; from slipway_jobs.data.tokenizer import _from_hub;"
        "from slipway_jobs.storage import Storage;"
        "cache = Cache(Storage(sys.argv[1]), progress=print);"
        "_from_hub(HubModel(repo='nobody/nothing'), 'tokenizer.hub', cache, print)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "c"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert InfrastructureError.__name__ in last
    assert "tokenizer.hub: cannot fetch nobody/nothing@main" in last
    assert "tokenizer.uri" in last


def test_a_hub_repository_in_the_local_hub_cache_needs_no_network(trained: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hf/hub/models--team--tiny"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0" * 40)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).write_bytes((trained / name).read_bytes())
    program = (
        "import sys; from slipway_api.references import HubModel;"
        "from slipway_jobs.data.cache import Cache; from slipway_jobs.data.tokenizer import _from_hub, TokenizerInfo;"
        "from slipway_jobs.storage import Storage;"
        "e = _from_hub(HubModel(repo='team/tiny'), 'model.hub', Cache(Storage(sys.argv[1]), progress=print), print);"
        "print(TokenizerInfo.of(e).vocab_size)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "c"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["350"], done.stderr


def test_check_vocabulary() -> None:
    check_vocabulary(400, 400)
    check_vocabulary(400, 512)
    with pytest.raises(UserError, match="401 entries, the model only 400") as caught:
        check_vocabulary(401, 400)
    assert caught.value.reason == "VocabularyMismatch"
