"""The report endpoint: who may speak, what is believed, and when an end counts as delivered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from slipway_api.run import report_token
from slipway_operator.kube.queue import Priority
from slipway_operator.reports import ReportServer, ReportStore, RunKey

KEY = b"operator key"
UID = "11111111-2222"


@dataclass
class Endpoint:
    """The server under test and what its operator knows."""

    store: ReportStore = field(default_factory=ReportStore)
    current: int | None = 1
    ready: bool = True
    woken: list[tuple[RunKey, bool]] = field(default_factory=list)
    client: Any = None

    async def post(self, body: Any, attempt: int = 1, token: str | None = None, uid: str = UID) -> int:
        return int((await self.answer(body, attempt, token, uid)).status)

    async def answer(self, body: Any, attempt: int = 1, token: str | None = None, uid: str = UID) -> Any:
        bearer = report_token(KEY, uid, attempt) if token is None else token
        return await self.client.post(
            f"/v1/runs/trainjobs/team/job/{uid}/{attempt}", json=body, headers={"Authorization": f"Bearer {bearer}"}
        )


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    server = ReportServer(
        made.store,
        KEY,
        current_attempt=lambda _: made.current,
        on_report=lambda key, priority: made.woken.append((key, priority)),
        ready=lambda: made.ready,
    )
    async with TestClient(TestServer(server.app())) as client:
        made.client = client
        yield made


def report(sequence: int = 1, stage: str = "Training", **fields: Any) -> dict[str, Any]:
    return {"sequence": sequence, "time": "2026-01-01T00:00:00Z", "stage": stage, **fields}


END = {"outcome": "UserError", "reason": "DataNotFound", "message": "no"}


async def test_a_report_is_kept_and_wakes_the_reconciler(endpoint: Endpoint) -> None:
    assert await endpoint.post(report()) == 200
    attempt, kept = endpoint.store.latest(UID)
    assert (attempt, kept.stage if kept else None) == (1, "Training")
    assert endpoint.woken == [(RunKey("trainjobs", "team", "job", UID, 1), True)]


async def test_the_compressions_of_a_deployment_report_as_runs_do(endpoint: Endpoint) -> None:
    path, headers = f"/v1/runs/deployments/team/chat/{UID}", {"Authorization": f"Bearer {report_token(KEY, UID, 1)}"}
    assert (await endpoint.client.post(f"{path}/1", json=report(stage="Compressing"), headers=headers)).status == 200
    assert endpoint.woken == [(RunKey("deployments", "team", "chat", UID, 1), True)]
    # Attempt 0 is its router's, with a token of its own.
    assert (await endpoint.client.post(f"{path}/0", json=report(), headers=headers)).status == 404


async def test_progress_within_a_stage_is_not_urgent(endpoint: Endpoint) -> None:
    await endpoint.post(report(1))
    await endpoint.post(report(2))
    assert [priority for _, priority in endpoint.woken] == [Priority.HIGH, None]


async def test_an_older_report_does_not_replace_a_newer_one(endpoint: Endpoint) -> None:
    await endpoint.post(report(5, "SavingModel"))
    assert await endpoint.post(report(4)) == 200
    assert endpoint.store.latest(UID)[1].stage == "SavingModel"  # type: ignore[union-attr]
    assert len(endpoint.woken) == 1


@pytest.mark.parametrize("token", ["", "wrong", "é" * 32, report_token(KEY, UID, 2), report_token(b"other", UID, 1)])
async def test_only_the_token_of_this_attempt_may_speak(endpoint: Endpoint, token: str) -> None:
    assert await endpoint.post(report(), token=token.encode("utf-8").decode("latin-1")) == 401
    assert endpoint.store.latest(UID) == (0, None)


async def test_unknown_job_and_superseded_attempt_are_final(endpoint: Endpoint) -> None:
    endpoint.current = None
    assert await endpoint.post(report()) == 404
    endpoint.current = 2
    assert await endpoint.post(report()) == 410


async def test_not_ready_asks_to_come_back(endpoint: Endpoint) -> None:
    assert (await endpoint.answer(report())).headers.get("Connection") != "close"
    endpoint.ready = False
    answer = await endpoint.answer(report())
    assert answer.status == 503
    assert answer.headers["Connection"] == "close", "the next try must be free to reach another replica"


@pytest.mark.parametrize("body", [{}, [], {"stage": "Dancing"}, report(extra=1), report(-1)])
async def test_what_is_not_a_report_is_refused(endpoint: Endpoint, body: Any) -> None:
    assert await endpoint.post(body) == 400
    assert endpoint.woken == []


async def test_a_giant_is_refused(endpoint: Endpoint) -> None:
    assert await endpoint.post(report(end={**END, "message": "x" * 300_000})) == 413


async def test_an_end_is_acknowledged_only_when_it_is_durable(endpoint: Endpoint) -> None:
    sending = asyncio.create_task(endpoint.post(report(9, "Ended", end=END)))
    await asyncio.sleep(0.05)
    assert not sending.done()
    await endpoint.store.mark_ended(UID, 1)
    assert await sending == 200
    assert await endpoint.post(report(9, "Ended", end=END)) == 200, "sent again, acknowledged at once"


async def test_an_end_that_is_not_written_in_time_must_be_sent_again(endpoint: Endpoint) -> None:
    assert not await endpoint.store.wait_ended(UID, 1, timeout=0.01)
