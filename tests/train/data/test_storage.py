from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield Storage(tmp_path / "prefix")
        return
    yield Storage("memory://slipway-test/prefix")
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/slipway-test", recursive=True)


def test_round_trip_list_find_delete(storage: Storage) -> None:
    assert not storage.exists("a/one")
    assert list(storage.list("a")) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/one")
    storage.write_bytes_atomic("a/one", b"1")
    storage.write_bytes_atomic("a/one", b"11")
    with storage.open("a/b/two", "wb") as stream:
        stream.write(b"222")
    assert storage.read_bytes("a/one") == b"11"
    assert list(storage.list("a")) == ["b", "one"]
    assert {name: info["size"] for name, info in storage.find().items()} == {"a/b/two": 3, "a/one": 2}
    assert storage.join("a", "b").read_bytes("two") == b"222"
    assert (storage.info("a")["type"], storage.info("a/one")["type"]) == ("directory", "file")
    storage.delete("a/b")
    storage.delete("a/b")
    assert list(storage.find()) == ["a/one"]


def test_directories_travel_both_ways(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, content in {"index.json": "{}", "x/1": "one", "x/y/2": "two"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    storage.upload(source, "deep/copy", commit="index.json")
    target = tmp_path / "target"
    storage.download("deep/copy", target)
    assert (target / "x/y/2").read_text() == "two"
    assert sorted(p.name for p in target.rglob("*") if p.is_file()) == ["1", "2", "index.json"]
    storage.download("deep/copy", tmp_path / "part", ["x/1"])
    assert [p.name for p in (tmp_path / "part").rglob("*") if p.is_file()] == ["1"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a/\x00b", ".."])
def test_no_path_leads_out(storage: Storage, path: str) -> None:
    for use in (storage.join, storage.read_bytes, storage.exists, storage.delete, storage.list):
        with pytest.raises(UserError) as caught:
            use(path)
        assert caught.value.reason == "PathEscapes"
    with pytest.raises(UserError):
        storage.write_bytes_atomic(path, b"")


def test_survives_pickling(storage: Storage) -> None:
    storage.write_bytes_atomic("x", b"1")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("x") == b"1"


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Storage(f"file://{tmp_path}/x").local_path == tmp_path / "x"
    assert Storage(f"file://localhost{tmp_path}").local_path == tmp_path
    monkeypatch.chdir(tmp_path)
    assert Storage("rel").local_path == tmp_path / "rel"
    assert Storage("memory://x").local_path is None
    with pytest.raises(UserError, match="names a host"):
        Storage("file://server/share")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    contents = [bytes([number]) * 200_000 for number in range(4)]
    storage.write_bytes_atomic("f", contents[0])
    stop = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not stop.is_set():
            content = storage.read_bytes("f")
            if content not in contents:
                torn.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        storage.write_bytes_atomic("f", contents[number % 4])
    stop.set()
    reader.join(10)
    assert torn == []
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError) as missing:
        Storage("s3://bucket/x", field="data.sources[2].uri").exists("y")
    assert missing.value.reason == "StorageProtocolMissing"
    assert "data.sources[2].uri" in str(missing.value)
    assert "s3fs" in str(missing.value)
    with pytest.raises(UserError, match="Protocol not known") as unknown:
        Storage("nosuch://x").list()
    assert unknown.value.reason == "StorageProtocolUnknown"


def test_the_disk_says_no(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError) as caught:
        Storage(tmp_path / "file").write_bytes_atomic("below/x", b"")
    assert caught.value.reason == "StorageFailed"
    with pytest.raises(FileNotFoundError):
        Storage(tmp_path / "file").read_bytes("below/x")
    with pytest.raises(UserError, match="refusing to delete"):
        Storage("/").delete("tmp")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_bytes(b"1" * 100_000)
    target = tmp_path / "target"
    target.mkdir()
    (target / "x").symlink_to("/dev/full")
    with pytest.raises(InfrastructureError) as caught:
        Storage(target).upload(source, "")
    assert caught.value.reason == "StorageFull"


def test_the_root_of_a_store_is_a_prefix_too() -> None:
    Storage("memory://").write_bytes_atomic("slipway-root.txt", b"1")
    assert Storage("memory://").join("slipway-root.txt").uri == "memory://slipway-root.txt"
    assert Storage("memory://slipway-root.txt").info()["size"] == 1
    Storage("memory://").delete("slipway-root.txt")
    assert not Storage("memory://slipway-root.txt").exists()
