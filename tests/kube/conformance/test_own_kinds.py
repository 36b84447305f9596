"""Slipway's own kinds: both servers accept the definitions, and say the same of what is wrong in an object."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_api import crd

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_SOURCE = {"sources": [{"uri": "python://stdlib"}]}
_MODELING = {"name": "held-out", "languageModeling": {}}
_CHOICE = {"prompt": "{q}", "choices": ["a", "b"], "answerField": "a"}
_GENERATION = {"prompt": "{q}", "referenceField": "a"}


def evaljob(name: str = "ej", **spec: Any) -> dict[str, Any]:
    """An EvalJob; None takes a field of the minimal spec away."""
    full = {"model": {"uri": "/models/one"}, "data": _SOURCE, "suites": [_MODELING]} | spec
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "EvalJob",
        "metadata": {"name": name},
        "spec": {key: value for key, value in full.items() if value is not None},
    }


def suite(**fields: Any) -> dict[str, Any]:
    return {"suites": [{"name": "s", **fields}]}


def gate(metric: str, **fields: Any) -> dict[str, Any]:
    return {"gate": [{"metric": metric, **({"op": "<=", "value": "1"} | fields)}]}


def baseline_gate(**fields: Any) -> dict[str, Any]:
    return {"gate": [{"metric": "perplexity", "notWorseThan": "baseline", **fields}]}


ACCEPTED: dict[str, dict[str, Any]] = {
    "the least": {},
    "every task": {
        "suites": [
            _MODELING,
            {"name": "choice", "multipleChoice": _CHOICE, "fewShot": {"count": 2}, "slices": [{"field": "group"}]},
            {"name": "text", "generation": _GENERATION, "perturbations": {}},
            {"name": "bench", "benchmark": {"task": "arc_easy"}},
            {"name": "speed", "latency": {}},
        ],
        "gate": [
            {"suite": "held-out", "metric": "perplexity", "op": "<=", "value": "200", "confidence": "0.95"},
            {"suite": "choice", "metric": "groupDisparity", "op": "<", "value": "0.1"},
            {"suite": "text", "metric": "robustnessDrop", "op": "<=", "value": "1e-1"},
            {"suite": "bench", "metric": "acc_norm", "op": ">=", "value": "0.3"},
            {"suite": "speed", "metric": "timeToFirstTokenP95", "op": "<", "value": "2"},
            {"suite": "held-out", "metric": "loss", "notWorseThan": "baseline", "margin": "0.01"},
        ],
        "baseline": {"hub": {"repo": "some/model"}},
    },
    "a held-out part": {"data": {**_SOURCE, "split": {"evalFraction": "0.1"}}},
    "folds": {"data": None, "model": {"trainJob": {"name": "base"}}, "crossValidation": {"folds": 5}},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"data": None}, "every suite needs data"),
    "a metric that is not computed": (gate("accuracy"), "each gate must name a suite"),
    "a metric that was not asked for": (
        {**suite(languageModeling={}, metrics=["loss"]), **gate("perplexity")},
        "each gate must name a suite",
    ),
    "a suite that is not there": (gate("perplexity", suite="other"), "each gate must name a suite"),
    "no suite named among two": (
        {"suites": [_MODELING, {"name": "two", "languageModeling": {}}], **gate("perplexity")},
        "each gate must name a suite",
    ),
    "disparity without slices": (
        {**suite(multipleChoice=_CHOICE), **gate("groupDisparity")},
        "groupDisparity and biasAmplification need slices",
    ),
    "robustness without perturbations": (
        {**suite(generation=_GENERATION), **gate("robustnessDrop")},
        "robustnessDrop needs perturbations",
    ),
    "no baseline": (baseline_gate(), "a gate with notWorseThan needs spec.baseline"),
    "a bound and a baseline": (
        {"baseline": {"uri": "/models/two"}, **gate("perplexity", notWorseThan="baseline")},
        "set either op with value, or notWorseThan",
    ),
    "neither": ({"gate": [{"metric": "perplexity"}]}, "set either op with value, or notWorseThan"),
    "op without value": ({"gate": [{"metric": "perplexity", "op": "<"}]}, "op and value belong together"),
    "a margin without a baseline": (gate("perplexity", margin="0.1"), "margin needs notWorseThan"),
    "choices and choicesField": (
        suite(multipleChoice={**_CHOICE, "choicesField": "c"}),
        "set either choices (two or more) or choicesField",
    ),
    "one choice": (suite(multipleChoice={**_CHOICE, "choices": ["a"]}), "set either choices (two or more)"),
    "fewShot on languageModeling": (
        suite(languageModeling={}, fewShot={"count": 1}),
        "fewShot needs multipleChoice, generation or benchmark",
    ),
    "two tasks": (suite(languageModeling={}, latency={}), "exactly one of languageModeling, multipleChoice"),
    "no task": (suite(), "exactly one of languageModeling, multipleChoice"),
    "two suites of one name": ({"suites": [_MODELING, _MODELING]}, "Duplicate value"),
    "a metric of another task": (suite(languageModeling={}, metrics=["bleu"]), "a suite's metrics must fit its task"),
    "data beside latency": (suite(latency={}, data=_SOURCE), "bring their own data and metrics"),
    "metrics beside a benchmark": (suite(benchmark={"task": "x"}, metrics=["auto"]), "bring their own data and metric"),
    "stride above window": (
        suite(languageModeling={"windowTokens": 8, "strideTokens": 9}),
        "strideTokens must not be above windowTokens",
    ),
    "greedy with topK": (suite(generation={**_GENERATION, "topK": 5}), "topK and topP need a temperature above 0"),
    "topP above one": (
        suite(generation={**_GENERATION, "temperature": "1", "topP": "1.5"}),
        "topP must be above 0 and at most 1",
    ),
    "a rate of nothing": (
        suite(languageModeling={}, perturbations={"rate": "0"}),
        "rate must be above 0 and at most 1",
    ),
    "a model from nowhere": ({"model": {}}, "exactly one of uri, hub, trainJob must be set"),
    "folds without a TrainJob": (
        {"data": None, "crossValidation": {"folds": 3}},
        "crossValidation needs model.trainJob",
    ),
    "folds and data": (
        {"model": {"trainJob": {"name": "base"}}, "crossValidation": {"folds": 3}},
        "leave spec.data out",
    ),
    "a split of both sorts": (
        {"data": {**_SOURCE, "split": {"evalFraction": "0.1", "folds": 3, "fold": 0}}},
        "set either evalFraction, or folds with fold",
    ),
    "folds without fold": ({"data": {**_SOURCE, "split": {"folds": 3}}}, "folds and fold belong together"),
    "a fold too many": ({"data": {**_SOURCE, "split": {"folds": 3, "fold": 3}}}, "fold must be below folds"),
    "all held out": (
        {"data": {**_SOURCE, "split": {"evalFraction": "1.0"}}},
        "evalFraction must be above 0 and below 1",
    ),
}


def evaljobs(api: Any) -> str:
    return f"/apis/slipway.dev/v1alpha1/namespaces/{api.namespace}/evaljobs"


async def define(api: Any, kind: crd.Kind) -> None:
    """Have the definition there, and believe what the server says of it."""
    wanted = crd.crd(kind)
    reply = await api.post(_CRDS, wanted)
    assert reply.code in (201, 409), reply.body  # 409: the control plane of all tests has it

    async def established() -> bool:
        stored = (await api.get(f"{_CRDS}/{wanted['metadata']['name']}")).body
        told = {one["type"]: one for one in stored.get("status", {}).get("conditions", [])}
        assert told.get("NonStructuralSchema", {}).get("status") != "True", told
        return told.get("Established", {}).get("status") == "True"

    await api.eventually(established, 20.0)


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.kind)
async def test_definitions_are_accepted_with_the_cost_of_their_rules(api: Any, kind: crd.Kind) -> None:
    """The API server refuses a definition whose rules might cost too much, so this is also the test of the budget."""
    await define(api, kind)
    copied = crd.crd(kind)
    names = copied["spec"]["names"]
    names |= {"plural": f"x{names['plural']}", "singular": f"x{names['singular']}", "kind": f"X{names['kind']}"}
    names |= {"listKind": f"X{names['kind']}List", "shortNames": [], "categories": []}
    copied["metadata"]["name"] = f"{names['plural']}.slipway.dev"
    reply = await api.post(_CRDS, copied, dryRun="All")
    assert reply.code == 201, reply.body


@pytest.mark.parametrize("case", ACCEPTED)
async def test_evaljobs_that_are_accepted(api: Any, case: str) -> None:
    await define(api, next(kind for kind in crd.KINDS if kind.kind == "EvalJob"))
    reply = await api.post(evaljobs(api), evaljob(**ACCEPTED[case]))
    assert reply.code == 201, reply.body
    assert reply.body["spec"]["batchTokens"] == 4096


@pytest.mark.parametrize("case", REFUSED)
async def test_evaljobs_that_are_refused(api: Any, case: str) -> None:
    await define(api, next(kind for kind in crd.KINDS if kind.kind == "EvalJob"))
    spec, message = REFUSED[case]
    reply = await api.post(evaljobs(api), evaljob(**spec))
    assert (reply.code, message in reply.message) == (422, True), reply.body
    assert (await api.get(evaljobs(api))).body["items"] == []


async def test_names_leave_room_for_those_that_are_derived(api: Any) -> None:
    await define(api, next(kind for kind in crd.KINDS if kind.kind == "EvalJob"))
    assert (await api.post(evaljobs(api), evaljob("n" * 40))).code == 201
    folds = ACCEPTED["folds"]
    assert (await api.post(evaljobs(api), evaljob("f" * 32, **folds))).code == 201
    reply = await api.post(evaljobs(api), evaljob("f" * 33, **folds))
    assert (reply.code, "at most 32 characters" in reply.message) == (422, True), reply.body


async def test_only_the_gate_and_how_it_is_driven_may_change(api: Any) -> None:
    await define(api, next(kind for kind in crd.KINDS if kind.kind == "EvalJob"))
    assert (await api.post(evaljobs(api), evaljob(gate=[{"metric": "loss", "op": "<", "value": "5"}]))).code == 201
    path = f"{evaljobs(api)}/ej"
    easier = await api.merge(path, {"spec": {"gate": [{"metric": "loss", "op": "<", "value": "9"}], "suspend": True}})
    assert easier.code == 200, easier.body
    for field, value in (("seed", 1), ("precision", "bf16"), ("model", {"uri": "/other"}), ("batchTokens", 64)):
        reply = await api.merge(path, {"spec": {field: value}})
        assert (reply.code, f"{field} is immutable" in reply.message) == (422, True), reply.body
