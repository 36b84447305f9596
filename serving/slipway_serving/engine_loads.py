"""How busy the replicas of the engines are, as they say with each answer's first and last piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

_SILENCE_SECONDS = 600.0  # a replica that has said nothing for so long may be gone

# What a replica says (EngineReplica.load) -> the metric.
_GAUGES = {
    "running": ("slipway_running_sequences", "Answers that are being written."),
    "waiting": ("slipway_queue_length", "Requests that wait for a row."),
    "cache_tokens": ("slipway_cache_tokens", "Tokens in the key/value cache."),
    "cache_limit": ("slipway_cache_limit_tokens", "Tokens that the key/value cache may hold."),
}


class EngineLoads:
    """Gauges for each version and replica."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[tuple[str, str], float] = {}
        self._of: dict[tuple[str, str], list[tuple[str, Gauge]]] = {}  # looking gauges up costs more than to set them
        labels = ["version", "replica"]
        self._gauges = {key: Gauge(name, words, labels, registry=registry) for key, (name, words) in _GAUGES.items()}

    def heard(self, version: str, load: dict[str, Any]) -> None:
        """A replica has said how busy it is."""
        which = (version, str(load["replica"]))
        self._heard[which] = self._clock()
        gauges = self._of.get(which)
        if gauges is None:
            gauges = self._of[which] = [(key, gauge.labels(*which)) for key, gauge in self._gauges.items()]
        for key, gauge in gauges:
            gauge.set(load[key])

    def forget_silent(self) -> None:
        """Before somebody reads: without those that have not been heard of for long."""
        since = self._clock() - _SILENCE_SECONDS
        for which in [which for which, at in self._heard.items() if at < since]:
            del self._heard[which], self._of[which]
            for gauge in self._gauges.values():
                gauge.remove(*which)
