"""What each version has done, for Prometheus, for the operator and for whoever asks: counts since the process began."""

from __future__ import annotations

import bisect
import math
import random
from collections import deque
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from slipway_api.serving import VersionStatistics
from slipway_serving.engine_loads import EngineLoads

_RECENT = 1024  # latencies that percentiles are taken of
_SURE = 0.99  # a rollout looks at it with every report, and each look is another chance to be wrong
_SAME_REPLICA_SECONDS = 1.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Recent:
    """Percentiles of the last thousand values."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_RECENT)

    def add(self, value: float) -> None:
        """Take note of a value."""
        self._values.append(value)

    def percentile(self, percent: float) -> float | None:
        """The nearest-rank percentile; None before the first value."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))]

    def percentile_at_least(self, percent: float, confidence: float) -> float | None:
        """What the percentile of whatever the values are drawn from exceeds, at this confidence; None if unknown.

        That is an order statistic, whatever the distribution (David and Nagaraja, Order Statistics, 2003, section 7.1):
        of n values, more than m lie above the percentile with the probability that a binomial variable exceeds m.
        """
        count, above = len(self._values), 1 - percent / 100
        covered = term = (1 - above) ** count
        for most in range(count):
            if covered >= confidence - 1e-12:
                return sorted(self._values)[count - 1 - most]
            term *= (count - most) / (most + 1) * above / (1 - above)
            covered += term
        return None


@dataclass
class _Version:
    """What is counted of a version; its metrics are looked up once, since that costs more than to count."""

    ongoing: Gauge
    prompt: Counter
    made: Counter
    until_first: Histogram
    between: Histogram
    whole: Histogram
    requests: int = 0
    errors: int = 0
    tokens: int = 0
    latency: Recent = field(default_factory=Recent)
    first_token: Recent = field(default_factory=Recent)
    cold_start: float | None = None
    newest_birth: float = -math.inf
    judged: int = 0
    bad: int = 0


class Statistics:
    """Counters and histograms of a router."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._versions: dict[str, _Version] = {}
        version = ["version"]
        self._requests = Counter("slipway_requests", "Requests.", ["version", "status"], registry=self.registry)
        self._tokens = Counter("slipway_tokens", "Generated tokens.", version, registry=self.registry)
        self._prompt = Counter("slipway_prompt_tokens", "Tokens of prompts.", version, registry=self.registry)
        self._first = Histogram(
            "slipway_time_to_first_token_seconds", "", version, registry=self.registry, buckets=_SECONDS
        )
        self._between = Histogram("slipway_inter_token_seconds", "", version, registry=self.registry, buckets=_SECONDS)
        self._whole = Histogram("slipway_request_seconds", "", version, registry=self.registry, buckets=_SECONDS)
        self._judged = Counter(
            "slipway_judged_answers", "Answers with feedback.", ["version", "verdict"], registry=self.registry
        )
        self._cold = Gauge("slipway_cold_start_seconds", "The last cold start.", version, registry=self.registry)
        self._ongoing = Gauge("slipway_ongoing_requests", "Requests at work.", version, registry=self.registry)
        self._weight = Gauge("slipway_version_weight", "Percent of the requests.", version, registry=self.registry)
        self.engines = EngineLoads(self.registry)

    def _of(self, version: str) -> _Version:
        known = self._versions.get(version)
        if known is None:
            known = self._versions[version] = _Version(
                ongoing=self._ongoing.labels(version),
                prompt=self._prompt.labels(version),
                made=self._tokens.labels(version),
                until_first=self._first.labels(version),
                between=self._between.labels(version),
                whole=self._whole.labels(version),
            )
        return known

    def weighted(self, weights: dict[str, int]) -> None:
        """These versions are served now, with these weights."""
        self._weight.clear()
        for version, weight in weights.items():
            self._weight.labels(version).set(weight)

    def began(self, version: str) -> None:
        """A request goes to this version."""
        self._of(version).ongoing.inc()

    def first(self, version: str, seconds: float, prompt_tokens: int) -> None:
        """Its first token is there."""
        counted = self._of(version)
        counted.first_token.add(seconds)
        counted.until_first.observe(seconds)
        counted.prompt.inc(prompt_tokens)

    def left(self, version: str) -> None:
        """Whoever asked was gone before the version said anything: nothing can be said of it."""
        self._of(version).ongoing.dec()
        self._requests.labels(version, "499").inc()

    def ended(self, version: str, status: int, seconds: float, tokens: int, first_seconds: float | None) -> None:
        """A request has ended. Errors are those of the server: the client's own say nothing about a version."""
        counted = self._of(version)
        counted.ongoing.dec()
        self._requests.labels(version, str(status)).inc()
        if status >= 500 or status < 400:
            counted.requests += 1
        counted.errors += status >= 500
        if status < 400:
            counted.tokens += tokens
            counted.latency.add(seconds)
            counted.made.inc(tokens)
            counted.whole.observe(seconds)
            if first_seconds is not None and tokens > 1:
                counted.between.observe((seconds - first_seconds) / (tokens - 1))

    def cold_start(self, version: str, seconds: float, *, born: float) -> None:
        """A request has waited so long for a replica that was born (by a clock of this process) meanwhile.

        Of the requests that waited for the same replica, the longest wait is the cold start.
        """
        counted = self._of(version)
        if born > counted.newest_birth + _SAME_REPLICA_SECONDS:
            counted.newest_birth, counted.cold_start = born, 0.0
        counted.cold_start = max(counted.cold_start or 0.0, seconds)
        self._cold.labels(version).set(counted.cold_start)

    def judged(self, version: str, *, bad: bool) -> None:
        """Somebody has said what they think of an answer."""
        counted = self._of(version)
        counted.judged += 1
        counted.bad += bad
        self._judged.labels(version, "bad" if bad else "good").inc()

    def told(self) -> list[VersionStatistics]:
        """All versions, for the operator. Times in milliseconds."""

        def milliseconds(value: float | None) -> float | None:
            return None if value is None else 1000 * value

        return [
            VersionStatistics(
                name=name,
                requests=one.requests,
                errors=one.errors,
                tokens=one.tokens,
                latency_p50_ms=milliseconds(one.latency.percentile(50)),
                latency_p99_ms=milliseconds(one.latency.percentile(99)),
                latency_p99_at_least_ms=milliseconds(one.latency.percentile_at_least(99, _SURE)),
                first_token_p50_ms=milliseconds(one.first_token.percentile(50)),
                first_token_p99_ms=milliseconds(one.first_token.percentile(99)),
                cold_start_seconds=one.cold_start,
                judged=one.judged,
                bad=one.bad,
            )
            for name, one in list(self._versions.items())[-8:]
        ]


def pick(names: list[str], weights: list[int], draws: random.Random) -> str:
    """One of the names by weight; the first where all weights are 0."""
    total = sum(weights)
    if total == 0:
        return names[0]
    ends, end = [], 0
    for weight in weights:
        end += weight
        ends.append(end)
    return names[bisect.bisect_right(ends, draws.random() * total)]
