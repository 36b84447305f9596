"""What Ray reads from the environment: set by the driver before it imports Ray, which hands it on to its workers."""

from __future__ import annotations

from collections.abc import MutableMapping

RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead rank, and the end, are noticed (default 2)
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process; a lost node is noticed without it
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # the controller runs in the driver, whose log is ours
    "RAY_COLOR_PREFIX": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def apply(environ: MutableMapping[str, str]) -> None:
    """Set each one that is not set yet: whoever runs the cluster knows better."""
    for name, value in RAY_SETTINGS.items():
        environ.setdefault(name, value)
