"""`slipway describe`: an object told in sections, with its events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from slipway_cli import describe_deployment, describe_evaljob, jobs
from slipway_cli.durations import ago, short_duration
from slipway_cli.output import to_yaml, without_managed_fields
from slipway_cli.sections import Pairs, attempts, conditions, count, flat, pairs, section, usage
from slipway_cli.tables import cell_text, render
from slipway_cli.terminal import printable

Json = dict[str, Any]


def describe(obj: Json, events: Sequence[Json], now: datetime) -> str:
    """Everything worth knowing about an object, ending in a newline. `now` is the time to count ages from."""
    sections = [pairs(_identity(obj, now))]
    if jobs.is_ours(obj, "TrainJob"):
        sections += _train_job(obj, now)
    elif jobs.is_ours(obj, "EvalJob"):
        sections += describe_evaljob.sections(obj, now)
    elif jobs.is_ours(obj, "Deployment"):
        sections += describe_deployment.sections(obj, now)
    else:
        sections += _anything(obj)
    sections.append(_events(events, now))
    return printable("\n".join(section for section in sections if section))


def _identity(obj: Json, now: datetime) -> Pairs:
    metadata = obj.get("metadata") or {}
    yield "Name", metadata.get("name")
    yield "Namespace", metadata.get("namespace")
    yield "Kind", f"{obj.get('kind')} ({obj.get('apiVersion')})"
    yield "Labels", flat(metadata.get("labels"))
    created = metadata.get("creationTimestamp")
    yield "Created", f"{created} ({ago(created, now)} ago)" if created else None
    deleted = metadata.get("deletionTimestamp")
    if deleted:
        waiting = ", ".join(metadata.get("finalizers") or []) or "its owner's other children"
        yield "Deleting", f"since {ago(deleted, now)}; waits for {waiting}"
    owners = metadata.get("ownerReferences") or []
    yield "Controlled by", ", ".join(f"{o.get('kind')}/{o.get('name')}" for o in owners if o.get("controller")) or None


# --- TrainJob -----------------------------------------------------------------------------------------------------


def _train_job(obj: Json, now: datetime) -> list[str]:
    spec, status = obj.get("spec") or {}, jobs.status_of(obj)
    return [
        pairs([("State", jobs.stage(obj)), ("Now", jobs.why(obj))]),
        section("Spec", pairs(_spec(spec), indent=2)),
        section("Conditions", conditions(jobs.conditions_of(obj), now)),
        section("Plan", pairs(_plan(status.get("plan") or {}), indent=2)),
        section("Progress", pairs(_progress(status.get("progress") or {}, now), indent=2)),
        section("Checkpoint", pairs(_checkpoint(status, now), indent=2)),
        section("Attempts", attempts(jobs.attempt_records(obj), spec, now)),
        section("Model", pairs(_model(status.get("model") or {}), indent=2)),
        section("Used", pairs(usage(status), indent=2)),
    ]


def _spec(spec: Json) -> Pairs:
    yield "Model", _model_source(spec.get("model") or {})
    yield "Tokenizer", _tokenizer(spec.get("tokenizer") or {})
    data = spec.get("data") or {}
    for label, field in (("Data", "sources"), ("Held out", "evalSources")):
        yield label, "; ".join(_source(source) for source in data.get(field) or []) or None
    yield "Split", flat(data["split"]) if data.get("split") else None
    yield "Sequences", f"{data['sequenceLength']} tokens" if "sequenceLength" in data else None
    training = spec.get("training") or {}
    yield "Training", _training(training)
    optimizer = training.get("optimizer") or {}
    yield "Optimizer", flat(optimizer)
    yield "Strategy", _strategy(spec.get("strategy") or {})
    workers = spec.get("workers") or {}
    resources = workers.get("resources") or {}
    each = ", ".join(f"{key} {value}" for key, value in resources.items() if value)
    yield "Workers", f"{workers['count']} x ({each})" if "count" in workers else None
    checkpoint = spec.get("checkpoint") or {}
    if "everySteps" in checkpoint:
        at_risk, kept = checkpoint["everySteps"], checkpoint.get("keepLast")
        yield "Checkpoints", f"at most {at_risk} steps are at risk, the last {kept} checkpoints are kept"
    retry = spec.get("retry") or {}
    yield (
        "Retries",
        f"{retry['limit']}, {retry.get('backoffSeconds')}s apart and doubling" if "limit" in retry else None,
    )
    yield "Suspended", "yes, by spec.suspend" if spec.get("suspend") else None
    yield "Priority", spec.get("priorityClassName")
    deadline = spec.get("activeDeadlineSeconds")
    yield "Deadline", short_duration(deadline) + " after the first start" if deadline else None
    ttl = spec.get("ttlSecondsAfterFinished")
    yield "Deleted", short_duration(ttl) + " after the end" if ttl is not None else None


def _model_source(model: Json) -> str | None:
    if "fresh" in model:
        fresh = model["fresh"]
        words = f"{fresh.get('layers')} layers x {fresh.get('hiddenSize')} wide, {fresh.get('heads')} heads"
        return f"fresh {fresh.get('architecture', '')}: {words}, {fresh.get('maxPositionEmbeddings')} positions"
    if "hub" in model:
        return f"hub {model['hub'].get('repo')}@{model['hub'].get('revision')}"
    if "trainJob" in model:
        return f"the model of TrainJob {model['trainJob'].get('name')}"
    return model.get("uri")


def _tokenizer(tokenizer: Json) -> str | None:
    if "train" in tokenizer:
        return f"trained on the data, {tokenizer['train'].get('vocabSize')} tokens"
    if "hub" in tokenizer:
        return f"hub {tokenizer['hub'].get('repo')}@{tokenizer['hub'].get('revision')}"
    return tokenizer.get("uri") or "the model's own"


def _source(source: Json) -> str:
    words = [f"{source.get('uri')} ({source.get('format', 'text')})"]
    words += [f"{word} {', '.join(source[word])}" for word in ("include", "exclude") if source.get(word)]
    return " ".join(words)


def _training(training: Json) -> str | None:
    if not training:
        return None
    length = f"{training['steps']} steps" if "steps" in training else f"{training.get('epochs')} epochs"
    batch = f"batches of {training.get('globalBatchSize')} sequences, {training.get('microBatchSize')} at a time"
    return f"{length}, {batch}, {training.get('precision')}, seed {training.get('seed')}"


def _strategy(strategy: Json) -> str:
    name = next((key for key in ("ddp", "fsdp", "deepspeed") if key in strategy), "fsdp")
    options = flat(strategy.get(name))
    return f"{name} ({options})" if options else name


def _plan(plan: Json) -> Pairs:
    if not plan:
        return
    yield "Strategy", plan.get("strategy")
    yield "Ranks", f"{plan.get('worldSize')} on {plan.get('device')}, {plan.get('backend')}"
    yield "Parameters", f"{count(plan.get('parameters'))}, at most {count(plan.get('parametersPerRank'))} per rank"
    yield (
        "Batch",
        f"{plan.get('microBatchSize')} sequences x {plan.get('accumulationSteps')} accumulation steps per rank",
    )
    yield "Data", f"{count(plan.get('trainTokens'))} tokens to train on, {count(plan.get('evalTokens'))} held out"
    yield "Data digest", plan.get("dataDigest")


def _progress(progress: Json, now: datetime) -> Pairs:
    if not progress:
        return
    yield "Step", f"{progress.get('step')} of {progress.get('steps')}"
    yield "Loss", progress.get("loss")
    yield "Held-out loss", progress.get("evalLoss")
    yield "Learning rate", progress.get("learningRate")
    speed, eta = progress.get("tokensPerSecond"), progress.get("etaSeconds")
    yield "Speed", f"{count(speed)} tokens/s" if speed is not None else None
    yield "Time left", short_duration(eta) if eta else None
    yield "Reported", f"{ago(progress['updatedAt'], now)} ago" if progress.get("updatedAt") else None


def _checkpoint(status: Json, now: datetime) -> Pairs:
    checkpoint = status.get("checkpoint") or {}
    if checkpoint:
        when = f", {ago(checkpoint['time'], now)} ago" if checkpoint.get("time") else ""
        yield "Step", f"{checkpoint.get('step')}{when}"
        yield "Where", checkpoint.get("uri")
    for skipped in status.get("skippedCheckpoints") or []:
        yield "Skipped", f"{skipped.get('uri')}: {skipped.get('reason')}"


def _model(model: Json) -> Pairs:
    if not model:
        return
    yield "Where", model.get("uri")
    yield "Digest", model.get("digest")
    yield "Parameters", count(model.get("parameters")) if model.get("parameters") else None
    yield "Held-out loss", model.get("evalLoss")
    before, after = model.get("initialPerplexity"), model.get("perplexity")
    yield "Perplexity", f"{after}, before training {before}" if after and before else after


# --- any other kind -----------------------------------------------------------------------------------------------


def _anything(obj: Json) -> list[str]:
    plain = without_managed_fields(obj)
    sections = []
    for key, value in plain.items():
        if key in ("apiVersion", "kind", "metadata", "status"):
            continue
        if obj.get("kind") == "Secret" and key in ("data", "stringData"):
            value = {name: f"{len(str(text))} characters" for name, text in (value or {}).items()}  # noqa: PLW2901
        body = to_yaml(value) if isinstance(value, (dict, list)) else f"{value}\n"
        sections.append(section(key[:1].upper() + key[1:], "".join(f"  {line}\n" for line in body.splitlines())))
    if plain.get("status"):
        sections.append(section("Status", "".join(f"  {line}\n" for line in to_yaml(plain["status"]).splitlines())))
    return sections


# --- events -------------------------------------------------------------------------------------------------------


def event_time(event: Json) -> str:
    """When an event last happened, whichever of its fields says so."""
    series = event.get("series") or {}
    candidates = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    created = (event.get("metadata") or {}).get("creationTimestamp")
    return next((str(time) for time in (*candidates, created) if time), "")


def _events(events: Sequence[Json], now: datetime) -> str:
    if not events:
        return "Events: <none>\n"
    rows = []
    for event in sorted(events, key=lambda e: (event_time(e), str(e.get("firstTimestamp") or ""))):
        count = (event.get("series") or {}).get("count") or event.get("count") or 1
        age = ago(event_time(event), now) + (f" (x{count})" if count > 1 else "")
        source = event.get("reportingComponent") or (event.get("source") or {}).get("component") or ""
        message = cell_text(event.get("message") or "")
        rows.append([f"  {event.get('type')}", str(event.get("reason")), age, str(source), message])
    return section("Events", render(["  TYPE", "REASON", "AGE", "FROM", "MESSAGE"], rows) + "\n")
