from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_jobs.data import documents as module
from slipway_jobs.data.documents import documents
from slipway_jobs.data.sources import Source
from slipway_jobs.data.tokenizer import load_backend, train_bpe
from slipway_jobs.errors import InfrastructureError, UserError

SourcesOf = Callable[..., list[Source]]


def texts(sources: list[Source]) -> list[str]:
    out, held = [], ""
    for piece in documents(sources):
        held += piece.text
        if piece.ends:
            out.append(held)
            held = ""
    assert held == ""
    return out


def refusal(sources: list[Source]) -> UserError:
    with pytest.raises(UserError) as caught:
        list(documents(sources))
    assert str(caught.value).startswith("data.sources[0].")
    return caught.value


def test_text(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("\ufeffé\r\nx".encode())
    (tmp_path / "2.txt").write_bytes(b"ab\xff\xfecd")
    (tmp_path / "3.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "4.txt.gz").write_bytes(gzip.compress(b""))
    assert texts(sources_of({"uri": str(tmp_path)})) == ["é\r\nx", "ab\ufffd\ufffdcd", "packed"]


def test_binary_is_refused_and_named(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\x00\x00")
    error = refusal(sources_of({"uri": str(tmp_path)}))
    assert error.reason == "DataBinary"
    assert "logo.png" in str(error)
    (tmp_path / "logo.png").write_text("text", encoding="utf-16")
    assert refusal(sources_of({"uri": str(tmp_path)})).reason == "DataBinary"


def test_a_huge_text_comes_in_pieces_and_stays_one_document(
    sources_of: SourcesOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_BELOW", 1000)
    monkeypatch.setattr(module, "_READ", 300)
    content = "".join(f"líne {number}\n\n    indented\n" for number in range(300))
    (tmp_path / "big.txt").write_text(content)
    pieces = list(documents(sources_of({"uri": str(tmp_path)})))
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces) == content
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece.text) for piece in pieces) <= 1400
    for before, after in itertools.pairwise(pieces):
        assert before.text.endswith("\n")
        assert not after.text[0].isspace()


@given(st.text(alphabet="a \n", min_size=1, max_size=60))
def test_a_cut_is_inside_no_run_of_white_space(text: str) -> None:
    cut = module._cut(text)
    assert 0 < cut <= len(text)
    if cut < len(text):
        assert (text[cut - 1] == "\n" and text[cut - 2] == "a" and text[cut] == "a") or (
            text[cut] == " " and text[cut - 1] == "a" and text[cut + 1] == "a"
        )


def test_pieces_give_the_tokens_of_the_whole(
    sources_of: SourcesOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = Path(module.__file__).read_text() * 4
    (tmp_path / "code.py").write_text(code)
    train_bpe([code], 500, tmp_path / "tokenizer")
    backend = load_backend(tmp_path / "tokenizer")
    monkeypatch.setattr(module, "WHOLE_BELOW", 3000)
    monkeypatch.setattr(module, "_READ", 1000)
    pieces = list(documents(sources_of({"uri": str(tmp_path / "code.py")})))
    assert len(pieces) > 10
    assert [i for piece in pieces for i in backend.encode(piece.text).ids] == backend.encode(code).ids


def test_jsonl(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "one\\n", "id": 1}\n\n  \n{"text": "zwei"}')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    assert texts(sources_of({"uri": str(tmp_path), "format": "jsonl"})) == ["one\n", "zwei", "three"]


@pytest.mark.parametrize(
    ("line", "reason", "tells"),
    [
        ('{"body": "x", "id": 1}', "DataFieldMissing", "no field 'text' (its fields: 'body', 'id')"),
        ('{"text": ""}', "DataFieldMissing", "empty field 'text'"),
        ('{"text": null}', "DataFieldMissing", "null in field 'text'"),
        ('{"text": 5}', "DataFieldMissing", "number in field 'text'"),
        ('{"text": ["a"]}', "DataFieldMissing", "array in field 'text'"),
        ("[1]", "DataMalformed", "JSON array"),
        ('{"text": "x"', "DataMalformed", "not JSON"),
        ('{"text": "\\ud800"}', "DataMalformed", "not JSON"),
    ],
)
def test_jsonl_errors_name_file_and_line(
    sources_of: SourcesOf, tmp_path: Path, line: str, reason: str, tells: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    error = refusal(sources_of({"uri": str(tmp_path), "format": "jsonl"}))
    assert error.reason == reason
    assert f"{tmp_path}/a.jsonl:3" in str(error)
    assert tells in str(error)


def test_jsonl_that_is_not_utf8(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    assert "a.jsonl:1: not JSON" in str(refusal(sources_of({"uri": str(tmp_path / "a.jsonl"), "format": "jsonl"})))


def test_a_line_without_end(sources_of: SourcesOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 2000 + '"}')
    assert "longer than" in str(refusal(sources_of({"uri": str(tmp_path), "format": "jsonl"})))


def table(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=100)


def test_parquet(sources_of: SourcesOf, tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(1000)]
    table(tmp_path / "a.parquet", {"id": list(range(1000)), "body": rows})
    table(tmp_path / "b.parquet", {"body": pa.array(["x", "x", "y"]).dictionary_encode()})
    found = texts(sources_of({"uri": str(tmp_path), "format": "parquet", "textField": "body"}))
    assert found == [*rows, "x", "x", "y"]


def test_parquet_errors(sources_of: SourcesOf, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    item = {"uri": str(path), "format": "parquet"}
    table(path, {"id": [1], "body": ["x"]})
    missing = refusal(sources_of(item))
    assert missing.reason == "DataFieldMissing"
    assert "no column 'text'; its columns: 'id', 'body'" in str(missing)
    table(path, {"text": [1]})
    assert "int64, not strings" in str(refusal(sources_of(item)))
    table(path, {"text": ["a", None]})
    assert "a.parquet row 2" in str(refusal(sources_of(item)))
    path.write_text("no parquet at all")
    assert refusal(sources_of(item)).reason == "DataMalformed"
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["hello"] * 5000}), buffer)
    path.write_bytes(buffer.getvalue()[:-10])
    assert refusal(sources_of(item)).reason == "DataMalformed"


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"plain text", lambda b: b[:30] + b"???" + b[33:]]
)
def test_damaged_gzip(sources_of: SourcesOf, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    packed = gzip.compress(b"".join(str(number).encode() for number in range(5000)))
    (tmp_path / "a.txt.gz").write_bytes(damage(packed))
    error = refusal(sources_of({"uri": str(tmp_path)}))
    assert error.reason == "DataUnreadable"
    assert "a.txt.gz" in str(error)


def test_a_file_that_disappears_or_grows_is_worth_another_try(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    sources = sources_of({"uri": str(tmp_path)})
    (tmp_path / "a.txt").write_text("one and more")
    with pytest.raises(InfrastructureError, match="was changed"):
        list(documents(sources))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InfrastructureError, match="disappeared"):
        list(documents(sources))
