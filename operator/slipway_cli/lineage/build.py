"""From objects to the graph. Pure: every reader takes raw objects and survives a missing field.

A Deployment's status says which versions there are and which retrain each came of; a retrain names its alarm, its
TrainJob and its EvalJobs; a TrainJob names its data and where it started. What was deleted is told from what others say
of it, and marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from slipway_api import conditions as c
from slipway_cli.jobs import conditions_of, name_of, status_of
from slipway_cli.lineage.graph import Graph, Node

Json = dict[str, Any]


class Builder:
    """Builds one graph from the jobs of a namespace."""

    def __init__(self, train_jobs: Iterable[Json], eval_jobs: Iterable[Json]) -> None:
        self._graph = Graph()
        self._train_jobs = {name_of(job): job for job in train_jobs}
        self._eval_jobs = {name_of(job): job for job in eval_jobs}
        self._by_model = {
            status_of(job)["model"]["uri"]: name
            for name, job in self._train_jobs.items()
            if status_of(job).get("model")
        }
        self._runs: dict[str, Json] = {}
        self._open: list[str] = []  # what is being built: an edge back to it would close a circle

    def _link(self, source: str, target: str, relation: str) -> None:
        if target not in self._open:
            self._graph.link(source, target, relation)

    def of_train_job(self, name: str) -> Graph:
        """Where a TrainJob's model comes from."""
        self._graph.root = self._train_job(name)
        return self._graph

    def of_deployment(self, deployment: Json) -> Graph:
        """Every version that is known, and where each comes from."""
        status, name = status_of(deployment), name_of(deployment)
        graph, retrain = self._graph, status_of(deployment).get("retrain") or {}
        graph.root = graph.add(
            Node(f"sdeploy/{name}", "Deployment", f"sdeploy/{name}", _facts(State=status.get("state")))
        )
        runs = [*([retrain["current"]] if retrain.get("current") else []), *(retrain.get("history") or [])]
        self._runs = {run["id"]: run for run in runs}
        alarms = {alarm["id"]: alarm for alarm in (status.get("drift") or {}).get("alarms") or []}
        for version, words in _versions(status):
            relation = words.split(",", maxsplit=1)[0]
            graph.link(graph.root, self._version(version, words, runs, alarms), relation)
        for run in runs:
            if not run.get("version"):
                graph.link(graph.root, self._run(run, runs, alarms), "tried")
            elif f"version/{run['version']}" not in graph.nodes:
                model = {
                    "version": run["version"],
                    "reference": {"uri": run.get("model")},
                    "digest": run.get("modelDigest"),
                }
                graph.link(graph.root, self._version(model, f"past, {run['stage'].lower()}", runs, alarms), "past")
        return graph

    # --- versions and retrains ---

    def _version(self, version: Json, words: str, runs: list[Json], alarms: dict[str, Json]) -> str:
        name, uri = str(version.get("version")), (version.get("reference") or {}).get("uri")
        compression = version.get("compression") or {}
        facts = _facts(
            Is=words,
            Model=_model_words(version.get("reference") or {}),
            Digest=version.get("digest"),
            Requests=version.get("requests"),
            Compression=compression.get("scheme"),
            Compressed=compression.get("digest"),
            QualityLoss=compression.get("qualityLoss"),
        )
        node = f"version/{name}"
        if node in self._graph.nodes:
            return node
        self._graph.add(Node(node, "Version", f"version {name}", facts))
        self._open.append(node)
        run = next((run for run in runs if run.get("version") == name or (uri and run.get("model") == uri)), None)
        if run is not None:
            self._graph.link(node, self._run(run, runs, alarms), "came of")
        elif uri in self._by_model:
            self._graph.link(node, self._train_job(self._by_model[uri]), "trained by")
        elif str(version.get("source", "")).startswith("trainjob/"):
            source = str(version["source"]).partition(" ")[0]  # a scheme of compression may follow
            self._graph.link(node, self._train_job(source.partition("/")[2]), "trained by")
        elif facts.get("Model"):
            self._graph.link(node, self._model(facts["Model"]), "is")
        self._open.remove(node)
        return node

    def _run(self, run: Json, runs: list[Json], alarms: dict[str, Json]) -> str:
        node, graph = f"retrain/{run['id']}", self._graph
        if node in graph.nodes:
            return node
        facts = _facts(
            Stage=run.get("stage"),
            Why=run.get("message"),
            Cost=f"{run.get('gpuHours', '0')} hours",
            Began=run.get("started"),
            Ended=run.get("ended"),
        )
        graph.add(Node(node, "Retrain", f"retrain {run['id']}", facts))
        graph.link(node, self._cause(run, alarms), "caused by")
        graph.link(node, self._train_job(run["id"], run), "trained by")
        self._evaluations(node, run["id"], bool(run.get("model")))
        snapshot = run.get("snapshot")
        if snapshot:
            told = _facts(
                Where=snapshot.get("uri"),
                Digest=snapshot.get("digest"),
                Examples=f"{snapshot.get('examples')}, {snapshot.get('heldOut')} held out",
            )
            graph.link(
                node, graph.add(Node(f"data/{snapshot.get('digest')}", "Data", "captured examples", told)), "learned"
            )
        if run.get("baseVersion") and run["baseVersion"] != run.get("version"):
            base = {"version": run["baseVersion"], "reference": run.get("base") or {}}
            self._link(node, self._version(base, "base of a retrain", runs, alarms), "started from")
        return node

    def _cause(self, run: Json, alarms: dict[str, Json]) -> str:
        if run.get("cause") != "drift":
            when = str(run.get("scheduled"))
            return self._graph.add(Node(f"schedule/{when}", "Schedule", f"schedule of {when}"))
        alarm = alarms.get(str(run.get("alarm")), {})
        facts = _facts(
            Alarm=run.get("alarm"),
            Kind=alarm.get("kind"),
            Test=alarm.get("test"),
            Effect=alarm and f"{alarm.get('effect')}, above {alarm.get('threshold')}",
            Window=alarm and f"{alarm.get('start')} to {alarm.get('end')}",
        )
        return self._graph.add(Node(f"drift/{run.get('alarm')}", "Drift", f"drift of {run.get('signal')}", facts))

    # --- jobs ---

    def _train_job(self, name: str, run: Json | None = None) -> str:
        node, graph = f"tj/{name}", self._graph
        run = run or self._runs.get(name)
        if node in graph.nodes:
            return node
        job = self._train_jobs.get(name)
        if job is None:
            told = _facts(Model=(run or {}).get("model"), Digest=(run or {}).get("modelDigest"))
            return graph.add(Node(node, "TrainJob", f"tj/{name}", told, missing=True))
        status = status_of(job)
        model = status.get("model") or {}
        facts = _facts(
            State=status.get("state"),
            Model=model.get("uri"),
            Digest=model.get("digest"),
            Perplexity=model.get("perplexity"),
        )
        graph.add(Node(node, "TrainJob", f"tj/{name}", facts))
        self._open.append(node)
        graph.link(node, self._data(name, job), "data")
        if run is None:
            self._evaluations(node, name, bool(model))
        base = job.get("spec", {}).get("model") or {}
        if base.get("trainJob"):
            self._link(node, self._train_job(base["trainJob"]["name"]), "started from")
        elif base.get("uri") in self._by_model:
            self._link(node, self._train_job(self._by_model[base["uri"]]), "started from")
        else:
            graph.link(node, self._model(_model_words(base)), "started from")
        self._open.remove(node)
        return node

    def _data(self, name: str, job: Json) -> str:
        data, plan = job.get("spec", {}).get("data") or {}, status_of(job).get("plan") or {}
        sources = ", ".join(_source(source) for source in data.get("sources") or [])
        held_out = ", ".join(_source(source) for source in data.get("evalSources") or [])
        facts = _facts(
            Digest=plan.get("dataDigest"),
            Sources=sources,
            HeldOut=held_out or (data.get("split") and "a split of the sources"),
            Tokens=plan.get("trainTokens"),
        )
        return self._graph.add(Node(f"data/{plan.get('dataDigest') or name}", "Data", f"data of tj/{name}", facts))

    def _evaluations(self, node: str, train_job: str, trained: bool) -> None:
        """The EvalJobs of a TrainJob's model. Of a retrain there is at least one, unless it ended before."""
        found = [name for name, job in self._eval_jobs.items() if self._measures(job, train_job)]
        if node.startswith("retrain/") and trained and train_job not in found:
            found.append(train_job)
        for name in found:
            self._graph.link(node, self._eval_job(name), "measured by")

    def _measures(self, job: Json, train_job: str) -> bool:
        named = (job.get("spec", {}).get("model") or {}).get("trainJob") or {}
        uri = (status_of(job).get("model") or {}).get("uri")
        return named.get("name") == train_job or (uri is not None and self._by_model.get(uri) == train_job)

    def _eval_job(self, name: str) -> str:
        job = self._eval_jobs.get(name)
        if job is None:
            return self._graph.add(Node(f"ej/{name}", "EvalJob", f"ej/{name}", missing=True))
        passed = c.find_condition(conditions_of(job), c.PASSED) or {}
        facts = _facts(
            Passed=passed.get("status"),
            Because=passed.get("message"),
            Digest=(status_of(job).get("model") or {}).get("digest"),
            Report=(status_of(job).get("results") or {}).get("report"),
        )
        return self._graph.add(Node(f"ej/{name}", "EvalJob", f"ej/{name}", facts))

    def _model(self, words: str) -> str:
        return self._graph.add(Node(f"model/{words}", "Model", words))


def _versions(status: Json) -> list[tuple[Json, str]]:
    """Every version that status names, with what it is."""
    found = []
    if status.get("stable"):
        found.append((status["stable"], f"serves, {status['stable'].get('weight')}% of the requests"))
    if status.get("candidate"):
        found.append((status["candidate"], f"candidate, {status['candidate'].get('weight')}% of the requests"))
    found += [(version, "retiring") for version in status.get("retiring") or []]
    found += [(version, f"rejected, {version.get('reason')}") for version in status.get("rejected") or []]
    return found


def _facts(**facts: Any) -> dict[str, str]:
    """Those that say something. HeldOut becomes "Held out"."""
    names = {"HeldOut": "Held out", "QualityLoss": "Quality loss"}
    return {names.get(name, name): str(value) for name, value in facts.items() if value not in (None, "", {}, [])}


def _source(source: Json) -> str:
    sample = source.get("sample")
    return f"{source.get('uri')}" + (f" ({sample['fraction']} of it)" if sample else "")


def _model_words(model: Json) -> str:
    if model.get("fresh"):
        return f"random weights ({model['fresh'].get('architecture', 'llama')})"
    if model.get("hub"):
        return f"hub {model['hub'].get('repo')}@{model['hub'].get('revision', 'main')}"
    return str(model.get("uri") or "")
