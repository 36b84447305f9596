"""Renders the Serve application of the drift watcher. Pure.

It is an application of its own: its arguments change with the stable version, and no change of it may restart the
router or an engine. It takes no CPU of Ray's count, as the router.
"""

from __future__ import annotations

from typing import Any

from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_api.run import ReportTarget
from slipway_api.serving import WATCHER_APPLICATION, WATCHER_IMPORT_PATH, WatcherConfig


def capture(spec: DeploymentSpec) -> str:
    """Whom the router sends what it captures to; empty for nobody."""
    return "" if spec.drift is None or spec.capture.content == "none" else WATCHER_APPLICATION


def applications(
    deployment: dict[str, Any], spec: DeploymentSpec, stable: ServedVersion, report: ReportTarget, storage: str
) -> list[dict[str, Any]]:
    """The watcher of the stable version, or nothing. `storage`: the prefix that it may write below."""
    if spec.drift is None or spec.capture.content == "none":
        return []
    metadata, reference = deployment["metadata"], spec.drift.reference
    config = WatcherConfig(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=stable.version,
        model=stable.reference,
        storage=storage,
        content=spec.capture.content,
        redact=spec.capture.redact,
        max_examples=spec.capture.max_examples,
        window_requests=spec.drift.window_requests,
        sources=reference.sources if reference is not None else [],
        report=report,
    )
    return [
        {
            "name": WATCHER_APPLICATION,
            "route_prefix": None,
            "import_path": WATCHER_IMPORT_PATH,
            "args": config.to_wire(),
        }
    ]
