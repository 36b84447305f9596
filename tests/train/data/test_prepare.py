from __future__ import annotations

import gzip
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from slipway_api.references import TrainingModel
from slipway_api.trainjob import Data, Tokenizer
from slipway_jobs.data import PreparedData, prepare
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage

DataOf = Callable[..., Data]


@pytest.fixture
def run(tmp_path: Path, fresh: TrainingModel, small_bpe: Tokenizer, said: list[str]) -> Callable[..., PreparedData]:
    def go(data: Data, *, cache: Path | str | None = None, scratch: Path | None = None) -> PreparedData:
        return prepare(
            data, small_bpe, fresh, Storage(cache or tmp_path / "cache"), progress=said.append, scratch=scratch
        )

    return go


def expected_stream(prepared: PreparedData, files: list[Path]) -> list[int]:
    backend = load_backend(prepared.tokenizer_dir)
    out: list[int] = []
    for file in files:
        out += [*backend.encode(file.read_text(), add_special_tokens=False).ids, prepared.eos_id]
    return out


def test_the_stream_is_what_the_tokenizer_says(run: Any, corpus: Path, data_of: DataOf) -> None:
    prepared = run(data_of(corpus / "a", held_out=(corpus / "b",)))
    assert prepared.train.tokens(0, prepared.train_tokens).tolist() == expected_stream(
        prepared, sorted((corpus / "a").iterdir())
    )
    assert prepared.eval.tokens(0, prepared.eval_tokens).tolist() == expected_stream(
        prepared, sorted((corpus / "b").iterdir())
    )
    assert (prepared.train_documents, prepared.eval_documents) == (20, 20)
    assert (prepared.vocab_size, prepared.eos_id) == (300, 0)
    assert prepared.digest.startswith("sha256:")


def test_a_second_job_reads_nothing_but_the_files(run: Any, corpus: Path, data_of: DataOf, said: list[str]) -> None:
    first = run(data_of(corpus / "a", held_out=(corpus / "b",)))
    assert said
    said.clear()
    stamps = {path: path.stat().st_mtime_ns for path in first.train.directory.iterdir()}
    assert run(data_of(corpus / "a", held_out=(corpus / "b",), length=64)) == first
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in first.train.directory.iterdir()} == stamps


def test_content_decides(run: Any, corpus: Path, data_of: DataOf, tmp_path: Path) -> None:
    first = run(data_of(corpus))
    shutil.copytree(corpus, tmp_path / "elsewhere")
    assert run(data_of(tmp_path / "elsewhere")).digest == first.digest
    (tmp_path / "elsewhere/a/01.txt").write_text("something else entirely")
    assert run(data_of(tmp_path / "elsewhere")).digest != first.digest
    assert run(data_of(corpus)).digest == first.digest


def test_damage_in_the_cache_is_repaired(run: Any, corpus: Path, data_of: DataOf, said: list[str]) -> None:
    first = run(data_of(corpus))
    stream = first.train.tokens(0, first.train_tokens).tolist()
    shard = first.train.directory / "tokens-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    (first.tokenizer_dir / "tokenizer.json").unlink()
    said.clear()
    again = run(data_of(corpus))
    assert again.train.tokens(0, again.train_tokens).tolist() == stream
    assert again == first
    assert sum("building it again" in line for line in said) == 2


def test_the_descriptor_travels(run: Any, corpus: Path, data_of: DataOf, tmp_path: Path) -> None:
    prepared = run(data_of(corpus, held_out=(corpus / "b",)))
    assert PreparedData.load(prepared.descriptor_uri) == prepared
    assert pickle.loads(pickle.dumps(prepared)) == prepared
    # The cache is found from the descriptor: a volume that is mounted elsewhere on another node will do.
    (tmp_path / "cache").rename(tmp_path / "mounted")
    moved = PreparedData.load(prepared.descriptor_uri.replace("/cache/", "/mounted/"))
    assert moved.digest == prepared.digest
    assert moved.train.sequence(0, 16).shape == (16,)
    with pytest.raises(InfrastructureError) as caught:
        PreparedData.load(prepared.descriptor_uri)
    assert caught.value.reason == "CacheEntryMissing"
    descriptor = Path(moved.descriptor_uri)
    descriptor.write_text("{}")
    with pytest.raises(InfrastructureError) as caught:
        PreparedData.load(moved.descriptor_uri)
    assert caught.value.reason == "CacheEntryDamaged"


@pytest.mark.parametrize("cache", ["memory://slipway-prepared/cache", "memory://"])
def test_a_cache_in_an_object_store(run: Any, corpus: Path, data_of: DataOf, tmp_path: Path, cache: str) -> None:
    try:
        prepared = run(data_of(corpus), cache=cache, scratch=tmp_path / "a")
        there = PreparedData.load(prepared.descriptor_uri, scratch=tmp_path / "b")
        assert there.train.directory.is_relative_to(tmp_path / "b")
        assert there.tokenizer_dir.is_relative_to(tmp_path / "b")
        assert there.digest == prepared.digest
        assert there.train.sequence(3, 16).tolist() == prepared.train.sequence(3, 16).tolist()
    finally:
        memory = fsspec.filesystem("memory")
        for name in memory.ls("/", detail=False):
            memory.rm(name, recursive=True)


def test_all_formats_together(run: Any, fresh: TrainingModel, tmp_path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"first words " * 20))
    (tmp_path / "j.jsonl").write_text("".join(json.dumps({"body": f"second {n} "}) + "\n" for n in range(30)))
    pq.write_table(pa.table({"text": [f"third {n}" for n in range(40)]}), tmp_path / "p.parquet")
    data = Data.model_validate(
        {
            "sources": [
                {"uri": str(tmp_path / "t.txt.gz")},
                {"uri": str(tmp_path / "j.jsonl"), "format": "jsonl", "textField": "body"},
                {"uri": str(tmp_path / "p.parquet"), "format": "parquet"},
            ],
            "sequenceLength": 8,
        }
    )
    prepared = run(data)
    assert prepared.train_documents == 71
    text = load_backend(prepared.tokenizer_dir).decode(prepared.train.tokens(0, prepared.train_tokens).tolist())
    assert text.startswith("first words ")
    assert text.endswith("third 39")
    index = json.loads((prepared.train.directory / "index.json").read_text())
    assert [source["format"] for source in index["meta"]["sources"]] == ["text", "jsonl", "parquet"]
    assert prepared.eval is None


def test_held_out_files_that_are_trained_on_are_pointed_out(
    run: Any, corpus: Path, data_of: DataOf, said: list[str]
) -> None:
    run(data_of(corpus, held_out=(corpus / "b/00.txt",)))
    assert any("00.txt" in line and "also trained on" in line for line in said)


def test_errors_come_through_and_leave_no_entry(run: Any, tmp_path: Path, data_of: DataOf) -> None:
    (tmp_path / "short.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        run(data_of(tmp_path / "short.txt", length=512))
    assert caught.value.reason == "DataTooShort"
    assert "data.sources" in str(caught.value)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/blank.jsonl").write_text("\n\n")
    blank = Data.model_validate({"sources": [{"uri": str(tmp_path / "d"), "format": "jsonl"}]})
    with pytest.raises(UserError) as caught:
        run(blank)
    assert caught.value.reason == "DataEmpty"
    (tmp_path / "d/bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        run(blank)
    assert list((tmp_path / "cache").rglob(".tmp-*")) == []


def _go(data: Data, fresh: TrainingModel, small_bpe: Tokenizer, cache: Path, results: Any) -> None:
    prepared = prepare(data, small_bpe, fresh, Storage(cache), progress=lambda _: None)
    results.put((prepared.digest, prepared.train.tokens(0, 50).tolist()))


def test_two_jobs_at_the_same_time(
    corpus: Path, data_of: DataOf, fresh: TrainingModel, small_bpe: Tokenizer, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (data_of(corpus), fresh, small_bpe, tmp_path / "cache", results)
    processes = [context.Process(target=_go, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(20)
    assert answers[0] == answers[1]
    for kind in ("tokens", "tokenizers"):
        assert len(list((tmp_path / "cache" / kind).iterdir())) == 1


def test_neither_torch_nor_ray_nor_transformers_is_imported(corpus: Path, tmp_path: Path) -> None:
    """The driver pays for what the manifest uses: text and a trained tokenizer need none of these."""
    program = (
        "import sys; from slipway_api.trainjob import Data, Tokenizer;"
        "from slipway_api.references import TrainingModel;"
        "from slipway_jobs.data import prepare; from slipway_jobs.storage import Storage;"
        "prepare(Data.model_validate({'sources': [{'uri': sys.argv[1]}], 'sequenceLength': 8}),"
        " Tokenizer.model_validate({'train': {'vocabSize': 300}}),"
        " TrainingModel.model_validate({'fresh': {'hiddenSize': 16, 'layers': 1, 'heads': 2}}),"
        " Storage(sys.argv[2]), progress=lambda _: None);"
        "print({'torch', 'ray', 'transformers', 'pyarrow', 'fsspec', 'kubernetes'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, corpus, tmp_path / "cache"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "set()", done.stderr
