from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_jobs.data import shards as module
from slipway_jobs.data.documents import Piece
from slipway_jobs.data.shards import TokenDataset, shard_name, write_shards
from slipway_jobs.errors import UserError


class Bytes:
    """An encoder of one id per character, plus an offset; the shape of the tokenizers library's."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
        assert not add_special_tokens
        return [type("Encoding", (), {"ids": [ord(c) + self.offset for c in text]})() for text in texts]


def dataset_at(directory: Path, meta: dict[str, Any]) -> TokenDataset:
    return TokenDataset(
        directory, meta["dtype"], tuple(meta["shardTokens"]), meta["documents"], meta["textBytes"], "d", 0
    )


def written(
    directory: Path, pieces: list[Piece], *, shard: int = 1 << 20, vocab: int = 300, offset: int = 0
) -> TokenDataset:
    said: list[str] = []
    meta = write_shards(
        pieces, Bytes(offset), eos_id=9, vocab_size=vocab, directory=directory, progress=said.append, shard_tokens=shard
    )
    return dataset_at(directory, meta)


def stream(pieces: list[Piece], offset: int = 0) -> list[int]:
    out: list[int] = []
    for piece in pieces:
        out += [ord(c) + offset for c in piece.text]
        if piece.ends:
            out.append(9)
    return out


@pytest.mark.parametrize("shard", [1, 7, 64, 1000, 1 << 20])
def test_the_stream_is_the_documents_each_with_its_end(tmp_path: Path, shard: int) -> None:
    pieces = [Piece("abc" * (number % 5), number % 3 != 1) for number in range(60)]
    if shard == 1:
        pieces = pieces[:10]
    data = written(tmp_path, pieces, shard=shard)
    expected = stream(pieces)
    assert data.tokens(0, len(data)).tolist() == expected
    assert data.documents == sum(piece.ends for piece in pieces)
    assert data.text_bytes == sum(len(piece.text) for piece in pieces)
    assert all(size == shard for size in data.shard_tokens[:-1])
    assert sum((tmp_path / shard_name(n)).stat().st_size for n in range(len(data.shard_tokens))) == 2 * len(expected)


def test_many_batches_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 50)
    monkeypatch.setattr(module, "_BATCH_PIECES", 7)
    pieces = [Piece(f"document {number} " * (number % 4), True) for number in range(500)]
    assert written(tmp_path, pieces, shard=333).tokens(0, len(stream(pieces))).tolist() == stream(pieces)


def test_ids_above_sixteen_bits(tmp_path: Path) -> None:
    data = written(tmp_path, [Piece("xyz", True)], vocab=70_000, offset=65_500)
    assert data.dtype == "uint32"
    assert data.tokens(0, 4).tolist() == [ord("x") + 65_500, ord("y") + 65_500, ord("z") + 65_500, 9]
    assert written(tmp_path, [Piece("x", True)], vocab=65_536).dtype == "uint16"


def test_an_error_in_the_middle_of_reading_comes_through(tmp_path: Path) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece("fine", True)
        raise UserError("DataMalformed", "data.sources[0].format: x.jsonl:7")

    with pytest.raises(UserError, match=r"x\.jsonl:7"):
        write_shards(pieces(), Bytes(), eos_id=9, vocab_size=300, directory=tmp_path, progress=print)


@given(st.integers(1, 40), st.integers(1, 200), st.data())
def test_any_range_over_any_shards(
    tmp_path_factory: pytest.TempPathFactory, shard: int, total: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    ids = np.arange(total, dtype="<u2")
    sizes = [min(shard, total - start) for start in range(0, total, shard)]
    for number, start in enumerate(range(0, total, shard)):
        ids[start : start + shard].tofile(directory / shard_name(number))
    dataset = TokenDataset(directory, "uint16", tuple(sizes), 1, 1, "d", 0)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    got = dataset.tokens(start, stop)
    assert got.dtype == np.int64
    assert got.tolist() == list(range(start, stop))


def test_sequences_are_consecutive_blocks(tmp_path: Path) -> None:
    data = written(tmp_path, [Piece("a" * 25, True)], shard=6)
    assert data.n_sequences(8) == 3
    assert data.sequence(1, 8).tolist() == data.tokens(8, 16).tolist()
    assert data.sequences([2, 0], 8).tolist() == [data.tokens(16, 24).tolist(), data.tokens(0, 8).tolist()]
    assert data.sequences([], 8).shape == (0, 8)
    with pytest.raises(IndexError):
        data.sequence(3, 8)
    with pytest.raises(UserError, match="26 tokens together, less than one sequence") as caught:
        data.n_sequences(27)
    assert caught.value.reason == "DataTooShort"
    assert "at most 26" in str(caught.value)


def test_a_pickled_data_set_is_small_and_works(tmp_path: Path) -> None:
    data = written(tmp_path, [Piece("a" * 100_000, True)])
    before = data.tokens(0, 10)
    content = pickle.dumps(data)
    assert len(content) < 2000
    back = pickle.loads(content)
    assert back == data
    assert back.tokens(0, 10).tolist() == before.tolist()


def test_what_is_read_may_be_changed(tmp_path: Path) -> None:
    data = written(tmp_path, [Piece("aaaa", True)])
    data.tokens(0, 4)[:] = 7
    assert data.tokens(0, 4).tolist() == [97] * 4
