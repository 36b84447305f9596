from __future__ import annotations

import pickle

import pytest

from slipway_api.run import Outcome, RunEnd
from slipway_jobs.errors import MAX_MESSAGE_LENGTH, InfrastructureError, JobError, OutOfMemory, Preempted, UserError

ALL = [
    (UserError, Outcome.USER_ERROR),
    (OutOfMemory, Outcome.OUT_OF_MEMORY),
    (InfrastructureError, Outcome.INFRASTRUCTURE),
    (Preempted, Outcome.PREEMPTED),
]


@pytest.mark.parametrize(("kind", "outcome"), ALL)
def test_crosses_a_process_border_whole(kind: type[JobError], outcome: Outcome) -> None:
    back = pickle.loads(pickle.dumps(kind("DataNotFound", "data.sources[0].uri: /x does not exist")))
    assert type(back) is kind
    assert (back.reason, back.outcome, str(back)) == ("DataNotFound", outcome, "data.sources[0].uri: /x does not exist")


def test_fits_into_the_last_report_however_long_the_message() -> None:
    error = UserError("DataNotFound", "x" * 10_000)
    assert len(str(error)) == MAX_MESSAGE_LENGTH
    RunEnd(outcome=error.outcome, reason=error.reason, message=str(error))


@pytest.mark.parametrize("reason", ["", "not camel", "1st", "lower", "A" * 129])
def test_a_reason_that_a_condition_could_not_hold_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match="CamelCase"):
        UserError(reason, "message")
