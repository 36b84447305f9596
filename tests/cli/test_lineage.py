"""`slipway lineage`: the chain from data to the version that answers, also where objects are gone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from slipway_cli.lineage.build import Builder
from slipway_cli.lineage.graph import Graph, Node
from slipway_cli.lineage.render import FORMATS, tree
from slipway_operator.kube.resource import DEPLOYMENTS, Json

from .conftest import World

TIME = "2026-01-01T00:00:00Z"


def trained(name: str, model: Json, sources: list[Json], letter: str) -> Json:
    return {
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"model": model, "data": {"sources": sources, "evalSources": [{"uri": "/held-out"}]}},
        "status": {
            "state": "Succeeded",
            "model": {"uri": f"/m/{letter}", "digest": f"sha256:{letter}", "perplexity": "8.1"},
            "plan": {"dataDigest": f"sha256:data-{letter}", "trainTokens": 1000},
        },
    }


def measured(name: str, train_job: str) -> Json:
    passed = {"type": "Passed", "status": "True", "reason": "GatesHold", "message": "all 2 gates hold"}
    spec = {"model": {"trainJob": {"name": train_job}}}
    return {"kind": "EvalJob", "metadata": {"name": name}, "spec": spec, "status": {"conditions": [passed]}}


def version(name: str, letter: str, source: str = "", **more: Any) -> Json:
    return {
        "version": name,
        "reference": {"uri": f"/m/{letter}"},
        "digest": f"sha256:{letter}",
        "source": source,
    } | more


def run(number: int, letter: str, stage: str, **more: Any) -> Json:
    return {
        "id": f"chat-r{number}",
        "cause": "drift",
        "alarm": f"alarm-{number}",
        "signal": "input-length",
        "stage": stage,
        "message": "perplexity on new data 8 against 12",
        "snapshot": {"uri": "/captured/1", "digest": "sha256:snap", "examples": 900, "heldOut": 100},
        "baseVersion": "v-a",
        "base": {"uri": "/m/a"},
        "model": f"/m/{letter}",
        "modelDigest": f"sha256:{letter}",
        "gpuHours": "2.5",
        "started": TIME,
        "ended": TIME,
    } | more


REPLAYED = {"uri": "python://stdlib", "sample": {"fraction": "0.25", "seed": 1}}
TRAIN_JOBS = [
    trained("base", {"fresh": {"architecture": "llama"}}, [{"uri": "python://stdlib"}], "a"),
    trained("chat-r2", {"uri": "/m/a"}, [{"uri": "/captured/1/train"}, REPLAYED], "c"),
]
EVAL_JOBS = [measured("gate", "base"), measured("chat-r2", "chat-r2")]
ALARM = {"id": "alarm-2", "kind": "data", "signal": "input-length", "test": "ks", "effect": "0.4", "threshold": "0.1"}
COMPRESSION = {"scheme": "int8", "digest": "sha256:c8", "qualityLoss": "0.004"}
DEPLOYMENT: Json = {
    "kind": "Deployment",
    "metadata": {"name": "chat"},
    "status": {
        "state": "Available",
        "stable": version("v-c", "c", "trainjob/chat-r2", weight=100, requests=77, compression=COMPRESSION),
        "rejected": [{"version": "v-b", "reason": "LatencyTooHigh", "message": "slow", "time": TIME}],
        "drift": {"alarms": [ALARM | {"start": TIME, "end": TIME}]},
        "retrain": {
            "model": "/m/c",
            "history": [
                run(2, "c", "Promoted", version="v-c"),
                run(1, "b", "Rejected", version="v-b"),  # its jobs are gone
                run(0, "z", "Failed", model=None, modelDigest="", cause="schedule", scheduled=TIME),
            ],
        },
    },
}


def graph() -> Graph:
    return Builder(TRAIN_JOBS, EVAL_JOBS).of_deployment(DEPLOYMENT)


def edges(found: Graph) -> set[tuple[str, str, str]]:
    return {(edge.source, edge.relation, edge.target) for edge in found.edges}


def test_the_chain_leads_from_the_version_that_serves_to_the_data() -> None:
    found = edges(graph())
    assert {
        ("sdeploy/chat", "serves", "version/v-c"),
        ("version/v-c", "came of", "retrain/chat-r2"),
        ("retrain/chat-r2", "caused by", "drift/alarm-2"),
        ("retrain/chat-r2", "trained by", "tj/chat-r2"),
        ("retrain/chat-r2", "measured by", "ej/chat-r2"),
        ("retrain/chat-r2", "learned", "data/sha256:snap"),
        ("retrain/chat-r2", "started from", "version/v-a"),
        ("tj/chat-r2", "data", "data/sha256:data-c"),
        ("tj/chat-r2", "started from", "tj/base"),
        ("version/v-a", "trained by", "tj/base"),
        ("tj/base", "data", "data/sha256:data-a"),
        ("tj/base", "measured by", "ej/gate"),
        ("tj/base", "started from", "model/random weights (llama)"),
    } <= found
    nodes = graph().nodes
    assert nodes["data/sha256:data-c"].facts["Sources"] == "/captured/1/train, python://stdlib (0.25 of it)"
    assert nodes["version/v-c"].facts["Compression"] == "int8"
    assert nodes["version/v-c"].facts["Quality loss"] == "0.004"
    assert nodes["drift/alarm-2"].facts["Effect"] == "0.4, above 0.1"
    assert nodes["retrain/chat-r2"].facts["Cost"] == "2.5 hours"
    assert nodes["ej/chat-r2"].facts["Because"] == "all 2 gates hold"


def test_what_was_tried_and_failed_is_part_of_it() -> None:
    found = edges(graph())
    assert ("sdeploy/chat", "rejected", "version/v-b") in found
    assert ("version/v-b", "came of", "retrain/chat-r1") in found
    assert ("sdeploy/chat", "tried", "retrain/chat-r0") in found
    assert ("retrain/chat-r0", "caused by", f"schedule/{TIME}") in found


def test_what_was_deleted_is_shown_as_such_with_what_others_say_of_it() -> None:
    found = graph()
    gone = {node.id for node in found.nodes.values() if node.missing}
    assert gone == {"tj/chat-r1", "ej/chat-r1", "tj/chat-r0"}
    assert found.nodes["tj/chat-r1"].facts["Digest"] == "sha256:b"
    text = tree(found)
    assert re.search(r"trained by: tj/chat-r1\n[│ ]+Object: deleted", text)


def test_a_deployment_without_retrains_leads_to_its_train_job_also_when_that_is_gone() -> None:
    plain = {
        "metadata": {"name": "chat"},
        "status": {"stable": version("v-a", "a", "trainjob/base (int8)", weight=100)},
    }
    assert ("version/v-a", "trained by", "tj/base") in edges(Builder(TRAIN_JOBS, []).of_deployment(plain))
    found = Builder([], []).of_deployment(plain)
    assert found.nodes["tj/base"].missing
    assert Builder([], []).of_deployment({"metadata": {"name": "new"}}).root == "sdeploy/new"


def test_a_train_job_has_a_lineage_too() -> None:
    found = Builder(TRAIN_JOBS, EVAL_JOBS).of_train_job("chat-r2")
    assert found.root == "tj/chat-r2"
    assert ("tj/chat-r2", "started from", "tj/base") in edges(found)
    assert ("tj/chat-r2", "measured by", "ej/chat-r2") in edges(found)


def test_the_tree_shows_each_thing_once() -> None:
    text = tree(graph())
    assert text.splitlines()[0] == "sdeploy/chat"
    assert "├─ serves: version v-c" in text
    assert len(re.findall(r"(?:trained by|started from): tj/base$", text, re.MULTILINE)) == 1
    assert "tj/base (above)" in text
    assert all(len(line) < 240 for line in text.splitlines())


def test_dot_has_every_node_and_edge_and_quotes_what_is_told() -> None:
    found = graph()
    found.add(Node('odd/"x"', "Model", 'a "quoted" \\ title\nof two lines'))
    text = FORMATS["dot"](found)
    assert text.startswith("digraph lineage {")
    assert text.count(" -> ") == len(found.edges)
    assert '"odd/\\"x\\""' in text
    assert 'a \\"quoted\\" \\\\ title of two lines' in text
    for line in text.splitlines()[3:-1]:
        assert re.fullmatch(r'  ("([^"\\]|\\.)*"( -> "([^"\\]|\\.)*")?) \[.*\];', line), line


def test_json_is_the_whole_graph() -> None:
    found = json.loads(FORMATS["json"](graph()))
    ids = {node["id"] for node in found["nodes"]}
    assert found["root"] in ids
    assert all(edge["from"] in ids and edge["to"] in ids for edge in found["edges"])
    assert len(ids) == len(found["nodes"]) == len(graph().nodes)


def test_the_page_needs_nothing_else_and_runs_nothing_that_is_told() -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: set[str] = set()
            self.links: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    evil = json.loads(json.dumps(DEPLOYMENT).replace("perplexity on new data", "<script>alert(1)</script>"))
    text = FORMATS["html"](Builder(TRAIN_JOBS, EVAL_JOBS).of_deployment(evil))
    reader = Reader()
    reader.feed(text)
    assert "&lt;script&gt;alert(1)" in text
    assert not reader.tags & {"script", "link", "img", "iframe"}
    assert all(link.startswith("#") for link in reader.links)
    assert "version v-c" in text


def test_status_that_runs_in_a_circle_ends() -> None:
    looped = run(2, "c", "Promoted", version="v-c", baseVersion="v-d", base={"uri": "/m/d"})
    other = run(3, "d", "Promoted", version="v-d", baseVersion="v-c", base={"uri": "/m/c"})
    status = {"stable": version("v-c", "c", weight=100), "retrain": {"history": [looped, other]}}
    text = tree(Builder([], []).of_deployment({"metadata": {"name": "chat"}, "status": status}))
    assert "retrain chat-r3" in text
    one, two = (
        trained("one", {"trainJob": {"name": "two"}}, [], "x"),
        trained("two", {"trainJob": {"name": "one"}}, [], "y"),
    )
    assert "started from: tj/two" in tree(Builder([one, two], []).of_train_job("one"))


def test_the_command(world: World) -> None:
    world.apply("base-lm")
    world.patch_status("base-lm", model={"uri": "/m/a", "digest": "sha256:a"})
    manifest = (
        "apiVersion: slipway.dev/v1alpha1\nkind: Deployment\nmetadata: {name: chat}\nspec: {model: {uri: /m/a}}\n"
    )
    assert world.slipway("apply", "-f", "-", stdin=manifest).code == 0
    engine = {"precision": "bf16", "maxBatch": 1, "maxContextTokens": 64, "maxQueue": 1}
    status = {"status": {"stable": version("v-a", "a", weight=100, engine=engine)}}
    world.api(lambda client: client.merge_patch(DEPLOYMENTS, "default", "chat", status, subresource="status"))
    result = world.slipway("lineage", "sdeploy/chat")
    assert result.code == 0, result.err
    assert "trained by: tj/base-lm" in result.out
    found = json.loads(world.slipway("lineage", "tj/base-lm", "-o", "json").out)
    assert found["root"] == "tj/base-lm"
    refused = world.slipway("lineage", "ej/any")
    assert refused.code == 2
    assert "slipway lineage sdeploy/NAME, or tj/NAME" in refused.err


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_form_shows_what_is_gone(form: str) -> None:
    assert {"json": '"missing": true', "dot": "style=dashed", "html": "class=gone", "tree": "deleted"}[form] in FORMATS[
        form
    ](graph())
