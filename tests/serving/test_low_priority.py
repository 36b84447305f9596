"""Loading at low priority: what it is, and that nothing inherits it."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from slipway_serving.low_priority import at_low_priority


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="a nice value belongs to a thread on Linux only")
def test_the_work_is_done_by_a_thread_that_others_are_preferred_to() -> None:
    before = nice()
    assert at_low_priority(nice) == min(19, before + 10)
    assert nice() == before


def test_what_it_raises_is_raised() -> None:
    def work() -> None:
        raise KeyError("no weights")

    with pytest.raises(KeyError, match="no weights"):
        at_low_priority(work)
