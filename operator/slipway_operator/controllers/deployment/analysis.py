"""Whether a candidate is worse than the stable version: the comparison that rolls back. Pure.

It is asked again with every report, so an ordinary test would sooner or later reject any candidate. Error rates are
therefore held against confidence *sequences*, which hold at all times together: the Bernoulli mixture martingale of
Robbins (1970, https://doi.org/10.1214/aoms/1177696786) with a uniform prior over the rate. For k errors in n requests

    M_n(p) = B(k + 1, n - k + 1) / (p^k (1 - p)^(n - k))

is a martingale under the rate p, so by Ville's inequality {p : M_n(p) < 1 / alpha} covers the true rate at all n with
probability 1 - alpha. Two sequences of alpha / 2 each that lie apart say that the rates differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from slipway_api import conditions as c
from slipway_api.deployment import Analysis

_BISECTIONS = 60


@dataclass(frozen=True)
class Tally:
    """What a version has answered so far. Latency in milliseconds; None: unknown."""

    requests: int = 0
    errors: int = 0
    latency_p99_ms: float | None = None
    cold_start_seconds: float | None = None


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
    alpha = (1 - float(analysis.confidence)) / 2
    low, _ = error_rate_interval(candidate.errors, candidate.requests, alpha)
    _, high = error_rate_interval(stable.errors, stable.requests, alpha)
    margin = float(analysis.error_margin)
    # A stable version that gets no requests any more says nothing: what it is sure to be below is then 1.
    if low > high + margin:
        return Worse(
            c.ERROR_RATE_TOO_HIGH,
            f"{candidate.errors} of {candidate.requests} requests failed, {stable.errors} of {stable.requests} with "
            f"the stable version: the rate is at least {low:.1%} against at most {high:.1%} (spec.canary.analysis: "
            f"confidence {analysis.confidence}, errorMargin {analysis.error_margin})",
        )
    return _slower(candidate, stable, analysis)


def _slower(candidate: Tally, stable: Tally, analysis: Analysis) -> Worse | None:
    ratio = float(analysis.max_latency_ratio)
    enough = min(candidate.requests, stable.requests) >= analysis.min_requests
    if ratio == 0 or not enough or not candidate.latency_p99_ms or not stable.latency_p99_ms:
        return None
    if candidate.latency_p99_ms <= ratio * stable.latency_p99_ms:
        return None
    return Worse(
        c.LATENCY_TOO_HIGH,
        f"99th percentile of latency {candidate.latency_p99_ms:.0f} ms against {stable.latency_p99_ms:.0f} ms of the "
        f"stable version: more than {analysis.max_latency_ratio} times (spec.canary.analysis.maxLatencyRatio)",
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
