"""Who gets the next call: nobody waits for the driver, and nobody waits behind a long call at the end."""

from __future__ import annotations

import random

import pytest

from slipway_jobs.evaluate.pool import next_worker


@pytest.mark.parametrize(
    ("held", "waiting", "gets"),
    [
        ([0, 0], 5, 0),
        ([1, 0], 5, 1),
        ([1, 1], 5, 0),  # one ahead
        ([2, 1], 5, 1),
        ([2, 2], 5, None),
        ([1, 1], 3, 0),
        ([1, 1], 2, None),  # the last ones are kept
        ([1, 0], 1, 1),
        ([0], 1, 0),
        ([1], 1, None),
        ([1], 2, 0),
    ],
)
def test_who_gets_the_next_call(held: list[int], waiting: int, gets: int | None) -> None:
    assert next_worker(held, waiting) == gets


def makespan(work: list[float], workers: int) -> float:
    """When the last call ends, if each worker does what it holds in order."""
    waiting, held, ends, done = list(work), [[] for _ in range(workers)], [0.0] * workers, 0.0
    while waiting or any(held):
        while waiting and (rank := next_worker([len(one) for one in held], len(waiting))) is not None:
            if not held[rank]:
                ends[rank] = max(ends[rank], done) + waiting[0]
            held[rank].append(waiting.pop(0))
        rank = min((rank for rank in range(workers) if held[rank]), key=lambda rank: ends[rank])
        done = ends[rank]
        held[rank].pop(0)
        if held[rank]:
            ends[rank] += held[rank][0]
    return done


def test_two_workers_share_calls_of_any_length() -> None:
    """Largest first, as an evaluation sends them: at most a third above the shortest possible (Graham 1969)."""
    draws = random.Random(0)
    for _ in range(200):
        work = sorted((draws.expovariate(1) for _ in range(draws.randint(1, 40))), reverse=True)
        assert makespan(work, 2) <= 4 / 3 * max(sum(work) / 2, work[0]) + 1e-9
