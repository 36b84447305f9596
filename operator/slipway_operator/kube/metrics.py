"""Every metric of the runtime, in one place: its names are an interface (a test keeps the list).

A `Metrics` is injected, so that two control loops in one process, or two tests, never share a counter by accident.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The runtime's metrics on one registry (a private one, unless given)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._counters()
        self._gauges()
        self._histograms()

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"slipway_{name}", text, labels, registry=self.registry)

        self.reconciles = counter("reconcile", "Reconciles by how they ended.", "controller", "outcome")
        self.queue_adds = counter("queue_adds", "Keys added to a queue.", "queue")
        self.queue_retries = counter("queue_retries", "Keys added again after a failure.", "queue")
        self.stale_holds = counter("stale_holds", "Keys held for the cache, by result.", "controller", "result")
        self.relists = counter("relists", "Full lists by reason.", "resource", "reason")
        self.watch_events = counter("watch_events", "Events received by type.", "resource", "type")
        self.handler_errors = counter("handler_errors", "Event handlers that raised.", "resource")
        self.requests = counter("requests", "Requests by verb and status code (0: no answer).", "verb", "code")
        self.limiter_throttled = counter("limiter_throttled", "Answers that asked to slow down.")
        self.events = counter("events", "Kubernetes Events by what became of them.", "result")

    def _gauges(self) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"slipway_{name}", text, labels, registry=self.registry)

        self.queue_depth = gauge("queue_depth", "Keys that are ready to be worked on.", "queue", "priority")
        self.workers_busy = gauge("workers_busy", "Workers in a reconcile.", "controller")
        self.cached_objects = gauge("cached_objects", "Objects in the cache.", "resource")
        self.watch_staleness = gauge("watch_staleness_seconds", "Since the server was last heard.", "resource")
        self.watch_age = gauge("watch_age_seconds", "Age of the open watch, 0 without one.", "resource")
        self.resource_missing = gauge("resource_missing", "1 while the resource's CRD is missing.", "resource")
        self.limiter_window = gauge("limiter_window", "Requests that may be in flight.")
        self.leader = gauge("leader", "1 while this process holds its lease.")
        self.loop_lag = gauge("event_loop_lag_seconds", "How late the event loop was in the last half second.")

    def _histograms(self) -> None:
        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"slipway_{name}", text, labels, buckets=_SECONDS, registry=self.registry)

        self.reconcile_seconds = histogram("reconcile_seconds", "Duration of a reconcile.", "controller")
        self.queue_seconds = histogram("queue_seconds", "From ready to taken by a worker.", "queue")
        self.request_seconds = histogram("request_seconds", "Duration of a request.", "verb")
