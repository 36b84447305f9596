"""Keeps what quantization libraries say out of a run's log, and makes one line of what they throw."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_TALKERS = ("bitsandbytes", "torch.utils._pytree", "torchao")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and advice of quantization libraries out of the run's log. Errors still come as exceptions."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    levels = {name: logging.getLogger(name).level for name in _TALKERS}
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an exception says, cut to a line."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
