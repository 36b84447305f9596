"""Compression of a model directory as a measured step: made, loaded again, verified and measured, then judged.

`compress` makes (or finds) the compressed model of a run contract; `load_compressed` is what an engine serves it with.
Importing this package imports neither torch nor a quantization library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipway_jobs.compress.loading import load_compressed
    from slipway_jobs.compress.step import compress

__all__ = ["compress", "load_compressed"]


def __getattr__(name: str) -> Any:
    if name == "compress":
        from slipway_jobs.compress.step import compress  # noqa: PLC0415

        return compress
    if name == "load_compressed":
        from slipway_jobs.compress.loading import load_compressed  # noqa: PLC0415

        return load_compressed
    raise AttributeError(name)
