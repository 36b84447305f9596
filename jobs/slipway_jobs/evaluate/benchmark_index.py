"""Which benchmarks lm-evaluation-harness brings, found without reading its fifteen thousand files each time.

The harness builds its index of names by parsing every YAML file that it ships: 15 s of CPU for each process. The index
depends on nothing but the version, so it is kept as one small file in the namespace's cache and read back in a tenth of
a second. What is kept is where each name's file lies, never the content: a task is always loaded by the harness itself.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from slipway_jobs.errors import JobError, UserError
from slipway_jobs.storage import Storage

_FORMAT = 1
_SUGGESTIONS = 5


def builtin_tasks(cache: Storage | None, progress: Callable[[str], None] = lambda _: None) -> Any:
    """A `TaskManager` that knows every task, group and tag of the installed lm_eval. A cache that cannot be used costs
    time, never the run."""
    import lm_eval.tasks  # noqa: PLC0415
    from lm_eval.tasks._index import TaskIndex  # noqa: PLC0415

    root = Path(lm_eval.tasks.__file__).parent
    name = f"benchmarks/lm-eval-{lm_eval.__version__}.json"
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    index = _read(cache, name, root) if cache is not None else None
    if index is None:
        progress("benchmark: reading the harness's list of tasks (once for each version)")
        index = TaskIndex.build([root])
        if cache is not None:
            _write(cache, name, root, index)
    # The manager offers no way to be given an index; lm_eval is pinned, and a test loads a task through this one.
    manager._index = index
    manager._all_tasks = sorted(index)
    return manager


def not_found(name: str, names: list[str], field: str) -> UserError:
    """The error for a name that there is not, with the nearest ones."""
    lower = {known.lower(): known for known in names}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=_SUGGESTIONS, cutoff=0.5)]
    advice = f"did you mean {', '.join(near)}?" if near else "see the harness's list of tasks"
    return UserError("BenchmarkNotFound", f"{field}: lm-evaluation-harness has no task or group {name!r}; {advice}")


def configurations(manager: Any, name: str, seen: set[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what its file says) of a task and, through groups and tags, of all that it stands for. No function of a
    file is imported yet."""
    from lm_eval.tasks._yaml_loader import load_yaml  # noqa: PLC0415

    seen = set() if seen is None else seen
    entry = manager.task_index.get(name)
    if entry is None or name in seen:
        return
    seen.add(name)
    members: list[Any] = sorted(entry.tags) if entry.yaml_path is None else []
    if entry.yaml_path is not None:
        config = load_yaml(entry.yaml_path, resolve_func=False)
        yield name, config
        members = config["task"] if isinstance(config.get("task"), list) else []
    for member in members:
        inner = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(inner, str):
            yield from configurations(manager, inner, seen)


def _read(cache: Storage, name: str, root: Path) -> dict[str, Any] | None:
    """The index as it was kept, or None."""
    from lm_eval.tasks._index import Entry, Kind  # noqa: PLC0415

    try:
        document = json.loads(cache.read_bytes(name))
        paths = [PurePosixPath(path) for _, path, _ in document["entries"].values() if path is not None]
        # A built-in task's file may run Python; who can write to the cache must not choose that file.
        if document["format"] != _FORMAT or any(path.is_absolute() or ".." in path.parts for path in paths):
            return None
        return {
            key: Entry(key, Kind[kind], None if path is None else root / path, tags=set(tags))
            for key, (kind, path, tags) in document["entries"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, JobError):
        return None


def _write(cache: Storage, name: str, root: Path, index: dict[str, Any]) -> None:
    """Keep the index. Entries whose file lies elsewhere (there are none today) would not travel to another machine."""
    entries = {
        key: (
            entry.kind.name,
            None if entry.yaml_path is None else entry.yaml_path.relative_to(root).as_posix(),
            sorted(entry.tags),
        )
        for key, entry in index.items()
    }
    try:
        cache.write_bytes_atomic(name, json.dumps({"format": _FORMAT, "entries": entries}).encode())
    except (OSError, JobError):
        return
