"""The loop: traffic turns from Python to C and English; the Deployment notices, trains on it, and renews its model."""

from __future__ import annotations

from typing import Any

from endpoint import NAME
from shell import CLIENT, condition, patch, remove, run, status, watch
from traffic import Traffic, c_and_english, pieces, python

TEMPLATE = "tj/stdlib-renewal"
WINDOW = 100
ENDED = ("Promoted", "Rejected", "Failed", "Superseded")


def renew(url: str) -> tuple[dict[str, Any], dict[str, Any], Traffic]:
    """The drift alarm, the retrain that followed, and the traffic meanwhile."""
    remove(TEMPLATE)
    run(CLIENT, "apply", "-f", "examples/trainjob-renewal.yaml")
    retrain = {"trainJob": {"name": "stdlib-renewal"}, "data": {"replayRatio": "0.25"}, "cooldownSeconds": 3600}
    patch(NAME, {"capture": {"content": "examples"}, "drift": {"windowRequests": WINDOW, "retrain": retrain}})
    watch(NAME, drift_in_words, lambda now: condition(now, "Drifted").get("reason") == "TooFewRequests", seconds=120)

    print(f"\n# Two windows of {WINDOW} requests as before: pieces of held-out Python modules")
    with Traffic(url, "stdlib", pieces(python(), seed=2), pause=0.05) as traffic:
        watch(NAME, drift_in_words, lambda now: now.get("drift", {}).get("windows", 0) >= 2, seconds=240)
    calm = condition(status(NAME), "Drifted")
    if calm["status"] != "False":
        raise SystemExit(f"demo: a false alarm: {calm['message']}")

    print("\n# Now they ask about C headers and English prose")
    with Traffic(url, "stdlib", pieces(c_and_english(), seed=3), pause=0.05) as traffic:
        found = watch(NAME, drift_in_words, lambda now: condition(now, "Drifted").get("status") == "True", seconds=240)
    alarm = found["drift"]["alarms"][0]
    found = watch(NAME, retrain_in_words, lambda now: bool(last_retrain(now).get("stage") in ENDED), seconds=600)
    return alarm, last_retrain(found), traffic


def last_retrain(now: dict[str, Any]) -> dict[str, Any]:
    """The one at work, else the newest that is over."""
    retrain = now.get("retrain", {})
    found: dict[str, Any] = retrain.get("current") or next(iter(retrain.get("history", [])), {})
    return found


def drift_in_words(now: dict[str, Any]) -> str:
    """The condition Drifted."""
    drifted, drift = condition(now, "Drifted"), now.get("drift", {})
    message = f": {drifted['message']}" if drifted.get("status") == "True" else ""
    return f"{drifted.get('reason', 'not watched yet')}, {drift.get('windows', 0)} windows{message}"


def retrain_in_words(now: dict[str, Any]) -> str:
    """The retrain's stage."""
    retrain = last_retrain(now)
    if not retrain:
        told = condition(now, "Retraining")
        return f"{told.get('reason', 'nothing yet')}: {told.get('message')}"
    return f"{retrain['id']}: {retrain['stage']} {retrain.get('message', '')}"
