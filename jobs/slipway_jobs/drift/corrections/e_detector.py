"""Control over time: a Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo 2022), one number per signal.

A watcher looks at windows without end. A sum of error rates that converges (alpha-spending) bounds the chance of *ever*
being wrong, and pays by going blind: after a year of hourly windows it allows each window some 1e-10. What a retrain
costs is a false alarm now and then, so what is bounded here is their rate: the mean number of windows up to the first
false alarm is at least `run_length`, whatever the length of the stream.

Each window's p-value becomes an e-value by the calibrator of Vovk and Wang (2021), (1 - p + p·ln p) / (p·ln² p): the
mixture of all power calibrators, without a parameter. The detector bets on a change at every past window at once,

    M[t] = e[t]·(1 + M[t-1])      alarm when M[t] >= run_length

so a strong change is seen in one window, and a weak one by what several windows say together. Without a change the
expectation of M[t] - t never grows, which by optional stopping gives the bound (their Theorem 2.4).

Fed with p-values that Holm has adjusted, the bound holds for the *first false alarm of any signal*: each signal's M is
then at most the M of the smallest adjusted p-value, and that one is a valid p-value whatever the dependence.
"""

from __future__ import annotations

import math

_SMALLEST = 1e-300  # e-values stay finite
_LARGEST = 1e280


def e_value(p_value: float) -> float:
    """The e-value of a p-value; decreasing, between 1/2 (p = 1) and 1e280. Raises ValueError outside [0, 1]."""
    if not 0 <= p_value <= 1:
        raise ValueError("a p-value lies between 0 and 1")
    if p_value > 1 - 1e-4:
        return 0.5  # the limit: the formula is 0/0 at 1
    p = max(p_value, _SMALLEST)
    log = math.log(p)
    return min(_LARGEST, (1 - p + p * log) / (p * log * log))


def advance(evidence: float, p_value: float) -> float:
    """M[t] from M[t-1] and this window's p-value."""
    return min(_LARGEST, e_value(p_value) * (1 + evidence))
