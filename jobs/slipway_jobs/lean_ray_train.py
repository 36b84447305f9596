"""Lets Ray Train do without Ray Data, which it imports for datasets that nobody here gives it.

With Ray 2.60 that is a third of what `import ray.train` costs: half a second of CPU and more in the driver and in each
rank of every run, before the first step. What Ray Train takes from it while it is imported are names for annotations
and for base values, so empty classes do; who would make an object of one is told.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LEFT_OUT = "ray.data"


def lean_ray_train() -> None:
    """Call before ray.train is imported; where Ray Data is there already it changes nothing."""
    if _LEFT_OUT not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder, Loader):
    """Finds an empty package for Ray Data and for whatever is below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _LEFT_OUT or fullname.startswith(f"{_LEFT_OUT}."):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _Empty(ModuleType):
    """Has a class of every name that it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Absent,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Absent:
    def __init__(self, *_: Any, **__: Any) -> None:
        words = f"{type(self).__module__}.{type(self).__name__}"
        raise RuntimeError(f"{words}: this process has been started without Ray Data (slipway_jobs.lean_ray_train)")
