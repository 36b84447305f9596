"""What a version's application says, from what a RayService's status says of it."""

from __future__ import annotations

import pytest

from slipway_operator.controllers.deployment.observed import Observed
from slipway_operator.controllers.deployment.rollout import application_states

FRAMES = '  File "engine/model.py", line 57, in load\n    raise OutOfMemory("...")\n'
LAST = "slipway_jobs.errors.OutOfMemory: model: it does not fit the host's memory while loading"


@pytest.mark.parametrize(
    ("deployment", "why"),
    [
        (f"The deployment failed to start 3 times in a row.\nTraceback (most recent call last):\n{FRAMES}{LAST}", LAST),
        (f"...ack):\n{FRAMES}{LAST}\n", LAST),  # a long one, of which the end was kept
        ("waiting for 1 replica to start", "Failed to update the deployments ['Engine']."),
        ("", "Failed to update the deployments ['Engine']."),
    ],
)
def test_the_cause_is_the_last_line_of_a_traceback(deployment: str, why: str) -> None:
    application = {
        "status": "DEPLOY_FAILED",
        "message": "Failed to update the deployments ['Engine'].",
        "serveDeploymentStatuses": {"Engine": {"status": "UNHEALTHY", "message": deployment}},
    }
    service = {"status": {"activeServiceStatus": {"applicationStatuses": {"v-1": application}}}}
    observed = Observed(deployment={}, ray_service=service)
    assert application_states(observed) == {"v-1": ("DEPLOY_FAILED", why)}
