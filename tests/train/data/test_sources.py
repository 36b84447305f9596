from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from slipway_jobs.data.sources import Source
from slipway_jobs.errors import InfrastructureError, UserError

SourcesOf = Callable[..., list[Source]]


def names(source: Source) -> list[str]:
    return [file.relative for file in source.files]


def refusal(sources_of: SourcesOf, **item: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        sources_of(item)
    assert str(caught.value).startswith("data.sources[0].")
    return caught.value


def test_a_directory_in_a_fixed_order(sources_of: SourcesOf, tmp_path: Path) -> None:
    for name in ("b/z.txt", "b.txt", "a/x.txt", "B.txt", ".git/config", "a/.hidden", "a/empty.txt"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text("" if "empty" in name else name)
    [source] = sources_of({"uri": str(tmp_path / "d")})
    assert names(source) == ["B.txt", "a/x.txt", "b.txt", "b/z.txt"]
    assert names(sources_of({"uri": f"file://{tmp_path}/d", "include": ["**/*.txt"], "exclude": ["a/**"]})[0]) == [
        "B.txt",
        "b.txt",
        "b/z.txt",
    ]


def test_the_digest_is_of_content_and_names_not_of_the_place(sources_of: SourcesOf, tmp_path: Path) -> None:
    first = tmp_path / "one"
    for name in ("a.txt", "b/c.txt"):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text(name)
    shutil.copytree(first, tmp_path / "two")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/slipway-src/a.txt": b"a.txt", "/slipway-src/b/c.txt": b"b/c.txt"})
    digest = sources_of({"uri": str(first)})[0].digest
    assert sources_of({"uri": str(tmp_path / "two")})[0].digest == digest
    assert sources_of({"uri": "memory://slipway-src"})[0].digest == digest
    memory.rm("/slipway-src", recursive=True)

    assert sources_of({"uri": str(first), "textField": "body"})[0].digest == digest  # text has no field
    assert sources_of({"uri": str(first), "format": "jsonl"})[0].digest != digest
    (tmp_path / "two/a.txt").write_text("a.txT")
    assert sources_of({"uri": str(tmp_path / "two")})[0].digest != digest
    (first / "a.txt").rename(first / "d.txt")
    assert sources_of({"uri": str(first)})[0].digest != digest


def test_links_that_loop_end_and_bring_nothing_twice(sources_of: SourcesOf, tmp_path: Path) -> None:
    root = tmp_path / "d"
    (root / "z").mkdir(parents=True)
    (root / "z/1.txt").write_text("1")
    (root / "a").symlink_to(root / "z")  # sorts first, must not hide z
    (root / "z/up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "2.txt").write_text("2")
    (root / "link").symlink_to(outside)
    (root / "file.txt").symlink_to(outside / "2.txt")
    assert names(sources_of({"uri": str(root)})[0]) == ["file.txt", "link/2.txt", "z/1.txt"]


def test_what_is_left_out_is_said(sources_of: SourcesOf, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "ok.txt").write_text("1")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    sources_of({"uri": str(tmp_path), "exclude": ["*.md"]})
    assert any("gone.txt" in line for line in said)
    assert any("pipe" in line for line in said)
    assert any("'*.md'" in line for line in said)


def test_the_standard_library(sources_of: SourcesOf) -> None:
    [train] = sources_of(
        {"uri": "python://stdlib", "exclude": ["test/**", "idlelib/**", "lib2to3/**", "json/**", "asyncio/**"]}
    )
    [held_out] = sources_of({"uri": "python://stdlib", "include": ["json/**", "asyncio/**"]})
    assert "argparse.py" in names(train)
    assert "email/message.py" in names(train)
    assert {"json/decoder.py", "asyncio/tasks.py"} <= set(names(held_out))
    assert set(names(train)).isdisjoint(names(held_out))
    for source in (train, held_out):
        assert all(name.endswith(".py") for name in names(source))
        assert not any("site-packages" in name or "__pycache__" in name for name in names(source))
    assert {name.split("/")[0] for name in names(held_out)} == {"json", "asyncio"}
    assert train.kind == "stdlib"


@pytest.mark.parametrize(
    ("item", "reason", "tells"),
    [
        ({"uri": "{tmp}/nowhere"}, "DataNotFound", "nowhere does not exist"),
        ({"uri": "memory://slipway-nowhere"}, "DataNotFound", "does not exist"),
        ({"uri": "{tmp}/empty.txt"}, "DataEmpty", "empty.txt is empty"),
        ({"uri": "{tmp}/hollow"}, "DataEmpty", "no file below"),
        ({"uri": "{tmp}/empties"}, "DataEmpty", "is empty"),
        ({"uri": "{tmp}/full", "include": ["*.rst"]}, "DataNoMatch", "*.rst"),
        ({"uri": "{tmp}/full", "exclude": ["**"]}, "DataNoMatch", "exclude ['**']"),
        ({"uri": "{tmp}/full/a.txt", "include": ["*.txt"]}, "DataUriInvalid", "patterns need a directory"),
        ({"uri": "python://site-packages"}, "DataUriInvalid", "python://stdlib"),
        ({"uri": "python://stdlib", "format": "jsonl"}, "DataUriInvalid", "leave format out"),
        ({"uri": "{tmp}/pipe"}, "DataUriInvalid", "neither a file nor a directory"),
        ({"uri": "s3://bucket/x"}, "StorageProtocolMissing", "s3fs"),
    ],
)
def test_one_clear_error(sources_of: SourcesOf, tmp_path: Path, item: dict[str, Any], reason: str, tells: str) -> None:
    for name in ("empty.txt", "empties/1", "empties/2", "full/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" if "full" in name else "")
    (tmp_path / "hollow").mkdir()
    os.mkfifo(tmp_path / "pipe")
    error = refusal(sources_of, **{**item, "uri": item["uri"].replace("{tmp}", str(tmp_path))})
    assert error.reason == reason
    assert tells in str(error)


@pytest.mark.parametrize("where", ["memory://slipway-one.txt", "memory://slipway-folder/one.txt"])
def test_one_object_in_a_store(sources_of: SourcesOf, where: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file(where, b"content")
    try:
        [source] = sources_of({"uri": where})
        assert [file.where for file in source.files] == [where]
        with source.files[0].open() as stream:
            assert stream.read() == b"content"
    finally:
        memory.rm(where)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    assert refusal(sources_of, uri=str(tmp_path / "secret")).reason == "StorageDenied"


def test_a_file_that_changes_under_the_reader_is_noticed(sources_of: SourcesOf, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    [source] = sources_of({"uri": str(tmp_path / "a.txt")})
    source.files[0].check_unchanged()
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(InfrastructureError, match="was changed while"):
        source.files[0].check_unchanged()
