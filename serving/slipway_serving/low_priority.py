"""Work that must not slow down what serves beside it: a version that is being loaded takes what the others leave."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

# About a tenth of the CPU that a thread of normal priority gets where both want it, and all of it where none does.
_NICE = 10


def at_low_priority(work: Callable[[], T]) -> T:
    """What `work` returns or raises, done by a thread of its own that others on this machine are preferred to.

    On Linux a nice value belongs to a thread, and a thread inherits that of the one that starts it: start nothing in
    `work` that goes on afterwards. Elsewhere, and where it is not allowed, the priority is the usual one.
    """
    done: Future[T] = Future()

    def run() -> None:
        if sys.platform == "linux":
            mine = threading.get_native_id()
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, mine, min(19, os.getpriority(os.PRIO_PROCESS, mine) + _NICE))
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="low-priority", daemon=True).start()
    return done.result()
