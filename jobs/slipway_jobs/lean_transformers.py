"""Lets transformers do without the optional packages that it would import for features nobody here uses.

transformers imports scikit-learn (for one function of assisted decoding), torchao and pandas wherever they are
installed: 2.5 s of CPU in every rank of every run, as much as torch itself. Whether a package is there it asks
functions of its own, and these are told to say no. (Hiding the packages from Python instead would hide them from other
threads as well: a driver imports Ray, which needs pandas, at the same moment.)

For processes that train or score plain weights. One that lets transformers itself read torchao's quantized weights
must not call it.
"""

from __future__ import annotations

import sys

_OPTIONAL = ("sklearn", "torchao", "pandas")


def lean_transformers() -> None:
    """Call before anything else of transformers is imported; afterwards it changes nothing."""
    if "transformers.modeling_utils" in sys.modules:
        return
    import transformers.utils  # noqa: PLC0415 - the point of it
    from transformers.utils import import_utils  # noqa: PLC0415

    for name in _OPTIONAL:
        for module in (import_utils, transformers.utils):
            if hasattr(module, f"is_{name}_available"):
                setattr(module, f"is_{name}_available", _absent)


def _absent(*_: object) -> bool:
    return False
