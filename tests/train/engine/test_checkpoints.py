"""A checkpoint is believed only when every byte is what its manifest says, and nothing that comes after can hurt it."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway_api.run import RunSpec
from slipway_api.trainjob import Strategy, Training
from slipway_jobs.errors import InfrastructureError
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import CheckpointName, Manifest, TrainState
from slipway_jobs.train.checkpoint.saver import CheckpointSaver
from slipway_jobs.train.checkpoint.store import CheckpointStore
from slipway_jobs.train.model import build
from slipway_jobs.train.ranks import RankContext, Ranks
from slipway_jobs.train.strategies import Strategy as TrainingStrategy
from slipway_jobs.train.strategies import StrategyConfig, make_strategy

MakeRun = Callable[..., RunSpec]


def small_strategy(context: RankContext, run: RunSpec, name: str = "ddp") -> TrainingStrategy:
    training = Training(steps=5, precision="fp32")
    strategy = make_strategy(StrategyConfig(Strategy.model_validate({name: {}}), training, context, 1))
    strategy.prepare(build(run.model, vocab_size=300, seed=0, eos_id=0, pad_id=0))
    return strategy


def train_a_step(strategy: TrainingStrategy, seed: int) -> None:
    tokens = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(seed))
    strategy.zero_grad()
    with strategy.micro_batch(last=True):
        strategy.backward(strategy.loss(tokens, tokens) / 62, last=True)
    strategy.step(1e-2, strategy.gradient_norm())


def weights(strategy: TrainingStrategy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in strategy.full_state().items()}


def store_of(
    root: str | Path, ranks: Ranks, *, attempt: int = 1, keep_last: int = 3, uid: str = "uid-1"
) -> CheckpointStore:
    return CheckpointStore(Storage(root), uid=uid, attempt=attempt, keep_last=keep_last, ranks=ranks)


def saver_of(store: CheckpointStore, ranks: Ranks, strategy: str, *, every_steps: int = 2) -> CheckpointSaver:
    return CheckpointSaver(store, ranks, uid="uid-1", strategy=strategy, every_steps=every_steps, step=0)


@pytest.fixture
def saved(tmp_path: Path, make_run: MakeRun, alone: RankContext, ranks_alone: Ranks) -> Path:
    """A storage prefix with the checkpoints of steps 1, 2 and 3."""
    strategy = small_strategy(alone, make_run())
    saver = saver_of(store_of(tmp_path, ranks_alone), ranks_alone, "ddp")
    for step in (1, 2, 3):
        train_a_step(strategy, step)
        saver.start(strategy.snapshot(), TrainState(step=step, initial_eval_loss=5.5))
    saver.drain()
    assert [(end.step, end.failure) for end in saver.finished()] == [(1, None), (2, None), (3, None)]
    return tmp_path / "checkpoints"


def flip_a_byte(newest: Path, older: Path) -> str:
    path = newest / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "__0_0.distcp does not have the digest"


def truncate(newest: Path, older: Path) -> str:
    path = newest / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-10])
    return "__0_0.distcp has"


def remove_a_file(newest: Path, older: Path) -> str:
    (newest / ".metadata").unlink()
    return ".metadata is missing"


def remove_the_marker(newest: Path, older: Path) -> str:
    (newest / "COMMITTED").unlink()
    return "COMMITTED is missing"


def remove_the_manifest(newest: Path, older: Path) -> str:
    (newest / "manifest.json").unlink()
    return "manifest.json is missing"


def swap_shards(newest: Path, older: Path) -> str:
    shutil.copyfile(older / "__0_0.distcp", newest / "__0_0.distcp")
    return "__0_0.distcp does not have the digest"


def old_manifest_on_new_files(newest: Path, older: Path) -> str:
    for name in ("manifest.json", "COMMITTED"):
        shutil.copyfile(older / name, newest / name)
    return "does not have the digest"


def edit_the_manifest(newest: Path, older: Path) -> str:
    path = newest / "manifest.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))
    return "manifest.json does not have the digest that COMMITTED says"


def another_jobs_checkpoint(newest: Path, older: Path) -> str:
    manifest = json.loads((newest / "manifest.json").read_text())
    data = json.dumps({**manifest, "uid": "uid-2"}).encode()
    (newest / "manifest.json").write_bytes(data)
    (newest / "COMMITTED").write_text(hashlib.sha256(data).hexdigest())
    return "belongs to another job"


def not_json(newest: Path, older: Path) -> str:
    (newest / "manifest.json").write_bytes(b"[1]")
    (newest / "COMMITTED").write_text(hashlib.sha256(b"[1]").hexdigest())
    return "manifest.json: malformed"


DAMAGES = [
    flip_a_byte,
    truncate,
    remove_a_file,
    remove_the_marker,
    remove_the_manifest,
    swap_shards,
    old_manifest_on_new_files,
    edit_the_manifest,
    another_jobs_checkpoint,
    not_json,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over_and_named(damage: Any, saved: Path, ranks_alone: Ranks) -> None:
    said = damage(saved / "step-00000003-a1", saved / "step-00000002-a1")
    found, skipped = store_of(saved.parent, ranks_alone, attempt=2).newest_valid("ddp", portable=True)
    assert found is not None and found.name == CheckpointName(2, 1)
    assert found.manifest.state == TrainState(step=2, initial_eval_loss=5.5)
    assert len(skipped) == 1 and skipped[0].uri == str(saved / "step-00000003-a1")
    assert said in skipped[0].reason


def test_nothing_valid_means_starting_anew(saved: Path, ranks_alone: Ranks) -> None:
    for name in saved.iterdir():
        (name / "__0_0.distcp").write_bytes(b"")
    found, skipped = store_of(saved.parent, ranks_alone).newest_valid("ddp", portable=True)
    assert found is None and [s.uri[-2:] for s in skipped] == ["a1"] * 3
    assert [s.uri.split("-")[-2] for s in skipped] == ["00000003", "00000002", "00000001"]


def test_another_strategy_or_world_size_is_not_ours(saved: Path, ranks_alone: Ranks) -> None:
    found, skipped = store_of(saved.parent, ranks_alone).newest_valid("fsdp", portable=True)
    assert found is None and "strategy ddp wrote it" in skipped[0].reason


def test_storage_that_cannot_be_read_is_no_damage(saved: Path, ranks_alone: Ranks) -> None:
    target = saved / "step-00000003-a1" / "__0_0.distcp"
    target.unlink()
    target.mkdir()  # opening it fails with EISDIR, as a broken disk fails with EIO
    with pytest.raises(InfrastructureError):
        store_of(saved.parent, ranks_alone).newest_valid("ddp", portable=True)


def test_restore_brings_back_what_was_saved(
    saved: Path, alone: RankContext, ranks_alone: Ranks, make_run: MakeRun
) -> None:
    twin = small_strategy(alone, make_run())
    for step in (1, 2, 3):
        train_a_step(twin, step)
    for name in ("ddp", "fsdp"):  # one format: what ddp wrote, fsdp can read
        strategy = small_strategy(alone, make_run(), name)
        found, _ = store_of(saved.parent, ranks_alone).newest_valid("ddp", portable=True)
        assert found is not None
        strategy.restore(found, ranks_alone.storage)
        train_a_step(strategy, 9)  # the optimizer's state came back too
        expected = small_strategy(alone, make_run())
        expected.restore(found, ranks_alone.storage)
        train_a_step(expected, 9)
        for key, tensor in weights(expected).items():
            torch.testing.assert_close(weights(strategy)[key], tensor, atol=1e-6, rtol=1e-5)
    train_a_step(twin, 9)
    for key, tensor in weights(twin).items():
        assert torch.equal(weights(expected)[key], tensor)


class SlowSnapshot:
    """Is being written until the test says so."""

    background = True

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def write(self, directory: Path, group: Any) -> None:
        assert self.may_end.wait(30)
        (directory / "file").write_bytes(b"content")


@pytest.mark.parametrize(("every", "begun_at"), [(1, [1, 2, 3]), (4, [2, 4, 6]), (5, [3, 6, 9]), (100, [50, 100, 150])])
def test_never_more_steps_at_risk_than_asked_for(
    every: int, begun_at: list[int], tmp_path: Path, ranks_alone: Ranks
) -> None:
    """However slow the disk is: training stands still before the step that would be one too many."""
    saver = saver_of(store_of(tmp_path, ranks_alone), ranks_alone, "ddp", every_steps=every)
    assert [step for step in range(1, begun_at[-1] + 1) if saver.due(step)] == begun_at
    committed, snapshot = 0, SlowSnapshot()
    saver.start(snapshot, TrainState(step=begun_at[0]))
    for step in range(begun_at[0] + 1, committed + every + 1):
        saver.before_step(step)
    assert saver.finished() == [], "up to here nobody waits"
    opened = threading.Timer(0.2, snapshot.may_end.set)
    opened.start()
    saver.before_step(committed + every + 1)
    assert [(end.step, end.failure) for end in saver.finished()] == [(begun_at[0], None)]
    opened.join()


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_snapshot_does_not_see_later_steps(
    name: str, tmp_path: Path, alone: RankContext, ranks_alone: Ranks, make_run: MakeRun
) -> None:
    strategy = small_strategy(alone, make_run(), name)
    train_a_step(strategy, 1)
    before = weights(strategy)
    snapshot = strategy.snapshot()
    train_a_step(strategy, 2)
    assert not torch.equal(weights(strategy)["model.norm.weight"], before["model.norm.weight"])
    saver = saver_of(store_of(tmp_path, ranks_alone), ranks_alone, name)
    saver.start(snapshot, TrainState(step=1))
    saver.drain()
    found, _ = store_of(tmp_path, ranks_alone).newest_valid(name, portable=True)
    assert found is not None
    strategy.restore(found, ranks_alone.storage)
    for key, tensor in weights(strategy).items():
        assert torch.equal(tensor, before[key])


def test_pruning_keeps_the_newest_and_drops_what_was_damaged(saved: Path, ranks_alone: Ranks) -> None:
    truncate(saved / "step-00000003-a1", saved)
    (saved / "step-00000009-a1").mkdir()  # begun and never finished
    store = store_of(saved.parent, ranks_alone, attempt=2, keep_last=2)
    store.newest_valid("ddp", portable=True)
    assert not (saved / "step-00000009-a1").exists()
    assert (saved / "step-00000003-a1").exists()  # until something newer is safe
    newer = saved / "step-00000004-a2"
    shutil.copytree(saved / "step-00000002-a1", newer)
    store.prune()
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000002-a1", "step-00000004-a2"]


def test_a_leftover_of_an_older_attempt_removes_nothing(saved: Path, ranks_alone: Ranks) -> None:
    (saved / "step-00000002-a7").mkdir()  # a newer attempt is writing
    before = sorted(path.name for path in saved.iterdir())
    store_of(saved.parent, ranks_alone, keep_last=1).prune()
    assert sorted(path.name for path in saved.iterdir()) == before
    store_of(saved.parent, ranks_alone, keep_last=1).newest_valid("ddp", portable=True)
    assert (saved / "step-00000002-a7").exists()


def test_an_object_store_works_as_well(alone: RankContext, ranks_alone: Ranks, make_run: MakeRun) -> None:
    root = "memory://checkpoint-test/run"
    strategy = small_strategy(alone, make_run(), "fsdp")
    saver = saver_of(store_of(root, ranks_alone, keep_last=1), ranks_alone, "fsdp")
    for step in (1, 2):
        train_a_step(strategy, step)
        saver.start(strategy.snapshot(), TrainState(step=step))
    saver.drain()
    assert [end.failure for end in saver.finished()] == [None, None]
    assert list(Storage(root).list("checkpoints")) == ["step-00000002-a1"]
    saved = weights(strategy)
    train_a_step(strategy, 3)
    found, skipped = store_of(root, ranks_alone).newest_valid("fsdp", portable=True)
    assert found is not None and not skipped
    strategy.restore(found, ranks_alone.storage)
    for key, tensor in weights(strategy).items():
        assert torch.equal(tensor, saved[key])


def test_two_ranks_agree_on_what_to_skip(make_run: MakeRun, launch: Any, tmp_path: Path) -> None:
    def run_of(storage: str, attempt: int = 1) -> RunSpec:
        strategy = {"fsdp": {}}
        return make_run(
            storage=tmp_path / storage, attempt=attempt, strategy=strategy, checkpoint={"everySteps": 4, "keepLast": 9}
        )

    calm = launch(run_of("calm"))
    launch(run_of("hurt"), exit_at={0: 5, 1: 5})
    folder = tmp_path / "hurt" / "checkpoints"
    newest = max(path.name for path in folder.iterdir() if (path / "COMMITTED").exists())
    shard = folder / newest / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[::-1])
    resumed = launch(run_of("hurt", 2))
    said = next(value for kind, value in resumed[0]["events"] if kind == "resume")
    assert any(newest in s["uri"] and "__1_0.distcp" in s["reason"] for s in said["skipped"])
    assert said["step"] == int(newest.split("-")[1]) - 2
    assert resumed[0]["result"]["digest"] == calm[0]["result"]["digest"]


def test_a_manifest_reads_what_it_writes() -> None:
    manifest = Manifest("u", 3, "fsdp", 2, TrainState(step=7, loss=1.25, eval_step=6, eval_loss=2.5), ())
    assert Manifest.decode(manifest.encode()) == manifest
    assert CheckpointName.parse(str(CheckpointName(12, 3))) == CheckpointName(12, 3)
    assert CheckpointName.parse("step-12-a3") is None and CheckpointName.parse("tmp") is None
