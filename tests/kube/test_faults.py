"""What the control plane goes through, and that the world ends as if it had not.

One scenario is one namespace with six TrainJobs, two of which lose their first attempt; the operator reaches the real
API server through the fault proxy, as a service account with the rights in verbs.txt and no others. Half of the jobs
exist when the fault begins, half are created while it lasts. Execution is played (runs.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slipway_api import conditions as c
from slipway_local.kubernetes.binaries import API_SERVER, ETCD
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import KubeError, NotFound
from slipway_operator.kube.resource import (
    CRDS,
    DEPLOYMENTS,
    EVALJOBS,
    EVENTS,
    NAMESPACES,
    RAYJOBS,
    RAYSERVICES,
    SECRETS,
    TRAINJOBS,
    Resource,
)

from .cluster import Cluster, eventually, operating
from .conftest import require_binaries
from .fault_proxy import WRITES, FaultProxy, delay, lose_answer, reject
from .kuberay_process import free_port
from .runs import Runs

pytestmark = pytest.mark.slow

VERBS = Path(__file__).with_name("verbs.txt")
FIRST = ("a-1", "a-2", "a-retry")
SECOND = ("b-1", "b-2", "b-retry")
RECOVERY_SECONDS = 30.0
BUSIEST_SECOND = 150
"""Requests in the busiest second of a scenario. Six jobs need about forty in all: no fault may become a storm."""

ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")

used: set[str] = set()
"""Every verb that any scenario has used; compared with verbs.txt at the end."""
staged: list[str] = []
"""The namespaces of the scenarios that ran."""


@dataclass
class Stage:
    """What a scenario can do things to."""

    control_plane: ControlPlane
    cluster: Cluster
    proxy: FaultProxy
    runs: Runs

    async def create(self, *names: str) -> None:
        """TrainJobs, as soon as the server takes them."""
        for name in names:
            await eventually(functools.partial(self._created, name))

    async def _created(self, name: str) -> bool:
        try:
            await self.cluster.create(name)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
        return True

    async def settled(self, *names: str, limit: float = RECOVERY_SECONDS) -> None:
        """Waits until all of these TrainJobs have ended."""

        async def ended() -> bool:
            jobs = {job["metadata"]["name"]: job for job in await self.cluster.all(TRAINJOBS)}
            return all(
                c.is_true((jobs.get(name, {}).get("status") or {}).get("conditions", []), c.SUCCEEDED) for name in names
            )

        await eventually(ended, limit)

    async def world(self) -> dict[str, Any]:
        """Everything that the operator is answerable for, without what differs from run to run."""
        jobs = await self.cluster.all(TRAINJOBS)
        return {
            "TrainJob": {
                job["metadata"]["name"]: (
                    sorted((k["type"], k["status"], k["reason"]) for k in job["status"]["conditions"]),
                    [record["outcome"] for record in job["status"]["attempts"]],
                )
                for job in jobs
            },
            "RayJob": sorted(one["metadata"]["name"] for one in await self.cluster.all(RAYJOBS)),
            "Secret": sorted(one["metadata"]["name"] for one in await self.cluster.all(SECRETS)),
        }


def expected(*names: str) -> dict[str, Any]:
    """The world without any fault."""
    conditions = [
        ("Failed", "False", "NotFailed"),
        ("Planned", "True", "Fits"),
        ("Running", "False", "Finished"),
        ("Succeeded", "True", "ModelSaved"),
        ("Suspended", "False", "NotSuspended"),
    ]
    outcomes = {name: ["Infrastructure", "Succeeded"] if "retry" in name else ["Succeeded"] for name in names}
    last = {name: f"{name}-{len(ends)}" for name, ends in outcomes.items()}
    return {
        "TrainJob": {name: (conditions, ends) for name, ends in outcomes.items()},
        "RayJob": sorted(last.values()),
        "Secret": sorted(f"{one}-run" for one in last.values()),
    }


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of this file's own, to be hurt."""
    require_binaries()
    with ControlPlane(tmp_path_factory.mktemp("kube"), Options(unsafe_no_fsync=True)) as plane:
        yield plane


@pytest.fixture
async def stage(control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path) -> AsyncIterator[Stage]:
    cluster = await Cluster.make(admin, namespace)
    await give_rights(cluster)
    kubeconfig = await asyncio.to_thread(control_plane.kubeconfig_for_service_account, namespace, "operator")
    reports = f"127.0.0.1:{free_port()}"
    runs = Runs(cluster, reports)
    async with FaultProxy(await load_config(str(kubeconfig), None)) as proxy:
        playing = asyncio.create_task(runs.run())
        async with operating(proxy.connection, tmp_path, namespace, reports=reports):
            yield Stage(control_plane, cluster, proxy, runs)
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        used.update(proxy.verbs)
        staged.append(namespace)


async def give_rights(cluster: Cluster) -> None:
    """A service account with a role that holds verbs.txt and nothing else."""
    rules = []
    for line in VERBS.read_text().split("\n"):
        if line and not line.startswith("#"):
            where, verb = line.split()
            name, _, subresource = where.partition("/")
            plural, _, group = name.partition(".")
            full = f"{plural}/{subresource}" if subresource else plural
            rules.append({"apiGroups": [group], "resources": [full], "verbs": [verb]})
    metadata = {"name": "operator", "namespace": cluster.namespace}
    role_ref = {"apiGroup": ROLES.group, "kind": "Role", "name": "operator"}
    subjects = [{"kind": "ServiceAccount", "name": "operator", "namespace": cluster.namespace}]
    objects: list[tuple[Resource, dict[str, Any]]] = [
        (ACCOUNTS, {}),
        (ROLES, {"rules": rules}),
        (BINDINGS, {"roleRef": role_ref, "subjects": subjects}),
    ]
    for resource, content in objects:
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}
        await cluster.client.create(resource, {**kind, "metadata": metadata, **content})


# --- scenarios: a fault, while it lasts, and its end --------------------------------------------------------------

Scenario = Callable[[Stage], Awaitable[None]]


def while_it_lasts(seconds: float, *faults: tuple[Any, ...], **options: Any) -> Scenario:
    """Faults at the proxy for a while."""

    async def scenario(stage: Stage) -> None:
        hit = [stage.proxy.fault(*fault, **options) for fault in faults]
        await stage.create(*SECOND)
        await asyncio.sleep(seconds)
        stage.proxy.lift()
        assert all(fault.hit for fault in hit), "a fault that met no request proves nothing"

    return scenario


async def calm(stage: Stage) -> None:
    await stage.create(*SECOND)


async def api_server_killed(stage: Stage) -> None:
    await asyncio.to_thread(stage.control_plane.kill, API_SERVER)
    await asyncio.sleep(2)
    await asyncio.to_thread(stage.control_plane.restart, API_SERVER)
    await stage.create(*SECOND)


async def api_server_paused(stage: Stage) -> None:
    stage.control_plane.pause(API_SERVER)
    try:
        await asyncio.sleep(8)
    finally:
        stage.control_plane.resume(API_SERVER)
    await stage.create(*SECOND)


async def etcd_killed(stage: Stage) -> None:
    await asyncio.to_thread(stage.control_plane.kill, ETCD)
    await asyncio.sleep(2)
    await asyncio.to_thread(stage.control_plane.restart, ETCD)
    await stage.create(*SECOND)


async def watches_cut(stage: Stage) -> None:
    creating = asyncio.create_task(stage.create(*SECOND))
    cut = 0
    for _ in range(12):
        cut += await stage.proxy.cut_watches()
        await asyncio.sleep(0.3)
    await creating
    assert cut > 6


async def watches_expired(stage: Stage) -> None:
    creating = asyncio.create_task(stage.create(*SECOND))
    expired = 0
    for _ in range(6):
        expired += await stage.proxy.expire_watches()
        await asyncio.sleep(0.5)
    await creating
    assert expired > 6


async def rights_withdrawn(stage: Stage) -> None:
    cluster = stage.cluster
    role = await cluster.client.get(ROLES, cluster.namespace, "operator")
    await cluster.client.merge_patch(ROLES, cluster.namespace, "operator", {"rules": []})
    await stage.create(*SECOND)
    await stage.proxy.cut_watches()  # a watch that is open is not asked for its rights again
    await asyncio.sleep(6)
    await cluster.client.merge_patch(ROLES, cluster.namespace, "operator", {"rules": role["rules"]})


async def made_again(stage: Stage, resource: Resource) -> None:
    """A CRD is deleted, with everything of its kind, and created again."""
    client, name = stage.cluster.client, resource.label
    crd = await client.get(CRDS, None, name)
    await client.delete(CRDS, None, name)

    async def gone() -> bool:
        with contextlib.suppress(NotFound):
            return not await client.get(CRDS, None, name)
        return True

    await eventually(gone)
    kept = {"name": name, "annotations": crd["metadata"].get("annotations", {})}
    await client.create(
        CRDS, {"apiVersion": crd["apiVersion"], "kind": crd["kind"], "metadata": kept, "spec": crd["spec"]}
    )

    async def served() -> bool:
        return isinstance(await stage.cluster.all(resource), list)

    await eventually(served)


async def our_crd_made_again(stage: Stage) -> None:
    await made_again(stage, TRAINJOBS)
    await stage.create(*FIRST, *SECOND)


async def deleted_while_children_are_made(stage: Stage) -> None:
    stage.proxy.fault(delay(0.5), {"create", "patch"})
    names = [f"c-{number}" for number in range(5)]
    for name in names:
        await stage.create(name)
        await asyncio.sleep(0.3)
        await stage.cluster.client.delete(TRAINJOBS, stage.cluster.namespace, name)
    stage.proxy.lift()
    await stage.create(*SECOND)


async def deleted_and_created_again(stage: Stage) -> None:
    stage.proxy.fault(delay(0.3), {"create", "patch"})
    await stage.create(*SECOND)
    for _ in range(3):
        for name in (*FIRST, *SECOND):
            await stage.cluster.client.delete(TRAINJOBS, stage.cluster.namespace, name)
            await stage.create(name)
        await asyncio.sleep(0.7)
    stage.proxy.lift()


SCENARIOS: dict[str, Scenario] = {
    "calm": calm,
    "API server killed": api_server_killed,
    "API server paused": api_server_paused,
    "etcd killed": etcd_killed,
    "watches cut in the middle of a line": watches_cut,
    "watches expired": watches_expired,
    "answers to writes lost": while_it_lasts(5, (lose_answer,), every=2),
    "conflicts": while_it_lasts(5, (reject(409, "Conflict"),), every=2),
    "too many requests": while_it_lasts(
        5, (reject(429, "TooManyRequests", retry_after=1), {*WRITES, "list", "get"}), every=3
    ),
    "internal errors": while_it_lasts(5, (reject(500, "InternalError"), {*WRITES, "list", "watch"}), every=2),
    "unavailable": while_it_lasts(5, (reject(503, "ServiceUnavailable"),)),
    "slow writes": while_it_lasts(5, (delay(1.0),)),
    "rights withdrawn": rights_withdrawn,
    "our CRD made again": our_crd_made_again,
    "deleted while children are made": deleted_while_children_are_made,
    "deleted and created again": deleted_and_created_again,
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_world_ends_as_without_the_fault(name: str, stage: Stage) -> None:
    began = asyncio.get_running_loop().time()
    await stage.create(*FIRST)
    await eventually(lambda: asyncio.sleep(0, len(stage.runs.seen) >= len(FIRST)))
    await SCENARIOS[name](stage)
    lifted = time.monotonic()
    await stage.settled(*FIRST, *SECOND)

    async def as_expected() -> bool:
        return await stage.world() == expected(*FIRST, *SECOND)

    with contextlib.suppress(AssertionError):
        await eventually(as_expected, RECOVERY_SECONDS)
    assert await stage.world() == expected(*FIRST, *SECOND)
    assert stage.runs.violations == []
    busiest = stage.proxy.busiest_second(began)
    print(f"{name}: whole again after {time.monotonic() - lifted:.1f} s, {busiest} requests in the busiest second")
    assert busiest <= BUSIEST_SECOND


async def test_a_ray_crd_that_is_made_again_costs_attempts_and_no_job(stage: Stage) -> None:
    """Its RayJobs are gone with it, and with them the runs: the jobs start again, from their checkpoints."""
    stage.runs.seconds = 3.0
    await stage.create(*FIRST)
    await eventually(lambda: asyncio.sleep(0, len(stage.runs.seen) >= len(FIRST)))
    await made_again(stage, RAYJOBS)
    await stage.create(*SECOND)
    await stage.settled(*FIRST, *SECOND, limit=60)
    assert [v for v in stage.runs.violations if "two runs" in v] == []


async def test_a_frozen_watch_is_found_and_replaced(stage: Stage) -> None:
    """Half-open: nothing arrives and nothing ends. It takes the reflector's inactivity timeout, 24 s, to be sure."""
    await stage.create(*FIRST)
    await stage.settled(*FIRST)
    assert stage.proxy.freeze_watches(TRAINJOBS.label) == 1
    await stage.create(*SECOND)
    await stage.settled(*FIRST, *SECOND)
    assert await stage.world() == expected(*FIRST, *SECOND)
    assert stage.runs.violations == []


async def test_an_event_whose_answer_is_lost_is_read_and_counted(stage: Stage) -> None:
    """It is found to be there already. These rights are needed then, and in no other scenario for sure."""
    lost = stage.proxy.fault(lose_answer, {"create"}, EVENTS.label, times=1)
    await stage.create("one")
    await stage.settled("one")
    await eventually(lambda: asyncio.sleep(0, {"events get", "events patch"} <= stage.proxy.verbs))
    assert lost.hit == 1

    async def counted() -> bool:
        return any(event["count"] > 1 for event in await stage.cluster.all(EVENTS))

    await eventually(counted)


async def test_a_job_with_a_time_to_live_goes_with_its_children(stage: Stage) -> None:
    await stage.cluster.create("short", ttlSecondsAfterFinished=0)

    async def nothing() -> bool:
        return bool(stage.runs.seen) and not any(await kind_by_kind(stage))

    await eventually(nothing)


async def test_every_kind_does_its_work_with_these_rights(stage: Stage) -> None:
    """Training, evaluation, cross-validation and an endpoint: what they use is in verbs.txt, as under every fault."""
    cluster = stage.cluster
    await stage.create("base")
    await stage.settled("base")
    await cluster.make_object(EVALJOBS, "check", evaluation(gate=[{"metric": "perplexity", "op": "<", "value": "10"}]))
    await cluster.make_object(EVALJOBS, "folds", evaluation(crossValidation={"folds": 2}))
    await cluster.make_object(EVALJOBS, "brief", evaluation(ttlSecondsAfterFinished=0))
    served = {"model": {"trainJob": {"name": "base"}}, "requires": [{"evalJob": {"name": "check"}}]}
    await cluster.make_object(DEPLOYMENTS, "endpoint", served)

    async def folds() -> list[Any]:
        return [job for job in await cluster.all(TRAINJOBS) if job["metadata"]["name"].startswith("folds-")]

    async def suspended(value: bool) -> bool:
        await cluster.change(EVALJOBS, "folds", {"spec": {"suspend": value}})
        return all(bool(job["spec"].get("suspend")) == value for job in await folds())

    await eventually(folds)  # suspended before it has made them, it makes none
    await eventually(functools.partial(suspended, True))
    await eventually(functools.partial(suspended, False))

    async def evaluated() -> bool:
        jobs = {job["metadata"]["name"]: job.get("status") or {} for job in await cluster.all(EVALJOBS)}
        passed = c.is_true(jobs["check"].get("conditions", []), c.PASSED)
        return passed and c.is_true(jobs["folds"].get("conditions", []), c.SUCCEEDED) and "brief" not in jobs

    await eventually(evaluated)
    await eventually(functools.partial(_serves, cluster))
    await cluster.change(DEPLOYMENTS, "endpoint", {"spec": {"generation": {"maxTokens": 7}}})

    async def told() -> bool:
        (service,) = await cluster.all(RAYSERVICES)
        return '"defaultMaxTokens": 7' in service["spec"]["serveConfigV2"]

    await eventually(told)
    await cluster.change(DEPLOYMENTS, "endpoint", {"spec": {"suspend": True}})
    await eventually(functools.partial(_serves, cluster, expected=False))
    assert [told for told in stage.runs.violations if "folds-" not in told] == []  # those were suspended


def evaluation(**spec: Any) -> dict[str, Any]:
    """An EvalJob's spec, of the TrainJob `base`."""
    suite: dict[str, Any] = {"name": "held-out", "languageModeling": {}}
    if "crossValidation" not in spec:
        suite["data"] = {"sources": [{"uri": "python://stdlib"}]}
    return {"model": {"trainJob": {"name": "base"}}, "suites": [suite], **spec}


async def _serves(cluster: Cluster, *, expected: bool = True) -> bool:
    return bool(await cluster.all(RAYSERVICES)) == expected


async def kind_by_kind(stage: Stage) -> list[Any]:
    return [await stage.cluster.all(kind) for kind in (TRAINJOBS, RAYJOBS, SECRETS)]


async def test_a_namespace_that_is_deleted_goes_and_nobody_storms(stage: Stage) -> None:
    await stage.create(*FIRST)
    await eventually(lambda: asyncio.sleep(0, len(stage.runs.seen) >= len(FIRST)))
    began = asyncio.get_running_loop().time()
    await stage.cluster.client.delete(NAMESPACES, None, stage.cluster.namespace)

    async def gone() -> bool:
        with contextlib.suppress(NotFound):
            return not await stage.cluster.client.get(NAMESPACES, None, stage.cluster.namespace)
        return True

    await eventually(gone)
    await asyncio.sleep(3)
    assert stage.proxy.busiest_second(began) <= BUSIEST_SECOND


def test_the_verbs_are_those_of_the_file() -> None:
    """What all scenarios have used is what the chart's role must allow, and no more. SLIPWAY_WRITE_VERBS=1 rewrites."""
    if len(staged) < len(SCENARIOS) + 6:
        pytest.skip(f"only {len(staged)} of this file's scenarios ran; which verbs are used takes all of them")
    if os.environ.get("SLIPWAY_WRITE_VERBS"):
        comment = [line for line in VERBS.read_text().splitlines() if line.startswith("#")]
        VERBS.write_text("\n".join([*comment, *sorted(used), ""]))
    assert {line for line in VERBS.read_text().splitlines() if line and not line.startswith("#")} == used
