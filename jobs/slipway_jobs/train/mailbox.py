"""A few short texts between the driver and rank 0, kept in Ray's own key-value store (the GCS).

Why not `ray.train.report`: it makes every rank wait for every other at each report, and the controller passes on one
at a time. Why not an actor: one more process to start before the first step. What is sent is the newest state, not a
queue, so a register per topic is exactly what is needed: a lost or late read costs nothing, the sender never waits for
a reader, and a new set of workers writes to the same place.

Nothing secret goes through it: whoever can reach the cluster can read it.
"""

from __future__ import annotations

from typing import Literal

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

Topic = Literal["state", "prepared", "stop"]

_NAMESPACE = b"slipway"


class Mailbox:
    """The texts of one run. `name` must be its own: run uid, attempt and start of the workers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def put(self, topic: Topic, text: str) -> None:
        """Replace the text of a topic. Raises what Ray raises when the cluster does not answer."""
        _internal_kv_put(self._key(topic), text.encode(), overwrite=True, namespace=_NAMESPACE)

    def get(self, topic: Topic) -> str | None:
        """The newest text of a topic, None before the first. Raises as `put` does."""
        value = _internal_kv_get(self._key(topic), namespace=_NAMESPACE)
        return None if value is None else bytes(value).decode()

    def clear(self) -> None:
        """Forget every text of this run."""
        _internal_kv_del(f"{self.name}/".encode(), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, topic: Topic) -> bytes:
        return f"{self.name}/{topic}".encode()
