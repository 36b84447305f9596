"""A uniform sample of bounded size that can be merged: the k items whose keyed hash is smallest (bottom-k).

The classical reservoir (Vitter 1985) depends on the order of arrival and cannot be merged without bias. Here an item's
place is decided by its own id and the seed, so replicas agree without talking, a record that arrives twice counts once,
and merging is a union. Whoever chooses request ids without knowing the seed cannot choose what is kept.
"""

from __future__ import annotations

import bisect
from hashlib import blake2b
from typing import Any

from slipway_jobs.drift.errors import SketchError


class Reservoir:
    """At most `capacity` items; `seen` counts all that were offered."""

    def __init__(self, capacity: int, seed: int) -> None:
        if capacity < 1:
            raise SketchError("a reservoir holds at least one item")
        self.capacity, self.seed = capacity, seed
        self._key = seed.to_bytes(8, "big", signed=True)
        self._kept: list[tuple[int, str]] = []  # ascending
        self._items: dict[str, Any] = {}
        self.seen = 0

    @property
    def size(self) -> int:
        """Items kept."""
        return len(self._kept)

    def add(self, identity: str, item: Any) -> bool:
        """Offer an item (anything that JSON can hold); whether it is kept for now."""
        self.seen += 1
        return self._offer(identity, item)

    def _offer(self, identity: str, item: Any) -> bool:
        digest = blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key).digest()
        place = (int.from_bytes(digest, "big"), identity)
        if identity in self._items or (len(self._kept) == self.capacity and place > self._kept[-1]):
            return False
        bisect.insort(self._kept, place)
        self._items[identity] = item
        if len(self._kept) > self.capacity:
            del self._items[self._kept.pop()[1]]
        return True

    def get(self, identity: str) -> Any | None:
        """The item with this id, None where it is not kept."""
        return self._items.get(identity)

    def items(self) -> list[Any]:
        """What is kept, in the order of the hashes: the same for the same set, however it arrived."""
        return [self._items[identity] for _, identity in self._kept]

    def merged(self, other: Reservoir) -> Reservoir:
        """A sample of both. Raises SketchError for another capacity or seed."""
        if (other.capacity, other.seed) != (self.capacity, self.seed):
            raise SketchError("two reservoirs of different size or seed")
        result = Reservoir(self.capacity, self.seed)
        for part in (self, other):
            for _, identity in part._kept:
                result._offer(identity, part._items[identity])
        result.seen = self.seen + other.seen
        return result

    def state(self) -> dict[str, Any]:
        kept = [[identity, self._items[identity]] for _, identity in self._kept]
        return {"capacity": self.capacity, "seed": self.seed, "seen": self.seen, "kept": kept}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Reservoir:
        result = cls(int(state["capacity"]), int(state["seed"]))
        for identity, item in state["kept"]:
            result._offer(identity, item)
        result.seen = int(state["seen"])
        return result
