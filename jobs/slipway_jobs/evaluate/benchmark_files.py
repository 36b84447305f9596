"""Benchmarks that come by URI: what the harness is given is checked, complete and harmless.

The harness trusts its task files: a YAML tag imports Python, a metric may be a script that is downloaded, a data set
may be a pickle. That is right for the files that it ships, and wrong for one that a manifest names. So a file that
comes by URI is data:

- it is parsed here, with YAML's own types only; `!function` and every other tag is refused with its line;
- what could only hold code is refused (process_docs, process_results, class, custom_dataset, use_prompt, ...);
- metrics and aggregations are the harness's own, by name;
- its data are json, parquet, csv or text files below the same directory. Nothing is fetched from elsewhere, so such a
  benchmark needs no network and its digest covers all that decides its scores.

The harness never reads the original: what was checked is written anew, includes merged and paths resolved. Templates
stay (they are how a task makes its prompts) and are rendered in a sandbox (benchmark.py).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.benchmark_index import not_found
from slipway_jobs.storage import Storage

FORMATS = ("json", "parquet", "csv", "text")
_MAX_YAML_BYTES = 1 << 20
_MAX_YAML_FILES = 2000
_MAX_NODES = 200_000  # with every alias written out: a small file can stand for billions
_SUFFIXES = (".yaml", ".yml")
_LOADER_OPTIONS = ("data_files", "field", "sep", "delimiter", "column_names", "sample_by", "encoding")
_CODE = {
    "class": "it names a Python class",
    "custom_dataset": "it is a Python function",
    "process_docs": "it is a Python function; prepare the data beforehand",
    "process_results": "it is a Python function; use metric_list and filter_list",
    "unsafe_code": "such a task runs what the model writes",
    "use_prompt": "it reads a file or package of its own; write doc_to_text and doc_to_target",
    "doc_to_image": "only text is measured",
    "doc_to_audio": "only text is measured",
}
_YAML_TYPES = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp")
)


@dataclass(frozen=True)
class LocalTasks:
    """Checked task files. `directory` is for the harness's include_path; `names` is what to run, in order.
    `configs` is what the files say, includes merged: it decides the scores, and names no path of this machine."""

    directory: Path
    names: tuple[str, ...]
    configs: Mapping[str, Mapping[str, Any]]


def fetch_tasks(uri: str, work: Path, *, field: str) -> LocalTasks:
    """Check the task file, or every task file below the directory, and write what the harness may read below `work`.

    Raises UserError BenchmarkNotFound, BenchmarkInvalid (with file and line), BenchmarkCodeRefused or
    BenchmarkDataUnavailable, or what Storage raises.
    """
    reader = _Reader.of(uri, field)
    configs: dict[str, tuple[str, dict[str, Any]]] = {}
    for relative in reader.task_files():
        config = reader.load(relative)
        name = config.get("group") or config.get("task")
        if name is None:
            continue  # holds what others include
        if not isinstance(name, str):
            raise reader.invalid(relative, "task (or, for a group, group) must be a name")
        if name in configs:
            raise reader.invalid(relative, f"{name!r} is also the name in {configs[name][0]}; names must differ")
        configs[name] = (relative, config)
    if not configs:
        raise UserError("BenchmarkNotFound", f"{field}: no file of {uri} has a task or group; see the harness's guide")
    checked = {
        name: _checked(config, reader, relative, set(configs), work) for name, (relative, config) in configs.items()
    }
    tasks = work / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(sorted(checked)):
        (tasks / f"{number:04d}.yaml").write_text(yaml.safe_dump(checked[name], allow_unicode=True), encoding="utf-8")
    inside = {member for config in checked.values() for member in _members(config)}
    names = tuple(sorted(name for name in checked if name not in inside))
    return LocalTasks(tasks, names or tuple(sorted(checked)), {name: config for name, (_, config) in configs.items()})


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """The files below the directory that the URI names, or that its file lies in."""

    storage: Storage
    single: str | None  # the URI names this file
    field: str

    @classmethod
    def of(cls, uri: str, field: str) -> _Reader:
        whole = Storage(uri, field=field)
        try:
            kind = whole.info()["type"]
        except FileNotFoundError as error:
            raise UserError("BenchmarkNotFound", f"{field}: there is nothing at {uri}; check the path") from error
        if kind != "file":
            return cls(whole, None, field)
        parent, _, name = uri.rstrip("/").rpartition("/")
        return cls(Storage(parent or "/", field=field), name, field)

    def task_files(self) -> list[str]:
        if self.single is not None:
            return [self.single]
        found = [
            name
            for name in self.storage.find()
            if name.endswith(_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
        ]
        if len(found) > _MAX_YAML_FILES:
            raise UserError("BenchmarkInvalid", f"{self.field}: {len(found)} task files, more than {_MAX_YAML_FILES}")
        return found

    def load(self, relative: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
        """A file's mapping with its includes merged below it, as the harness merges them."""
        if relative in seen:
            raise self.invalid(relative, f"include: the files include each other ({' -> '.join((*seen, relative))})")
        config = self._parse(relative)
        includes = config.pop("include", None) or []
        merged: dict[str, Any] = {}
        for include in [includes] if isinstance(includes, str) else includes:
            inner = self.load(self.beside(relative, include, "include"), (*seen, relative))
            inner.pop("task_list", None)
            merged.update(inner)
        return merged | config

    def beside(self, relative: str, name: Any, what: str) -> str:
        """A path that a file names, relative to itself, as one below the directory."""
        if not isinstance(name, str) or not name or "://" in name or name.startswith("/") or "\x00" in name:
            raise self.invalid(relative, f"{what}: {name!r} must be the relative path of a file beside the task's")
        if any(character in name for character in "*?["):
            raise self.invalid(relative, f"{what}: {name!r} is a pattern; name each file")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(relative), name))
        if path.startswith("../") or path == "..":
            raise self.invalid(relative, f"{what}: {name!r} leads out of {self.storage.uri}; put the file below it")
        return path

    def _parse(self, relative: str) -> dict[str, Any]:
        try:
            if int(self.storage.info(relative)["size"]) > _MAX_YAML_BYTES:
                raise self.invalid(relative, f"larger than {_MAX_YAML_BYTES >> 20} MiB; put data into files of its own")
            text = self.storage.read_bytes(relative).decode("utf-8")
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self._check_nodes(relative, node)
            config = yaml.safe_load(text)
        except FileNotFoundError as error:
            raise self.invalid(relative, "there is no such file; check the include") from error
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or error
            raise UserError(
                "BenchmarkInvalid", f"{self.field}: {self.where(relative)}{line}: not YAML: {problem}"
            ) from error
        if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
            raise self.invalid(relative, "a task file must be a mapping of names")
        return config

    def _check_nodes(self, relative: str, root: yaml.Node | None) -> None:
        """No tag but YAML's own types; not too many nodes, each alias counted as what it stands for."""
        sizes: dict[int, int] = {}
        open_nodes: set[int] = set()

        def size(node: yaml.Node) -> int:
            if id(node) in sizes:
                return sizes[id(node)]
            if node.tag not in _YAML_TYPES or id(node) in open_nodes:
                line = node.start_mark.line + 1
                reason = "BenchmarkInvalid" if id(node) in open_nodes else "BenchmarkCodeRefused"
                what = "an alias of itself" if id(node) in open_nodes else f"the tag {_short_tag(node.tag)} is refused"
                raise UserError(
                    reason,
                    f"{self.field}: {self.where(relative)}, line {line}: {what}: a task that comes by uri is data and "
                    "may not run Python; use templates, metric_list and filter_list, or prepare the data beforehand",
                )
            open_nodes.add(id(node))
            sizes[id(node)] = total = 1 + sum(map(size, _children(node)))
            open_nodes.discard(id(node))
            if total > _MAX_NODES:
                raise self.invalid(relative, "its aliases stand for too much; write it out")
            return total

        if root is not None:
            size(root)

    def where(self, relative: str) -> str:
        return self.storage.join(relative).uri

    def invalid(self, relative: str, what: str) -> UserError:
        return UserError("BenchmarkInvalid", f"{self.field}: {self.where(relative)}: {what}")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


# --- checking -----------------------------------------------------------------------------------------------------


def _members(config: Mapping[str, Any]) -> Iterable[str]:
    """The names that a group lists, through the groups that it defines in place."""
    if "group" not in config or not isinstance(config.get("task"), list):
        return
    for item in config["task"]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from _members(item)
            name = item.get("group") if "group" in item else item.get("task")
            if isinstance(name, str):
                yield name


def _checked(
    config: dict[str, Any], reader: _Reader, relative: str, names: set[str], work: Path, where: str = ""
) -> dict[str, Any]:
    """The configuration of a task or group with its paths resolved, or the error that says what is refused."""
    for key, why in _CODE.items():
        if config.get(key) not in (None, False):
            raise UserError(
                "BenchmarkCodeRefused",
                f"{reader.field}: {reader.where(relative)}: {where}{key} is refused in a task that comes by uri: {why}",
            )
    checked = dict(config)
    fewshot = checked.get("fewshot_config")
    if isinstance(fewshot, dict):
        checked["fewshot_config"] = _checked(fewshot, reader, relative, names, work, f"{where}fewshot_config.")
    _check_metrics(checked, reader, relative)
    if "group" in checked and isinstance(checked.get("task"), list):
        checked["task"] = [
            _checked_member(item, reader, relative, names, work, f"{where}task[{number}]")
            for number, item in enumerate(checked["task"])
        ]
    if "dataset_path" in checked or "dataset_kwargs" in checked:
        _resolve_data(checked, reader, relative, work, where)
    return checked


def _checked_member(item: Any, reader: _Reader, relative: str, names: set[str], work: Path, where: str) -> Any:
    if isinstance(item, dict):
        # A task by a new name is one that the group defines in place; the harness checks that it is complete.
        return _checked(item, reader, relative, names, work, f"{where}.")
    if not isinstance(item, str):
        raise reader.invalid(relative, f"{where}: {item!r} must be a name or a task")
    if item not in names:
        raise not_found(item, sorted(names), f"{reader.field}: {reader.where(relative)}: {where}")
    return item


def _check_metrics(config: Mapping[str, Any], reader: _Reader, relative: str) -> None:
    """Metrics and aggregations by name, of those that the harness has: it would look for others on the hub and run
    what it finds."""
    import lm_eval.api.metrics  # noqa: F401, PLC0415 - fills the registries
    from lm_eval.api.registry import AGGREGATION_REGISTRY, metric_registry  # noqa: PLC0415

    listed = config.get("metric_list") or []
    for number, metric in enumerate(listed if isinstance(listed, list) else [listed]):
        where = f"metric_list[{number}]"
        if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str):
            raise reader.invalid(relative, f"{where}: must be a mapping with the name of a metric")
        for key, registry in (("metric", metric_registry), ("aggregation", AGGREGATION_REGISTRY)):
            if key in metric and metric[key] not in registry:
                known = ", ".join(sorted(registry))
                raise reader.invalid(relative, f"{where}.{key}: the harness has no {metric[key]!r}; it has {known}")
        if metric.get("hf_evaluate"):
            raise UserError(
                "BenchmarkCodeRefused",
                f"{reader.field}: {reader.where(relative)}: {where}.hf_evaluate is refused: such a metric is a script "
                "that is downloaded; use one of the harness's own",
            )


def _resolve_data(config: dict[str, Any], reader: _Reader, relative: str, work: Path, where: str) -> None:
    """Point dataset_kwargs.data_files at local files, and the loader's cache at this run's scratch directory."""
    path = config.get("dataset_path")
    if path not in FORMATS:
        raise UserError(
            "BenchmarkCodeRefused",
            f"{reader.field}: {reader.where(relative)}: {where}dataset_path is {path!r}: the data of a task that comes "
            f"by uri must lie beside it: put the files there and use one of {', '.join(FORMATS)} with "
            "dataset_kwargs.data_files",
        )
    options = config.get("dataset_kwargs") or {}
    where = f"{where}dataset_kwargs"
    if not isinstance(options, dict) or not options.get("data_files"):
        raise reader.invalid(relative, f"{where}.data_files: name the files, for each split")
    for key in options:
        if key not in _LOADER_OPTIONS:
            raise reader.invalid(relative, f"{where}.{key} is refused; known are {', '.join(_LOADER_OPTIONS)}")
    files = options["data_files"]
    splits = files if isinstance(files, dict) else {"train": files}
    resolved = {
        str(split): [
            _local(reader, relative, name, work, f"{where}.data_files")
            for name in (listed if isinstance(listed, list) else [listed])
        ]
        for split, listed in splits.items()
    }
    config["dataset_kwargs"] = {**options, "data_files": resolved, "cache_dir": str(work / "datasets")}


def _local(reader: _Reader, relative: str, name: Any, work: Path, where: str) -> str:
    """The local path of a data file; fetched where the storage is not a local one."""
    beside = reader.beside(relative, name, where)
    unavailable = UserError(
        "BenchmarkDataUnavailable",
        f"{reader.field}: {reader.where(relative)}: {where}: there is no file {reader.where(beside)}; put it there",
    )
    try:
        if reader.storage.info(beside)["type"] != "file":
            raise unavailable
        if reader.storage.local_path is not None:
            return str(reader.storage.local_path / beside)
        if not (work / "data" / beside).exists():
            reader.storage.download("", work / "data", [beside])
    except FileNotFoundError as error:
        raise unavailable from error
    return str(work / "data" / beside)
