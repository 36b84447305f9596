"""What the runner remembers of one RayService between reconciles. All of it can be found out again after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from slipway_local.ray_runner.admission import Waiting
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.service_spec import RayServiceRequest
from slipway_local.ray_runner.service_translate import prefix_of
from slipway_operator.kube.resource import Json, Key

FINALIZER = "slipway.dev/serve-applications"
URL_ANNOTATION = "slipway.dev/url"
"""Where the service answers; in a cluster nobody writes it, and `<name>-serve-svc:8000` is the place."""


@dataclass
class Service:
    """One RayService, by UID."""

    key: Key
    uid: str
    generation: int = -1
    """The generation that `request` or `invalid` was read from."""
    request: RayServiceRequest | None = None
    invalid: InvalidSpec | None = None
    priority: int = 0
    not_before: datetime | None = None
    """A Secret is missing: it does not queue until then."""
    held: Resources | None = None
    """Reserved for it."""
    up: bool = False
    """All of its applications have run on the current Ray."""
    refused: str = ""
    """What Serve said when it did not take this generation."""

    @property
    def prefix(self) -> str:
        """Of its applications' names."""
        return prefix_of(self.key.namespace, self.key.name, self.uid)

    @property
    def cluster(self) -> str:
        """The name of the cluster that it seems to have."""
        return f"{self.key.name}-{self.uid[:5]}"

    def lacks(self) -> Resources:
        """What it needs beyond what it holds."""
        need, held = self.request.need if self.request is not None else Resources(), self.held or Resources()
        zero = Resources()
        beyond = need - held
        return Resources(max(beyond.cpu, zero.cpu), max(beyond.gpu, zero.gpu), max(beyond.memory, zero.memory))


def candidate(rayservice: Json, service: Service, capacity: Resources, now: datetime) -> Waiting | None:
    """The service as one that queues for resources; None for one that does not."""
    request = service.request
    if (
        request is None
        or service.invalid is not None
        or service.refused
        or rayservice["metadata"].get("deletionTimestamp")
    ):
        return None
    if service.held is not None and service.lacks() == Resources():
        return None
    if (service.not_before is not None and service.not_before > now) or not request.need.fits(capacity):
        return None
    created = str(rayservice["metadata"].get("creationTimestamp") or "")
    return Waiting(service.key.namespace, service.key.name, service.uid, created, service.priority, service.lacks())
