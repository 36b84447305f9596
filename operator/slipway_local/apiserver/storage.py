"""Objects in SQLite and in memory, under one growing resource version.

Reads come from memory and see committed state only. A write is decided on the newest state, committed or not, and
then waits for its commit; whatever arrives while a transaction runs goes into the next one. So nothing is acknowledged,
listed or watched that a kill -9 could take back. WAL with synchronous=NORMAL survives the death of the process; the
death of the machine may take the last moments with it.

This module knows no kinds: a resource is a string, an object is JSON with metadata.
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Key = tuple[str, str, str]  # resource, namespace, name

_FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
  resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  version INTEGER NOT NULL, written REAL NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (resource, namespace, name)
);
"""


class StorageError(Exception):
    """The database cannot be opened or written."""


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """One object as it stands at one version."""

    resource: str
    namespace: str
    name: str
    uid: str
    version: int
    raw: bytes
    labels: dict[str, str]
    owners: tuple[str, ...]
    deleting: bool
    written: float

    @property
    def key(self) -> Key:
        """Where the object lives."""
        return (self.resource, self.namespace, self.name)

    def load(self) -> dict[str, Any]:
        """The object, parsed anew: the caller may change it."""
        loaded: dict[str, Any] = orjson.loads(self.raw)
        return loaded


def stored(resource: str, obj: dict[str, Any], version: int, written: float, raw: bytes | None = None) -> Stored:
    """Index an object for storage."""
    metadata = obj["metadata"]
    return Stored(
        resource=resource,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        version=version,
        raw=raw if raw is not None else orjson.dumps(obj),
        labels=metadata.get("labels") or {},
        owners=tuple(owner["uid"] for owner in metadata.get("ownerReferences") or ()),
        deleting="deletionTimestamp" in metadata,
        written=written,
    )


@dataclass(frozen=True, eq=False, slots=True)
class Event:
    """One committed change. `new` of a deletion is the last state, under the version of the deletion."""

    type: EventType
    new: Stored
    old: Stored | None


class History:
    """The newest changes of one resource, in order; a watch reads on from any version after `oldest`."""

    def __init__(self, oldest: int, limit: int) -> None:
        self.oldest = oldest
        self._limit = limit
        self._events: list[Event] = []
        self._dropped = 0

    def append(self, event: Event) -> None:
        """Add a change; the oldest ones are forgotten beyond the limit."""
        self._events.append(event)
        if len(self._events) >= 2 * self._limit:
            surplus = len(self._events) - self._limit
            self.oldest = self._events[surplus - 1].new.version
            del self._events[:surplus]
            self._dropped += surplus

    def cursor(self, version: int) -> int:
        """Where the changes after a version begin. Raises LookupError where some of them are forgotten."""
        if version < self.oldest:
            raise LookupError(self.oldest)
        return self._dropped + bisect_right(self._events, version, key=lambda event: event.new.version)

    def read(self, cursor: int) -> tuple[list[Event], int]:
        """The changes from a cursor on, and the next cursor. Raises LookupError where some are forgotten."""
        if cursor < self._dropped:
            raise LookupError(self.oldest)
        events = self._events[cursor - self._dropped :]
        return events, cursor + len(events)


@dataclass(eq=False, slots=True)
class _Change:
    event: Event
    done: asyncio.Future[Stored]


class Store:
    """All objects. Everything but the commit itself runs on the event loop."""

    def __init__(self, path: Path, *, clock: Callable[[], float], history_limit: int = 8192) -> None:
        self._path = path
        self._clock = clock
        self._history_limit = history_limit
        self._committed: dict[str, dict[str, dict[str, Stored]]] = {}
        self._by_owner: dict[str, set[Key]] = {}
        self._overlay: dict[Key, Stored | None] = {}
        self._pending: list[_Change] = []
        self._committing: list[_Change] = []
        self._histories: dict[str, History] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._allocated = 0
        self.version = 0
        self._start_version = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._closing = False
        self._observers: list[Callable[[Event], None]] = []

    # --- life ---

    def open(self) -> None:
        """Read everything from disk. Raises StorageError for a file that is no database of ours."""
        try:
            self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=10)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            if meta.setdefault("format", _FORMAT) != _FORMAT:
                raise StorageError(f"{self._path}: format {meta['format']} is not {_FORMAT}: made by another version")
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?), ('version', '1')", (_FORMAT,))
            self.version = self._allocated = self._start_version = int(meta.get("version", 1))
            for resource, version, written, data in self._db.execute(
                "SELECT resource, version, written, data FROM objects ORDER BY resource, namespace, name"
            ):
                self._place(stored(resource, orjson.loads(data), version, written, data))
        except sqlite3.Error as failure:
            raise StorageError(f"{self._path}: {failure}") from failure
        self._path.chmod(0o600)

    def start(self) -> None:
        """Begin to commit writes."""
        self._task = asyncio.create_task(self._commit_forever())

    async def close(self) -> None:
        """Commit what is pending and close the file."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._executor.shutdown()
        self._db.close()
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.cancel()

    # --- reading ---

    def get(self, resource: str, namespace: str, name: str) -> Stored | None:
        """The committed object."""
        return self._committed.get(resource, {}).get(namespace, {}).get(name)

    def items(self, resource: str, namespace: str | None = None) -> list[Stored]:
        """The committed objects of a namespace, or of all, ordered by namespace and name."""
        spaces = self._committed.get(resource, {})
        chosen = sorted(spaces) if namespace is None else [namespace] if namespace in spaces else []
        return [space[name] for ns in chosen for space in (spaces[ns],) for name in sorted(space)]

    def dependents(self, uid: str) -> list[Stored]:
        """The committed objects that name this uid as an owner."""
        found = (self.get(*key) for key in sorted(self._by_owner.get(uid, ())))
        return [item for item in found if item is not None]

    def each(self) -> Iterator[Stored]:
        """Every committed object."""
        for spaces in self._committed.values():
            for space in spaces.values():
                yield from space.values()

    def history(self, resource: str) -> History:
        """The changes of a resource since this process started."""
        found = self._histories.get(resource)
        if found is None:
            found = self._histories[resource] = History(self._start_version, self._history_limit)
        return found

    def changed(self, resource: str) -> asyncio.Future[None]:
        """Resolved by the next commit that changes a resource; counts from this call on."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(resource, []).append(waiter)
        return waiter

    def observe(self, observer: Callable[[Event], None]) -> None:
        """Call this, on the loop, with every committed change."""
        self._observers.append(observer)

    # --- writing ---

    def head(self, resource: str, namespace: str, name: str) -> Stored | None:
        """The newest object, committed or about to be: what the next write is decided on."""
        key = (resource, namespace, name)
        return self._overlay[key] if key in self._overlay else self.get(*key)

    def put(self, resource: str, obj: dict[str, Any], old: Stored | None) -> asyncio.Future[Stored]:
        """Write an object over its head `old`; resolved when committed. Raises StorageError through the future."""
        version = self._allocate()
        obj["metadata"]["resourceVersion"] = str(version)
        new = stored(resource, obj, version, self._clock())
        return self._enqueue(Event("MODIFIED" if old else "ADDED", new, old))

    def delete(self, old: Stored, obj: dict[str, Any]) -> asyncio.Future[Stored]:
        """Remove an object whose last state is `obj`."""
        version = self._allocate()
        obj["metadata"]["resourceVersion"] = str(version)
        return self._enqueue(Event("DELETED", stored(old.resource, obj, version, self._clock()), old))

    async def settled(self, item: Stored) -> None:
        """Wait until an object that `head` gave is committed, so that an answer may show it."""
        for change in (*self._committing, *self._pending):
            if change.event.new is item:
                await asyncio.shield(change.done)
                return

    def _allocate(self) -> int:
        self._allocated += 1
        return self._allocated

    def _enqueue(self, event: Event) -> asyncio.Future[Stored]:
        done: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        if self._closing or self._task is None or self._task.done():
            done.set_exception(StorageError("the store is closed"))
            return done
        self._overlay[event.new.key] = None if event.type == "DELETED" else event.new
        self._pending.append(_Change(event, done))
        self._wake.set()
        return done

    # --- committing ---

    async def _commit_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch = self._committing = self._pending
                self._pending = []
                try:
                    await loop.run_in_executor(self._executor, self._commit, [change.event for change in batch])
                except sqlite3.Error as failure:
                    self._fail(batch, failure)
                else:
                    self._publish(batch)
                self._committing = []
            if self._closing:
                return

    def _commit(self, events: list[Event]) -> None:
        last = {event.new.key: event for event in events}
        written = [event.new for event in last.values() if event.type != "DELETED"]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)",
                [(*item.key, item.version, item.written, item.raw) for item in written],
            )
            self._db.executemany(
                "DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?",
                [key for key, event in last.items() if event.type == "DELETED"],
            )
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'version'", (str(events[-1].new.version),))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _publish(self, batch: list[_Change]) -> None:
        touched = set()
        for change in batch:
            event = change.event
            key = event.new.key
            if event.type == "DELETED":
                self._remove(event.new.key)
            else:
                self._place(event.new)
            head = self._overlay.get(key)
            if head is event.new or (head is None and event.type == "DELETED" and not self._rewritten(key)):
                self._overlay.pop(key, None)
            self.history(event.new.resource).append(event)
            touched.add(event.new.resource)
            self.version = event.new.version
            if not change.done.cancelled():
                change.done.set_result(event.new)
            for observer in self._observers:
                observer(event)
        for resource in touched:
            for waiter in self._waiting.pop(resource, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def _rewritten(self, key: Key) -> bool:
        return any(change.event.new.key == key for change in self._pending)

    def _fail(self, batch: list[_Change], failure: sqlite3.Error) -> None:
        # What was decided on a write that did not happen did not happen either.
        lost, self._pending = [*batch, *self._pending], []
        self._overlay.clear()
        for change in lost:
            if not change.done.done():
                change.done.set_exception(StorageError(f"the write was not stored: {failure}"))

    def _place(self, item: Stored) -> None:
        space = self._committed.setdefault(item.resource, {}).setdefault(item.namespace, {})
        before = space.get(item.name)
        if before is not None and before.owners != item.owners:
            self._unindex(before)
        space[item.name] = item
        for uid in item.owners:
            self._by_owner.setdefault(uid, set()).add(item.key)

    def _remove(self, key: Key) -> None:
        resource, namespace, name = key
        spaces = self._committed.get(resource, {})
        item = spaces.get(namespace, {}).pop(name, None)
        if item is not None:
            self._unindex(item)
            if not spaces[namespace]:
                del spaces[namespace]

    def _unindex(self, item: Stored) -> None:
        for uid in item.owners:
            keys = self._by_owner.get(uid)
            if keys is not None:
                keys.discard(item.key)
                if not keys:
                    del self._by_owner[uid]
