"""The endpoint that runs report to, and the store of their newest reports.

A report is a whole state, so only the newest of each attempt is kept, in memory: the next one replaces a lost one.
The end is different: it is acknowledged only after the job's status holds it, so a run that was told 200 may die.
Runs hold no Kubernetes credentials; each attempt has a token that is good for itself alone.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import ValidationError

from slipway_api.run import REPORT_PATH, Report, report_token
from slipway_api.serving import ServingReport
from slipway_operator.kube.queue import Priority

MAX_BODY = 256 * 1024
_END_WAIT_SECONDS = 15.0


@dataclass(frozen=True)
class RunKey:
    """One attempt of one object; `kind` is the plural (trainjobs, evaljobs, deployments)."""

    kind: str
    namespace: str
    name: str
    uid: str
    attempt: int


class ReportStore:
    """The newest report of each job's newest attempt, and which ends are durable."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[int, Report]] = {}  # uid -> (attempt, report)
        self._ended: dict[str, int] = {}  # uid -> newest attempt whose end is in the stored status
        self._changed = asyncio.Condition()

    def latest(self, uid: str) -> tuple[int, Report | None]:
        """(attempt, report) of the job's newest attempt that has reported; (0, None) before the first."""
        return self._reports.get(uid, (0, None))

    def offer(self, key: RunKey, report: Report) -> bool:
        """Keep a report unless a newer one is known; whether it was kept."""
        attempt, known = self._reports.get(key.uid, (0, None))
        if key.attempt < attempt or (key.attempt == attempt and known and known.sequence > report.sequence):
            return False
        self._reports[key.uid] = (key.attempt, report)
        return True

    async def mark_ended(self, uid: str, attempt: int) -> None:
        """The stored status holds the end of this attempt."""
        if self._ended.get(uid, 0) >= attempt:
            return
        async with self._changed:
            self._ended[uid] = attempt
            self._changed.notify_all()

    async def wait_ended(self, uid: str, attempt: int, timeout: float = _END_WAIT_SECONDS) -> bool:  # noqa: ASYNC109
        """Wait until the end of this attempt is durable; False when that takes longer than `timeout` seconds."""
        async with self._changed:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait_for(lambda: self._ended.get(uid, 0) >= attempt)
            except TimeoutError:
                return False
        return True

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._reports.pop(uid, None)
        self._ended.pop(uid, None)


class ReportServer:
    """POST /v1/runs/{kind}/{namespace}/{name}/{uid}/{attempt}.

    200 accepted (an end: and durable) · 400 not a report · 401 no or wrong token · 404 no such job · 410 the attempt is
    over or was never started, a run must stop · 413 too large · 503 not ready, try again.

    A 503 closes the connection: behind a Service that is how a run gets from a replica that waits to the leading one.
    A Deployment's routers report to .../deployments/... with attempt 0, and never end; its compressions are runs.
    """

    def __init__(
        self,
        store: ReportStore,
        key: bytes,
        *,
        current_attempt: Callable[[RunKey], int | None],
        on_report: Callable[[RunKey, Priority | None], None],
        ready: Callable[[], bool],
        on_serving_report: Callable[[RunKey, ServingReport], bool] | None = None,
    ) -> None:
        """`current_attempt`: number of the job's newest attempt, 0 before the first, None when there is no such job.
        `on_report(key, priority)`: wake the reconciler; None: in time. `on_serving_report(key, report)`: keep it;
        whether it is new."""
        self._on_serving_report = on_serving_report
        self._store = store
        self._key = key
        self._current_attempt = current_attempt
        self._on_report = on_report
        self._ready = ready

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(
            REPORT_PATH + "/{kind:trainjobs|evaljobs}/{namespace}/{name}/{uid}/{attempt:[0-9]{1,9}}", self._receive
        )
        app.router.add_post(
            REPORT_PATH + "/{kind:deployments}/{namespace}/{name}/{uid}/{attempt:[1-9][0-9]{0,8}}", self._receive
        )
        if self._on_serving_report is not None:
            app.router.add_post(
                REPORT_PATH + "/{kind:deployments}/{namespace}/{name}/{uid}/{attempt:0}", self._receive_serving
            )
        return app

    def _admit(self, request: web.Request) -> RunKey | web.Response:
        """Who speaks, or why it is not heard."""
        info = request.match_info
        key = RunKey(info["kind"], info["namespace"], info["name"], info["uid"], int(info["attempt"]))
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        # Compare as bytes: compare_digest refuses str with non-ASCII characters, which a caller may well send.
        expected = report_token(self._key, key.uid, key.attempt).encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode("utf-8", "replace"), expected):
            return _answer(401, "the bearer token is not the one of this attempt")
        if not self._ready():
            return _answer(503, "the operator is still reading the cluster's state")
        current = self._current_attempt(key)
        if current is None:
            return _answer(404, f"{key.kind}: no {key.namespace}/{key.name} with uid {key.uid}")
        if key.attempt < current:
            return _answer(410, f"attempt {key.attempt} is over, attempt {current} took its place: stop")
        return key

    async def _receive(self, request: web.Request) -> web.Response:
        key = self._admit(request)
        if isinstance(key, web.Response):
            return key
        try:
            report = Report.model_validate_json(await request.read())
        except ValidationError as error:
            return _not_a_report(error)
        _, known = self._store.latest(key.uid)
        kept = self._store.offer(key, report)
        if kept:
            news = known is None or known.stage != report.stage
            # An end first, also where a thousand jobs wait to begin: its GPUs are theirs next, and the run waits here.
            self._on_report(key, Priority.URGENT if report.end is not None else Priority.HIGH if news else None)
        if report.end is not None and not await self._store.wait_ended(key.uid, key.attempt):
            return _answer(503, "the end is not yet written to the job's status: send it again")
        return _answer(200, "accepted" if kept else "a newer report is known")

    async def _receive_serving(self, request: web.Request) -> web.Response:
        assert self._on_serving_report is not None
        key = self._admit(request)
        if isinstance(key, web.Response):
            return key
        try:
            report = ServingReport.model_validate_json(await request.read())
        except ValidationError as error:
            return _not_a_report(error)
        kept = self._on_serving_report(key, report)
        return _answer(200, "accepted" if kept else "a newer report is known")


def _not_a_report(error: ValidationError) -> web.Response:
    first = error.errors()[0]
    return _answer(400, f"not a report: {'.'.join(map(str, first['loc']))}: {first['msg']}")


def _answer(status: int, message: str) -> web.Response:
    answer = web.json_response({"message": message}, status=status)
    if status == 503:
        answer.force_close()
    return answer
