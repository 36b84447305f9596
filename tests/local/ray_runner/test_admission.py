"""Who runs next: tables, and properties over random queues."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_local.ray_runner.admission import Waiting, admit, refuse_impossible
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.resources import Resources, describe

GI = 1024**3
MACHINE = Resources(Decimal(2), Decimal(0), Decimal(8 * GI))


def waiting(name: str, cpu: str = "1", *, priority: int = 0, at: int = 0, memory: int = 0, gpu: int = 0) -> Waiting:
    created = f"2026-11-20T10:00:{at:02d}Z"
    need = Resources(Decimal(cpu), Decimal(gpu), Decimal(memory * GI))
    return Waiting("default", name, f"uid-{name}", created, priority, need)


@pytest.mark.parametrize(
    ("queue", "admitted"),
    [
        ([waiting("b", at=2), waiting("a", at=1), waiting("c", at=3)], ["a", "b"]),
        ([waiting("old", at=1), waiting("new", at=2), waiting("urgent", priority=5, at=9)], ["urgent", "old"]),
        ([waiting("low", priority=-1, at=1), waiting("x", at=5), waiting("y", at=6)], ["x", "y"]),
        ([waiting("b"), waiting("a"), waiting("c")], ["a", "b"]),
        # All or nothing, and nobody overtakes the one at the front.
        ([waiting("big", "3", at=1), waiting("small", at=2)], []),
        ([waiting("one", at=1), waiting("big", "2", at=2), waiting("small", at=3)], ["one"]),
        ([waiting("fat", memory=9, at=1), waiting("thin", at=2)], []),
        (
            [waiting("none", "0"), waiting("half", "500m".replace("500m", "0.5")), waiting("rest", "1.5")],
            ["half", "none", "rest"],
        ),
    ],
)
def test_order(queue: list[Waiting], admitted: list[str]) -> None:
    verdicts = admit(queue, MACHINE, MACHINE)
    assert sorted(name.removeprefix("uid-") for name, v in verdicts.items() if v.admitted) == sorted(admitted)


def test_message_says_what_is_missing_and_how_many_are_ahead() -> None:
    queue = [waiting(f"j{i}", "2", at=i) for i in range(5)]
    full = Resources(Decimal(0), Decimal(0), Decimal(8 * GI))
    verdicts = admit(queue, full, MACHINE)
    assert verdicts["uid-j3"].message == "waiting for 2 CPUs: 0 of 2 CPUs free, 3 jobs ahead"
    assert verdicts["uid-j1"].message.endswith("1 job ahead")
    many = admit([waiting(f"j{i:02d}", at=i) for i in range(30)], full, MACHINE)
    assert many["uid-j29"].message.endswith("20 or more jobs ahead")


def test_message_for_one_that_would_fit_but_is_not_first() -> None:
    verdicts = admit([waiting("big", "2", at=1), waiting("small", at=2)], Resources(Decimal(1)), MACHINE)
    assert "come first, 1 job ahead" in verdicts["uid-small"].message


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Resources(Decimal(5)), ("5 CPUs", "2 CPUs", "CPUs per worker")),
        (Resources(Decimal(1), Decimal(2)), ("2 GPUs", "no GPU", "GPUs per worker")),
        (Resources(Decimal(1), Decimal(0), Decimal(64 * GI)), ("64Gi of memory", "8Gi of memory", "memory per worker")),
    ],
)
def test_impossible(need: Resources, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        refuse_impossible(need, MACHINE)
    for word in words:
        assert word in str(caught.value)


def test_what_just_fits_is_not_impossible() -> None:
    refuse_impossible(MACHINE, MACHINE)
    assert describe(MACHINE) == "2 CPUs, 8Gi of memory"


amounts = st.builds(
    Resources,
    st.decimals(0, 4, places=1),
    st.integers(0, 2).map(Decimal),
    st.integers(0, 8).map(Decimal),
)
queues = st.lists(st.tuples(st.integers(0, 5), st.integers(-2, 2), amounts), max_size=12).map(
    lambda rows: [
        Waiting("ns", f"n{i}", f"u{i}", f"2026-11-20T10:00:{at:02d}Z", priority, need)
        for i, (at, priority, need) in enumerate(rows)
    ]
)


@given(queues, amounts)
def test_never_more_than_is_free_and_never_out_of_order(queue: list[Waiting], free: Resources) -> None:
    verdicts = admit(queue, free, free)
    assert set(verdicts) == {job.uid for job in queue}
    used = Resources()
    stopped = False
    for job in sorted(queue, key=lambda j: (-j.priority, j.created, j.name)):
        admitted = verdicts[job.uid].admitted
        assert not (stopped and admitted), "overtaken"
        # Work is conserved: whoever is at the front and fits does start.
        assert admitted or stopped or not job.need.fits(free - used)
        if admitted:
            used = used + job.need
        else:
            stopped = True
            assert verdicts[job.uid].message
    assert used.cpu <= free.cpu
    assert used.gpu <= free.gpu
    assert used.memory <= free.memory


@given(queues, st.lists(st.integers(0, 11), max_size=40))
def test_everyone_runs_in_the_end(queue: list[Waiting], ends: list[int]) -> None:
    """Jobs that fit the machine all get their turn, whatever the order in which running ones end."""
    queue = [job for job in queue if job.need.fits(MACHINE)]
    running: list[Waiting] = []
    done: list[Waiting] = []
    choices = iter(ends)
    while len(done) < len([*queue, *running, *done]):
        free = MACHINE
        for job in running:
            free = free - job.need
        admitted = [job for job in queue if admit(queue, free, MACHINE)[job.uid].admitted]
        running += admitted
        queue = [job for job in queue if job not in admitted]
        assert running, "nothing runs, and somebody waits"
        done.append(running.pop(next(choices, 0) % len(running)))
