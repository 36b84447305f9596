"""The two servers side by side: for a TrainJob they give the same answers, word for word.

Everything that names a moment or an instance (uids, versions, times, ages) is blotted out before the comparison.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import yaml

from .api import Client
from .conftest import Server, connected, fresh_kubectl
from .kubectl import TRAIN_JOB, Kubectl

pytestmark = pytest.mark.kube

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
async def both(local_server: Server, kube_server: Server, namespace: str) -> AsyncIterator[tuple[Client, Client]]:
    """Clients of the embedded and of the real server, in namespaces of the same name."""
    async with connected(local_server, namespace) as local, connected(kube_server, namespace) as kube:
        for client in (local, kube):
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            assert (await client.post("/api/v1/namespaces", body)).code == 201
        yield local, kube


@pytest.fixture
def kubectls(
    program: str,
    local_server: Server,
    kube_server: Server,
    namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Kubectl, Kubectl]:
    """kubectl with the embedded and with the real server."""
    local, kube = (fresh_kubectl(program, one, namespace, tmp_path_factory) for one in (local_server, kube_server))
    return local, kube


def train_jobs(client: Client) -> str:
    """The path of the TrainJobs."""
    return f"/apis/slipway.dev/v1alpha1/namespaces/{client.namespace}/trainjobs"


def train_job(change: Change = lambda job: None) -> dict[str, Any]:
    """The test's TrainJob, changed."""
    job: dict[str, Any] = yaml.safe_load(TRAIN_JOB)
    change(job)
    return job


def put(path: str, value: Any) -> Change:
    """Writes a value at a dotted path."""

    def change(job: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for part in way:
            job = job.setdefault(part, {})
        job[last] = value

    return change


def drop(path: str) -> Change:
    """Takes away what is at a dotted path."""

    def change(job: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for part in way:
            job = job[part]
        del job[last]

    return change


def verdict(reply: Any) -> tuple[int, list[str], list[tuple[str, str, str]]]:
    """Code, what the message lists, and the causes; kube-apiserver lists several fields in the order of a Go map."""
    details = reply.body.get("details") or {}
    causes = [(cause.get("reason"), cause.get("field"), cause.get("message")) for cause in details.get("causes") or []]
    listed = re.split(r"\[|\]|, ", reply.body.get("message", ""))
    return reply.code, sorted(listed), sorted(causes)


REFUSED: dict[str, Change] = {
    "no spec": drop("spec"),
    "no model": drop("spec.model"),
    "two models": put("spec.model.uri", "file:///models/a"),
    "steps and epochs": put("spec.training.epochs", 1),
    "no steps": drop("spec.training.steps"),
    "steps of text": put("spec.training.steps", "ten"),
    "half a step": put("spec.training.steps", 1.5),
    "no steps at all": put("spec.training.steps", 0),
    "a billion steps": put("spec.training.steps", 10**12),
    "batch that does not divide": put("spec.workers.count", 3),
    "no workers": put("spec.workers.count", 0),
    "heads that do not divide": put("spec.model.fresh.heads", 5),
    "kv heads that do not divide": put("spec.model.fresh.kvHeads", 3),
    "learning rate of zero": put("spec.training.optimizer", {"learningRate": "0"}),
    "learning rate as a number": put("spec.training.optimizer", {"learningRate": 0.1}),
    "beta of one": put("spec.training.optimizer", {"beta1": "1.0"}),
    "odd precision": put("spec.training.precision", "fp4"),
    "two strategies": put("spec.strategy", {"ddp": {}, "fsdp": {}}),
    "no data": put("spec.data.sources", []),
    "too much data": put("spec.data.sources", [{"uri": "python://stdlib"}] * 2000),
    "a source without uri": put("spec.data.sources", [{"include": ["*.py"]}]),
    "data as text": put("spec.data", "python://stdlib"),
    "a long name": put("metadata.name", "x" * 41),
    "a name in capitals": put("metadata.name", "Demo"),
    "suspend of text": put("spec.suspend", "yes"),
    "tokenizer that is too small": put("spec.tokenizer.train.vocabSize", 1),
    "odd memory": put("spec.workers.resources", {"memory": "lots"}),
    "many things at once": lambda job: (
        put("spec.workers.count", 0)(job),
        put("spec.training.precision", "fp4")(job),
        put("spec.training.epochs", 1)(job),
    ),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
async def test_refusals_are_the_same(both: tuple[Client, Client], change: Change) -> None:
    body = train_job(change)
    local, kube = [verdict(await client.post(train_jobs(client), body)) for client in both]
    assert kube[0] == 422
    assert local == kube


@pytest.mark.parametrize(
    "change",
    [put("spec.training.stepz", 1), put("spec.modle", {}), put("spec.data.sources", [{"uri": "a:b", "urI": ""}])],
    ids=["a field in a field", "a field of spec", "a field in a list"],
)
async def test_unknown_fields_are_refused_in_the_same_words(both: tuple[Client, Client], change: Change) -> None:
    body = train_job(change)
    local, kube = [verdict(await client.post(train_jobs(client), body, fieldValidation="Strict")) for client in both]
    assert kube[0] == 400
    assert local == kube


IMMUTABLE: dict[str, dict[str, Any]] = {
    "workers": {"workers": {"count": 4}},
    "model": {"model": {"fresh": {"hiddenSize": 128}}},
    "steps": {"training": {"steps": 20}},
    "data": {"data": {"sources": [{"uri": "python://stdlib"}]}},
    "steps and workers": {"training": {"steps": 20}, "workers": {"count": 4}},
}


@pytest.mark.parametrize("spec", IMMUTABLE.values(), ids=IMMUTABLE)
async def test_what_is_immutable_is_so_in_the_same_words(both: tuple[Client, Client], spec: dict[str, Any]) -> None:
    answers = []
    for client in both:
        assert (await client.post(train_jobs(client), train_job())).code == 201
        answers.append(verdict(await client.merge(f"{train_jobs(client)}/demo", {"spec": spec})))
    local, kube = answers
    assert kube[0] == 422
    assert local == kube


def blotted(value: Any) -> Any:
    """The object without what names a moment or an instance."""
    value = copy.deepcopy(value)
    metadata = value["metadata"]
    for name in ("uid", "resourceVersion", "creationTimestamp"):
        assert metadata.pop(name)
    for entry in metadata.get("managedFields", []):
        entry.pop("time", None)
    return value


async def test_what_is_stored_is_the_same(both: tuple[Client, Client]) -> None:
    """Defaults, pruning, managed fields of a create, a patch, an apply and a status; and a Table."""
    stored, tables = [], []
    for client in both:
        path = f"{train_jobs(client)}/demo"
        surplus = {**train_job(put("spec.surplus", 1)), "status": {"state": "forged"}}
        assert (await client.post(train_jobs(client), surplus)).code == 201
        created = (await client.get(path)).body
        await client.merge(path, {"metadata": {"labels": {"tier": "gold"}}, "spec": {"suspend": True}})
        condition = {
            "type": "Running",
            "status": "True",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "reason": "Tested",
            "message": "by a test",
        }
        status = {
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": "demo"},
            "status": {"state": "Running", "attempt": 1, "conditions": [condition]},
        }
        assert (await client.apply(f"{path}/status", status, manager="controller")).code == 200
        applied = await client.apply(path, train_job(), manager="applier", force="true")
        assert applied.code == 200
        stored.append([blotted(created), blotted(applied.body)])
        accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
        table = (await client.call("GET", train_jobs(client), headers=accept)).body
        tables.append((table["columnDefinitions"][1:], [row["cells"][:-1] for row in table["rows"]]))
    local, kube = stored
    assert local[0] == kube[0]
    assert local[1] == kube[1]
    assert tables[0] == tables[1]


def words(output: str) -> str:
    """What kubectl printed, without moments and instances."""
    for pattern, name in (
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"(resource ?version: *)\"?\d+\"?", r"\1VERSION"),
        (r"\b\d+m?s\b", "AGE"),
        (r"/tmp/\S+", "FILE"),
        (r"^(---|\+\+\+) .*$", "FILE"),
        (r" {2,}", "  "),
    ):
        output = re.sub(pattern, name, output, flags=re.IGNORECASE | re.MULTILINE)
    return output


SUSPENDED = TRAIN_JOB + "  suspend: true\n"
STATUS = orjson.dumps({"status": {"state": "Running", "attempt": 1}}).decode()
COMMANDS: list[tuple[tuple[str, ...], str | None, bool]] = [
    (("apply", "-f", "-", "--dry-run=server"), TRAIN_JOB, True),
    (("apply", "-f", "-"), TRAIN_JOB, True),
    (("apply", "-f", "-"), TRAIN_JOB, True),
    (("get", "tj"), None, True),
    (("get", "tj", "-o", "wide"), None, True),
    (("get", "slipway"), None, True),
    (("get", "tj", "demo", "-o", "yaml"), None, True),
    (("diff", "-f", "-"), SUSPENDED, False),
    (("apply", "-f", "-"), SUSPENDED, True),
    (("patch", "tj", "demo", "--subresource=status", "--type=merge", "-p", STATUS), None, True),
    (("get", "tj", "demo", "-o", "yaml", "--show-managed-fields"), None, True),
    (("describe", "tj", "demo"), None, True),
    (("explain", "trainjob.spec.training"), None, True),
    (("explain", "trainjob.spec.workers.count"), None, True),
    (("explain", "tj.spec", "--recursive"), None, True),
    (("explain", "tj.spec.nope"), None, False),
    (("apply", "--server-side", "-f", "-", "--field-manager=other"), TRAIN_JOB + "  suspend: false\n", False),
    (("apply", "-f", "-"), TRAIN_JOB.replace("count: 2", "count: 4"), False),
    (("patch", "tj", "demo", "--type=json", "-p", '[{"op":"remove","path":"/spec/nope"}]'), None, False),
    (("patch", "tj", "demo", "--type=merge", "-p", '{"spec":{"suspendd":true}}'), None, True),
    (("label", "tj", "demo", "tier=gold"), None, True),
    (("get", "tj", "-l", "tier=gold", "-L", "tier"), None, True),
    (("get", "tj", "--field-selector", "spec.suspend=true"), None, False),
    (("wait", "--for=jsonpath={.status.state}=Running", "tj/demo", "--timeout=5s"), None, True),
    (("create", "-f", "-"), TRAIN_JOB, False),
    (("replace", "-f", "-"), TRAIN_JOB.replace("language", "vision"), True),
    (("auth", "can-i", "create", "tj"), None, True),
    (("api-resources", "--api-group=slipway.dev", "-o", "wide"), None, True),
    (("delete", "tj", "demo"), None, True),
    (("delete", "tj", "demo"), None, False),
    (("get", "tj", "demo"), None, False),
    (("get", "tj"), None, True),
]


def test_kubectl_says_the_same(kubectls: tuple[Kubectl, Kubectl]) -> None:
    different = []
    for command, stdin, ok in COMMANDS:
        local, kube = (words(kubectl.run(*command, stdin=stdin, ok=ok)) for kubectl in kubectls)
        if local != kube:
            lines = difflib.unified_diff(kube.splitlines(), local.splitlines(), "kube-apiserver", "embedded", "", "", 1)
            different.append("\n".join([f"$ kubectl {' '.join(command)}", *lines]))
    assert not different, "\n\n".join(different)
