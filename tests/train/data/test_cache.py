from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from slipway_jobs.data.cache import INDEX, Cache, Entry
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.storage import Storage

DIGEST = "ab" * 32
CONTENT = b"0123456789" * 500


class Builder:
    """Builds a two-file entry and counts how often it was asked to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, directory: Path) -> dict[str, Any]:
        self.count += 1
        (directory / "tokens.bin").write_bytes(CONTENT)
        (directory / "sub").mkdir()
        (directory / "sub/x").write_bytes(b"x")
        return {"tokens": 5000}


def cache_at(root: Path | str, said: list[str], scratch: Path | None = None) -> Cache:
    return Cache(Storage(root), scratch=scratch, progress=said.append)


def assert_good(entry: Entry) -> None:
    assert (entry.path / "tokens.bin").read_bytes() == CONTENT
    assert (entry.path / "sub/x").read_bytes() == b"x"
    assert entry.meta == {"tokens": 5000}


def test_built_once_then_found(tmp_path: Path, said: list[str]) -> None:
    build = Builder()
    for _ in range(3):
        entry = cache_at(tmp_path, said).get_or_build("tokens", DIGEST, build)
        assert_good(entry)
    assert build.count == 1
    assert entry.path == tmp_path / "tokens" / DIGEST
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [DIGEST]
    assert_good(cache_at(tmp_path, said).open("tokens", DIGEST))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_meta(path: Path) -> None:
    index = json.loads(path.read_text())
    index["meta"]["tokens"] = 4999
    path.write_text(json.dumps(index))


def point_outside(path: Path) -> None:
    index = json.loads(path.read_text())
    index["files"][0]["name"] = "../../../etc/passwd"
    path.write_text(json.dumps(index))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": lambda entry: flip(entry / "tokens.bin"),
    "cut short": lambda entry: (entry / "tokens.bin").write_bytes(CONTENT[:-1]),
    "file missing": lambda entry: (entry / "sub/x").unlink(),
    "never committed": lambda entry: (entry / INDEX).unlink(),
    "half an index": lambda entry: (entry / INDEX).write_text('{"format": 1, '),
    "index of another": lambda entry: (entry / INDEX).write_text('{"format": 1, "kind": "tokens", "digest": "x"}'),
    "index is a list": lambda entry: (entry / INDEX).write_text("[]"),
    "index edited": lambda entry: edit_meta(entry / INDEX),
    "index points outside": lambda entry: point_outside(entry / INDEX),
    "index is noise": lambda entry: (entry / INDEX).write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found_and_repaired(tmp_path: Path, said: list[str], damage: Callable[[Path], None]) -> None:
    build = Builder()
    entry = cache_at(tmp_path, said).get_or_build("tokens", DIGEST, build)
    damage(entry.path)
    assert_good(cache_at(tmp_path, said).get_or_build("tokens", DIGEST, build))
    assert build.count == 2
    assert len(said) == 1
    assert "building it again" in said[0]
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [DIGEST]


def test_a_rank_that_only_opens_says_what_is_wrong(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(InfrastructureError) as missing:
        cache_at(tmp_path, said).open("tokens", DIGEST)
    assert missing.value.reason == "CacheEntryMissing"
    entry = cache_at(tmp_path, said).get_or_build("tokens", DIGEST, Builder())
    (entry.path / "tokens.bin").write_bytes(b"")
    with pytest.raises(InfrastructureError, match="0 bytes instead of 5000") as damaged:
        cache_at(tmp_path, said).open("tokens", DIGEST)
    assert damaged.value.reason == "CacheEntryDamaged"
    with pytest.raises(ValueError, match="SHA-256"):
        cache_at(tmp_path, said).open("tokens", "../../etc")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, said: list[str]) -> None:
    def fail(directory: Path) -> dict[str, Any]:
        (directory / "half").write_bytes(b"1")
        raise UserError("DataEmpty", "nothing")

    def interrupted(directory: Path) -> dict[str, Any]:
        (directory / "half").write_bytes(b"1")
        raise KeyboardInterrupt

    with pytest.raises(UserError):
        cache_at(tmp_path, said).get_or_build("tokens", DIGEST, fail)
    with pytest.raises(KeyboardInterrupt):
        cache_at(tmp_path, said).get_or_build("tokens", DIGEST, interrupted)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, said: list[str]) -> None:
    def fill(directory: Path) -> dict[str, Any]:
        with Path("/dev/full").open("wb") as stream:
            stream.write(CONTENT)
        return {}

    with pytest.raises(InfrastructureError) as caught:
        cache_at(tmp_path, said).get_or_build("tokens", DIGEST, fill)
    assert caught.value.reason == "StorageFull"
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == []


def test_what_a_killed_job_left_is_swept_after_a_day(tmp_path: Path, said: list[str]) -> None:
    for name, age in {".tmp-old": 90_000, ".tmp-live": 100}.items():
        (tmp_path / "tokens" / name).mkdir(parents=True)
        (tmp_path / "tokens" / name / "x").write_text("")
        for path in (tmp_path / "tokens" / name / "x", tmp_path / "tokens" / name):
            os.utime(path, (time.time() - age, time.time() - age))
    cache_at(tmp_path, said).get_or_build("tokens", DIGEST, Builder())
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [".tmp-live", DIGEST]


def _race(root: Path, barrier: Any, results: Any) -> None:
    def build(directory: Path) -> dict[str, Any]:
        barrier.wait(20)  # every process is building before the first one is done
        return Builder()(directory)

    entry = cache_at(root, []).get_or_build("tokens", DIGEST, build)
    results.put((str(entry.path), (entry.path / "tokens.bin").read_bytes() == CONTENT, entry.meta))


def test_builders_at_the_same_time_end_with_one_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    assert answers == [(str(tmp_path / "tokens" / DIGEST), True, {"tokens": 5000})] * 4
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [DIGEST]


def test_a_builder_that_was_killed_costs_nothing(tmp_path: Path, said: list[str]) -> None:
    def killed() -> None:
        def build(directory: Path) -> dict[str, Any]:
            (directory / "tokens.bin").write_bytes(CONTENT[:100])
            os.kill(os.getpid(), 9)
            return {}

        cache_at(tmp_path, []).get_or_build("tokens", DIGEST, build)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(20)
    assert process.exitcode == -9
    assert_good(cache_at(tmp_path, said).get_or_build("tokens", DIGEST, Builder()))


class TestRemote:
    """memory:// is the bucket; each scratch directory is a machine."""

    @pytest.fixture(autouse=True)
    def bucket(self) -> Any:
        yield
        fsspec.filesystem("memory").rm("/slipway-cache", recursive=True)

    def cache(self, tmp_path: Path, machine: str, said: list[str]) -> Cache:
        return cache_at("memory://slipway-cache/ns", said, tmp_path / machine)

    def test_one_machine_builds_the_others_download(self, tmp_path: Path, said: list[str]) -> None:
        build = Builder()
        for machine in ("a", "b", "a"):
            assert_good(self.cache(tmp_path, machine, said).get_or_build("tokens", DIGEST, build))
        assert build.count == 1
        entry = self.cache(tmp_path, "c", said).open("tokens", DIGEST)
        assert_good(entry)
        assert entry.path.is_relative_to(tmp_path / "c")
        assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
        assert Storage("memory://slipway-cache/ns/tokens").join(DIGEST).exists(INDEX)

    def test_without_the_commit_marker_nothing_is_there(self, tmp_path: Path, said: list[str]) -> None:
        build = Builder()
        self.cache(tmp_path, "a", said).get_or_build("tokens", DIGEST, build)
        Storage("memory://slipway-cache/ns/tokens").join(DIGEST).delete(INDEX)
        with pytest.raises(InfrastructureError) as caught:
            self.cache(tmp_path, "b", said).open("tokens", DIGEST)
        assert caught.value.reason == "CacheEntryMissing"
        assert_good(self.cache(tmp_path, "b", said).get_or_build("tokens", DIGEST, build))
        assert build.count == 2

    def test_a_store_that_lost_the_entry_gets_it_back(self, tmp_path: Path, said: list[str]) -> None:
        build = Builder()
        self.cache(tmp_path, "a", said).get_or_build("tokens", DIGEST, build)
        Storage("memory://slipway-cache/ns/tokens").delete(DIGEST)
        self.cache(tmp_path, "a", said).get_or_build("tokens", DIGEST, build)
        assert build.count == 1
        assert_good(self.cache(tmp_path, "b", said).open("tokens", DIGEST))

    def test_damage_in_the_store_is_repaired(self, tmp_path: Path, said: list[str]) -> None:
        build = Builder()
        self.cache(tmp_path, "a", said).get_or_build("tokens", DIGEST, build)
        store = Storage("memory://slipway-cache/ns/tokens").join(DIGEST)
        store.write_bytes_atomic("tokens.bin", CONTENT[::-1])
        with pytest.raises(InfrastructureError) as caught:
            self.cache(tmp_path, "b", said).open("tokens", DIGEST)
        assert caught.value.reason == "CacheEntryDamaged"
        assert_good(self.cache(tmp_path, "b", said).get_or_build("tokens", DIGEST, build))
        assert store.read_bytes("tokens.bin") == CONTENT
        assert build.count == 2

    def test_somebody_elses_scratch_is_refused(self, tmp_path: Path, said: list[str]) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "planted").symlink_to(tmp_path / "real")
        with pytest.raises(InfrastructureError) as caught:
            self.cache(tmp_path, "planted", said)
        assert caught.value.reason == "ScratchUnsafe"
        Storage("memory://slipway-cache").write_bytes_atomic("x", b"")  # so that the fixture has something to remove
