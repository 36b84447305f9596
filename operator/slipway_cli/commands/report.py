"""`slipway report`: the HTML report of an EvalJob or of a Deployment's drift, opened in a browser if there is one."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path

from slipway_cli import jobs, session
from slipway_cli.errors import ModelError, UsageError
from slipway_cli.options import choice_of
from slipway_cli.session import Session
from slipway_operator.kube.resource import Json

_LOCAL = ("file://localhost/", "file:///")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints where the report is; opens it on a desktop, unless --no-open."""
    place = session.run(choice_of(arguments), environment, lambda opened: _report(opened, arguments.what))
    path = local_path(place)
    print(path or place)
    if path is not None and not arguments.no_open and sys.stdout.isatty() and _has_desktop(environment):
        webbrowser.open(path.as_uri())
    return 0


def local_path(place: str) -> Path | None:
    """The file, if it is one of this machine; None for an object store."""
    for prefix in _LOCAL:
        if place.startswith(prefix):
            return Path("/" + place.removeprefix(prefix))
    return Path(place) if place.startswith("/") else None


def _has_desktop(environment: Mapping[str, str]) -> bool:
    return (
        bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))
        or os.name == "nt"
        or sys.platform == "darwin"
    )


async def _report(opened: Session, words: list[str]) -> str:
    kind, name = await opened.one(words)
    if kind.resource.kind not in ("EvalJob", "Deployment"):
        message = f"reports are of EvalJobs and Deployments, not of {kind.resource.kind}"
        raise UsageError(message, hint="slipway report ej/NAME")
    job = await opened.get(kind, name)
    if kind.resource.kind == "Deployment":
        return _drift_report(name, job)
    report = (jobs.status_of(job).get("results") or {}).get("report")
    if report:
        return str(report)
    raise _no_report(name, job)


def _drift_report(name: str, deployment: Json) -> str:
    status = jobs.status_of(deployment)
    report = (status.get("drift") or {}).get("report")
    if report:
        return str(report)
    if not (deployment.get("spec") or {}).get("drift"):
        message = f"sdeploy/{name} has no report: nobody looks for drift, because spec.drift is not set"
        raise ModelError(message, hint="slipway report ej/NAME is for evaluations")
    drifted: Json = next((one for one in status.get("conditions") or [] if one.get("type") == "Drifted"), {})
    why = drifted.get("message") or "the watcher has not said anything"
    raise ModelError(f"sdeploy/{name} has no report yet: {why}", hint=f"slipway get sdeploy/{name} -o yaml")


def _no_report(name: str, job: Json) -> ModelError:
    folds = jobs.status_of(job).get("folds") or []
    if folds:
        which = ", ".join(f"ej/{fold['evalJob']}" for fold in folds[:3]) + (", ..." if len(folds) > 3 else "")
        return ModelError(
            f"ej/{name} is a cross-validation: each of its folds has a report ({which})",
            hint=f"slipway report ej/{folds[0]['evalJob']}; slipway describe ej/{name} has the means",
        )
    if jobs.finished(job):
        return ModelError(f"ej/{name} has no report: {jobs.end_of(job)}", hint=f"slipway logs ej/{name}")
    return ModelError(
        f"ej/{name} has no report yet: it is {jobs.stage(job)} ({jobs.why(job)})",
        hint=f"slipway wait ej/{name} --for=condition=Succeeded",
    )
