"""Which sequences go through the model together: alike in length, within a budget of tokens. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of places in `lengths`, longest first, so that padded tokens (rows x longest) stay within `budget`.

    A sequence that is longer than the budget is a batch of its own. Longest first: what runs out of memory does so at
    once. The same lengths give the same batches.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    batches: list[list[int]] = []
    for place in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
