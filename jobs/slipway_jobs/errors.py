"""The errors of everything that runs inside Ray, drawn in one place.

Each class stands for one decision that the operator takes about a run that has ended (`slipway_api.run.Outcome`):
stop at once, plan anew, try again, try again without counting. Code raises the class that it means; the driver
turns it into the run's last report and exit code. A foreign exception is chained where it crosses into our code
(`raise UserError(...) from error`), so that nothing above needs to know which library spoke.

A message is one sentence for the person who wrote the manifest: the field's path, the file and line where there is
one, what is wrong, and what to do. It never holds a secret.
"""

from __future__ import annotations

import re
from typing import ClassVar

from slipway_api.run import Outcome

MAX_MESSAGE_LENGTH = 4096  # what status.conditions[].message can hold (slipway_api.base.LongText)
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,127}")
# Of torch's allocator and of mmap, which say it in a RuntimeError.
_NO_MEMORY = re.compile(r"(cannot|can't|failed to) allocate memory|not enough memory", re.IGNORECASE)


class JobError(Exception):
    """The run cannot go on. `reason` is a CamelCase word for programs, the message a sentence for people.

    The message is cut to MAX_MESSAGE_LENGTH characters. Raises ValueError for a reason that a condition could not hold.
    """

    outcome: ClassVar[Outcome] = Outcome.INFRASTRUCTURE

    def __init__(self, reason: str, message: str) -> None:
        if not _REASON.fullmatch(reason):
            raise ValueError(f"not a CamelCase reason: {reason!r}")
        if len(message) > MAX_MESSAGE_LENGTH:
            message = message[: MAX_MESSAGE_LENGTH - 4] + " ..."
        # Both go to Exception.args: that is what pickle hands back to __init__ in the process that receives it.
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class UserError(JobError):
    """The manifest or what it points at is wrong. Trying again cannot help."""

    outcome = Outcome.USER_ERROR


class OutOfMemory(JobError):  # noqa: N818 - named like the outcome that it stands for
    """The host or the device ran out of memory. A smaller plan may fit."""

    outcome = Outcome.OUT_OF_MEMORY


class InfrastructureError(JobError):
    """Storage, network, a node or a peer failed. The same work may succeed elsewhere or later."""

    outcome = Outcome.INFRASTRUCTURE


class Preempted(JobError):  # noqa: N818 - named like the outcome that it stands for
    """The run was told to leave. It tries again, and the attempt does not count."""

    outcome = Outcome.PREEMPTED


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a foreign exception says that the host or the device has no memory left, whatever its class is."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"} or _NO_MEMORY.search(str(error)))
