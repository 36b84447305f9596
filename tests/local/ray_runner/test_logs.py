"""The copy of a job's output: complete, bounded, and never doubled, whenever the copier dies."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_local.ray_runner.logs import JobLog


def copy_of(target: Path) -> bytes:
    old = target.with_name(f"{target.name}.1")
    return (old.read_bytes() if old.exists() else b"") + target.read_bytes()


def test_follows_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    source, target = tmp_path / "ray.log", tmp_path / "logs" / "job.log"
    first = JobLog(target, source, owner="u", run="r1")
    assert first.pump() == 0  # Ray has not made it yet
    source.write_bytes(b"one\ntw")
    assert first.pump() == 6
    with source.open("ab") as more:
        more.write(b"o\nthree\n")
    second = JobLog(target, source, owner="u", run="r1")  # the first one was killed
    second.pump()
    second.pump()
    assert target.read_bytes() == b"one\ntwo\nthree\n"
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_next_run_of_a_rayjob_goes_on_and_another_rayjob_begins_anew(tmp_path: Path) -> None:
    target = tmp_path / "job.log"
    for run, text in (("r1", b"first\n"), ("r2", b"second\n")):
        source = tmp_path / run
        source.write_bytes(text)
        JobLog(target, source, owner="u", run=run).pump()
        JobLog(target, source, owner="u", run=run).pump()
    assert target.read_bytes() == b"first\nsecond\n"
    fresh = tmp_path / "r3"
    fresh.write_bytes(b"third\n")
    JobLog(target, fresh, owner="u2", run="r3").pump()
    assert target.read_bytes() == b"third\n"


def test_bounded_and_the_end_is_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "ray.log", tmp_path / "job.log"
    lines = b"".join(b"%06d\n" % number for number in range(10_000))
    source.write_bytes(lines)
    JobLog(target, source, owner="u", run="r", limit=1000).pump()
    kept = copy_of(target)
    assert lines.endswith(kept)
    assert 500 <= len(kept) <= 1000


@settings(max_examples=60)
@given(st.lists(st.tuples(st.binary(min_size=0, max_size=40), st.booleans()), max_size=20), st.integers(8, 60))
def test_no_byte_is_lost_or_doubled(tmp_path_factory: object, steps: list[tuple[bytes, bool]], limit: int) -> None:
    folder = tmp_path_factory.mktemp("log")  # type: ignore[attr-defined]
    source, target = folder / "ray.log", folder / "job.log"
    log = JobLog(target, source, owner="u", run="r", limit=limit)
    everything = b""
    for chunk, restart in steps:
        with source.open("ab") as file:
            file.write(chunk)
        everything += chunk
        if restart:
            log = JobLog(target, source, owner="u", run="r", limit=limit)
        log.pump()
    kept = copy_of(target)
    assert everything.endswith(kept)
    assert len(kept) >= min(len(everything), limit // 2)


def test_killed_between_the_renames_of_a_rotation(tmp_path: Path) -> None:
    source, target = tmp_path / "ray.log", tmp_path / "job.log"
    source.write_bytes(b"x" * 90)
    log = JobLog(target, source, owner="u", run="r", limit=200)
    log.pump()
    log._rotate()
    target.rename(tmp_path / "job.log.new")  # the second rename did not happen
    with source.open("ab") as more:
        more.write(b"y" * 5)
    JobLog(target, source, owner="u", run="r", limit=200).pump()
    assert copy_of(target) == b"x" * 90 + b"y" * 5
