"""What every test answers."""

from __future__ import annotations

from typing import NamedTuple


class Tested(NamedTuple):
    """One comparison. `p_value` is the chance of a statistic at least as large if nothing had changed."""

    statistic: float
    p_value: float
