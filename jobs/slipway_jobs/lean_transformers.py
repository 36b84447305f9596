"""Lets transformers do without the optional packages that it would import for features nobody here uses.

transformers imports scikit-learn (for one function of assisted decoding), scipy (for losses of object detection),
torchao and pandas wherever they are installed: 3 s of CPU in every rank of every run, more than torch itself. Whether a
package is there it asks functions of its own, and these are told to say no. (Hiding the packages from Python instead
would hide them from other threads as well: a driver imports Ray, which needs pandas, at the same moment.)

For processes that train or score plain weights. One that lets transformers itself read torchao's quantized weights
calls `whole_transformers` first, and nothing else in the process can take torchao away from it afterwards.
"""

from __future__ import annotations

import sys

_OPTIONAL = ("sklearn", "scipy", "torchao", "pandas")


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


def whole_transformers() -> None:
    """Import transformers with all that it has. Raises RuntimeError where the process has made it lean before."""
    from transformers import modeling_utils  # noqa: PLC0415, F401 - `lean_transformers` changes nothing from here on
    from transformers.utils import import_utils  # noqa: PLC0415

    if import_utils.is_torchao_available is _absent:
        raise RuntimeError("transformers was made lean in this process before it was asked to read quantized weights")


def _absent(*_: object) -> bool:
    return False
