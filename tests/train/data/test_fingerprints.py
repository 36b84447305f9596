from __future__ import annotations

import hashlib
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slipway_jobs.data.fingerprints import FileToHash, Fingerprints, Identity
from slipway_jobs.storage import Storage

LARGE = b"0123456789" * 100


class Reads:
    """Opens real files and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def open(self, path: Path) -> Any:
        self.count += 1
        return path.open("rb")

    def file(self, path: Path) -> FileToHash:
        return FileToHash(path.name, Identity.of_stat(path.stat()), path, partial(self.open, path))


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def later() -> int:
    return time.time_ns() + 10_000_000_000


def fingerprints(tmp_path: Path, now_ns: Any = later, threshold: int = 100) -> Fingerprints:
    return Fingerprints(Storage(tmp_path / "memo"), now_ns=now_ns, always_read_below=threshold)


def test_a_large_file_is_read_once_while_it_is_untouched(tmp_path: Path, settled: Path) -> None:
    reads = Reads()
    for _ in range(3):
        assert fingerprints(tmp_path).sha256("s", [reads.file(settled)]) == [hashlib.sha256(LARGE).hexdigest()]
    assert reads.count == 1
    assert fingerprints(tmp_path).sha256("another scope", [reads.file(settled)])
    assert reads.count == 2


def test_small_files_are_always_read(tmp_path: Path, settled: Path) -> None:
    reads = Reads()
    for _ in range(3):
        fingerprints(tmp_path, threshold=1 << 20).sha256("s", [reads.file(settled)])
    assert reads.count == 3
    assert not (tmp_path / "memo").exists()


def test_same_size_and_same_modification_time_fool_nobody(tmp_path: Path, settled: Path) -> None:
    reads = Reads()
    before = settled.stat()
    fingerprints(tmp_path).sha256("s", [reads.file(settled)])
    settled.write_bytes(LARGE[::-1])
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprints(tmp_path).sha256("s", [reads.file(settled)]) == [hashlib.sha256(LARGE[::-1]).hexdigest()]


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, settled: Path) -> None:
    reads = Reads()
    for _ in range(2):
        fingerprints(tmp_path, now_ns=time.time_ns).sha256("s", [reads.file(settled)])
    assert reads.count == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 9}', b'{"format": 1, "files": {"large": 3}}', b"[]", b"\xff"]
)
def test_a_damaged_memo_costs_a_read(tmp_path: Path, settled: Path, content: bytes) -> None:
    reads = Reads()
    fingerprints(tmp_path).sha256("s", [reads.file(settled)])
    [memo] = list((tmp_path / "memo").iterdir())
    memo.write_bytes(content)
    assert fingerprints(tmp_path).sha256("s", [reads.file(settled)]) == [hashlib.sha256(LARGE).hexdigest()]
    assert reads.count == 2


def test_objects_are_remembered_by_their_version_only(tmp_path: Path, settled: Path) -> None:
    reads = Reads()

    def of(**info: Any) -> FileToHash:
        return FileToHash("k", Identity.of_object({"size": 3, **info}), None, partial(reads.open, settled))

    for info in ({"ETag": "a"}, {"ETag": "a"}, {"ETag": "b"}, {"ETag": "b"}):
        fingerprints(tmp_path, threshold=1 << 30).sha256("s", [of(**info)])
    assert reads.count == 2
    for _ in range(2):
        fingerprints(tmp_path).sha256("t", [of(created=1.0)])  # says nothing about the content
    assert reads.count == 4


def test_order_is_kept(tmp_path: Path) -> None:
    reads = Reads()
    files = []
    for number in range(30):
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]) * (200 if number % 3 else 10))
        files.append(reads.file(path))
    expected = [hashlib.sha256((tmp_path / f"{number}").read_bytes()).hexdigest() for number in range(30)]
    assert fingerprints(tmp_path).sha256("s", files) == expected
    assert fingerprints(tmp_path).sha256("s", files[::-1]) == expected[::-1]
