"""Remembers what deleted pods said last: KubeRay deletes a failed pod at once, often before a reconcile has read it.

Memory only, and bounded: after a restart of the operator the RayJob and the run tell the same, later and more vaguely.
"""

from __future__ import annotations

from collections import OrderedDict

from slipway_operator.controllers.runs.pods import cluster_of, tells_an_end
from slipway_operator.kube.resource import Json, uid_of
from slipway_operator.kube.store import Change


class PodTestimony:
    """The last states of deleted pods that tell how an attempt ended, by namespace/name of their RayCluster."""

    def __init__(self, size: int = 1024) -> None:
        """`size`: clusters that are remembered."""
        self._size = size
        self._pods: OrderedDict[str, dict[str, Json]] = OrderedDict()

    def hear(self, change: Change) -> None:
        """Take note of a change in the cache of pods."""
        if change.type != "DELETED" or not tells_an_end(change.obj):
            return
        for cluster in cluster_of(change.obj):
            self._pods.setdefault(cluster, {})[uid_of(change.obj)] = change.obj
            self._pods.move_to_end(cluster)
            while len(self._pods) > self._size:
                self._pods.popitem(last=False)

    def of(self, cluster: str) -> list[Json]:
        """The remembered pods of a cluster."""
        return list(self._pods.get(cluster, {}).values())
