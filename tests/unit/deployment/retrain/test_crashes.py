"""The operator dies between any two writes, anywhere on the way: nothing is lost, nothing is made twice."""

from __future__ import annotations

import contextlib
import random

import pytest

from .world import Crash, RetrainWorld


def play(world: RetrainWorld, deaths: random.Random | None) -> None:
    """The whole way of a retrain; with `deaths`, every step of the operator may be its last."""

    def reconcile() -> None:
        for _ in range(60):
            before = world.written()
            if deaths is not None:
                with contextlib.suppress(Crash):
                    world.step(dies_after=deaths.randrange(4))
            world.step()
            if world.written() == before:
                return
        raise AssertionError("does not come to rest")

    world.alarm()
    reconcile()
    world.trains()
    reconcile()
    world.measures()
    for _ in range(8):
        reconcile()
        world.run(15, every=5)
    reconcile()


def told(world: RetrainWorld) -> tuple[object, ...]:
    retrain = world.retrain()
    runs = [(run["id"], run["stage"], run["version"], run["gpuHours"]) for run in retrain["history"]]
    return world.created, runs, retrain["begun"], len(retrain["starts"]), retrain["usage"], world.stable()


@pytest.mark.parametrize("seed", range(12))
def test_a_retrain_ends_as_if_the_operator_had_lived(seed: int) -> None:
    canary = {"steps": [{"weight": 20, "pauseSeconds": 10}]}
    quiet, stormy = RetrainWorld.drifting(canary=canary), RetrainWorld.drifting(canary=canary)
    play(quiet, None)
    play(stormy, random.Random(seed))
    assert quiet.last()["stage"] == "Promoted"
    assert told(stormy) == told(quiet)


@pytest.mark.parametrize("writes", range(3))
def test_every_prefix_of_the_writes_of_every_decision_leads_on(writes: int) -> None:
    """Each decision is cut off after so many of its writes, once, and made again."""
    world = RetrainWorld.drifting()
    world.alarm()
    for played in (lambda: None, world.trains, world.measures):
        played()
        for _ in range(12):
            with contextlib.suppress(Crash):
                world.step(dies_after=writes)
            world.step()
    world.run(90)
    assert [run["stage"] for run in world.retrain()["history"]] == ["Promoted"]
    assert len(world.created) == len(set(world.created)) == 2


def test_a_superseded_retrain_is_stopped_whatever_write_was_the_last() -> None:
    for writes in range(4):
        world = RetrainWorld.drifting()
        world.alarm()
        world.run()
        world.change(model={"uri": "/m/users"})
        with contextlib.suppress(Crash):
            world.step(dies_after=writes)
        world.run()
        assert world.last()["stage"] == "Superseded"
        assert all(job["spec"]["suspend"] for job in world.jobs.values())
        assert world.retrain()["failures"] == 0
