"""Whether a candidate is worse than the stable version: the comparison that rolls back. Pure.

Two rates are compared: of requests that failed, and, where clients send feedback, of answers that were judged bad. That
is done again with every report, so an ordinary test would sooner or later reject any candidate. The rates are therefore
held against confidence *sequences*, which hold at all times together: the Bernoulli mixture martingale of Robbins
(1970, https://doi.org/10.1214/aoms/1177696786) with a uniform prior over the rate. For k errors in n requests

    M_n(p) = B(k + 1, n - k + 1) / (p^k (1 - p)^(n - k))

is a martingale under the rate p, so by Ville's inequality {p : M_n(p) < 1 / alpha} covers the true rate at all n with
probability 1 - alpha. Two sequences of alpha / 2 each that lie apart say that the rates differ; with two rates, each
comparison has half of what `confidence` leaves (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from slipway_api import conditions as c
from slipway_api.deployment import Analysis

_BISECTIONS = 60


@dataclass(frozen=True)
class Tally:
    """What a version has answered so far, and what clients thought of it. Latency in milliseconds; None: unknown."""

    requests: int = 0
    errors: int = 0
    latency_p99_ms: float | None = None
    latency_p99_at_least_ms: float | None = None
    cold_start_seconds: float | None = None
    judged: int = 0
    bad: int = 0


@dataclass(frozen=True)
class Worse:
    """Why a candidate is rolled back."""

    reason: str
    message: str


def error_rate_interval(errors: int, requests: int, alpha: float) -> tuple[float, float]:
    """The rates that so many errors do not rule out, at level `alpha` for all times together. (0, 1) before any."""
    if requests == 0:
        return 0.0, 1.0
    # log B(k + 1, n - k + 1), and the largest log-likelihood that still lies outside.
    log_beta = math.lgamma(errors + 1) + math.lgamma(requests - errors + 1) - math.lgamma(requests + 2)
    bound = log_beta + math.log(alpha)
    peak = errors / requests

    def outside(rate: float) -> bool:
        likelihood = _times_log(errors, rate) + _times_log(requests - errors, 1 - rate)
        return likelihood <= bound

    return _edge(outside, 0.0, peak), _edge(outside, 1.0, peak)


def worse(candidate: Tally, stable: Tally, analysis: Analysis) -> Worse | None:
    """Why the candidate is worse, or None while nothing speaks against it."""
    errors = _apart((candidate.errors, candidate.requests), (stable.errors, stable.requests), analysis, "error")
    if errors is not None:
        return Worse(c.ERROR_RATE_TOO_HIGH, f"{candidate.errors} of {candidate.requests} requests failed, {errors}")
    bad = _apart((candidate.bad, candidate.judged), (stable.bad, stable.judged), analysis, "quality")
    if bad is not None:
        return Worse(c.QUALITY_TOO_LOW, f"{candidate.bad} of {candidate.judged} answers with feedback were bad, {bad}")
    return _slower(candidate, stable, analysis)


def _apart(
    candidate: tuple[int, int], stable: tuple[int, int], analysis: Analysis, which: Literal["error", "quality"]
) -> str | None:
    """How far the candidate's rate is above the stable version's, if that is beyond chance and margin; else None."""
    alpha = (1 - float(analysis.confidence)) / 4
    low, _ = error_rate_interval(*candidate, alpha)
    _, high = error_rate_interval(*stable, alpha)
    margin = analysis.error_margin if which == "error" else analysis.quality_margin
    # A stable version that gets no requests any more says nothing: what it is sure to be below is then 1.
    if low <= high + float(margin):
        return None
    return (
        f"{stable[0]} of {stable[1]} with the stable version: the rate is at least {low:.1%} against at most "
        f"{high:.1%} (spec.canary.analysis: confidence {analysis.confidence}, {which}Margin {margin})"
    )


def _slower(candidate: Tally, stable: Tally, analysis: Analysis) -> Worse | None:
    ratio = float(analysis.max_latency_ratio)
    enough = min(candidate.requests, stable.requests) >= analysis.min_requests
    sure, known = candidate.latency_p99_at_least_ms, stable.latency_p99_ms
    if ratio == 0 or not enough or not sure or not known or sure <= ratio * known:
        return None
    measured, where = candidate.latency_p99_ms or sure, "spec.canary.analysis.maxLatencyRatio"
    return Worse(
        c.LATENCY_TOO_HIGH,
        f"99th percentile of latency {measured:.0f} ms, with 99 % confidence above {sure:.0f} ms, "
        f"against {known:.0f} ms of the stable version: more than {analysis.max_latency_ratio} times ({where})",
    )


def _times_log(count: int, rate: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(rate) if rate > 0 else -math.inf


def _edge(outside: Callable[[float], bool], far: float, peak: float) -> float:
    """Where the interval ends between `far` and its peak; `far` itself where even that lies within."""
    if not outside(far):
        return far
    near = peak
    for _ in range(_BISECTIONS):
        middle = (far + near) / 2
        far, near = (middle, near) if outside(middle) else (far, middle)
    return far
