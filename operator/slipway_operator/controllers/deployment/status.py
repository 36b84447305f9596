"""The draft of a Deployment's status: starts from what is stored, changed by the decision, written once. Pure."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from slipway_api import conditions as c
from slipway_api.deployment import RejectedVersion, ServedVersion

_MAX_REJECTED = 10
_CONDITION_ORDER = (c.GATE_PASSED, c.COMPRESSED, c.AVAILABLE, c.PROGRESSING, c.DEGRADED, c.DRIFTED, c.RETRAINING)


class Draft:
    """The versions and conditions of a Deployment, as they become."""

    def __init__(self, deployment: dict[str, Any], now: datetime) -> None:
        self._status: dict[str, Any] = copy.deepcopy(deployment.get("status") or {})
        self._generation = deployment["metadata"].get("generation", 0)
        self.time = now
        self.now = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.stable = self._version("stable")
        self.candidate = self._version("candidate")
        self.retiring = [ServedVersion.model_validate(v) for v in self._status.get("retiring", [])]
        self.rejected = [RejectedVersion.model_validate(v) for v in self._status.get("rejected", [])]

    def _version(self, key: str) -> ServedVersion | None:
        value = self._status.get(key)
        return ServedVersion.model_validate(value) if value else None

    def versions(self) -> list[ServedVersion]:
        """Every version that has an application, the stable one first."""
        return [v for v in (self.stable, self.candidate, *self.retiring) if v is not None]

    def rejection_of(self, version: str) -> RejectedVersion | None:
        """Why this version was rolled back, or None."""
        return next((r for r in self.rejected if r.version == version), None)

    def seconds_since(self, moment: str | None) -> float:
        """Seconds from an RFC 3339 time until now."""
        if not moment:
            return 0.0
        return (self.time - datetime.fromisoformat(moment.replace("Z", "+00:00"))).total_seconds()

    def put(self, key: str, value: Any) -> None:
        """Set a field of status; None takes it away."""
        self._status[key] = value
        if value is None:
            del self._status[key]

    def value(self, key: str) -> Any:
        """A field of status, or None."""
        return self._status.get(key)

    def set(self, type_: str, status: c.Status, reason: str, message: str) -> None:
        """Set a condition."""
        self._status["conditions"] = c.set_condition(
            self._status.get("conditions", []),
            type_,
            status,
            reason,
            message,
            generation=self._generation,
            now=self.now,
        )

    def drop(self, type_: str) -> None:
        """Take a condition away: there is nothing any more that it could speak of."""
        kept = [one for one in self._status.get("conditions", []) if one["type"] != type_]
        self._status["conditions"] = kept

    def condition(self, type_: str) -> dict[str, Any] | None:
        """A condition, or None before it was first set."""
        return c.find_condition(self._status.get("conditions", []), type_)

    def retire(self, version: ServedVersion) -> None:
        """No more requests for it; those that it has may end."""
        gone = version.model_copy(
            update={"weight": 0, "since": self.now, "step": None, "step_since": None, "step_requests": None}
        )
        self.retiring = [gone, *(v for v in self.retiring if v.version != version.version)][:4]

    def reject(self, version: ServedVersion, reason: str, message: str) -> None:
        """It was tried and rolled back."""
        entry = RejectedVersion(version=version.version, reason=reason, message=message[:4096], time=self.now)
        self.pardon(version)
        self.rejected = [entry, *self.rejected][:_MAX_REJECTED]

    def pardon(self, version: ServedVersion) -> None:
        """Forget that it was rejected."""
        self.rejected = [r for r in self.rejected if r.version != version.version]

    def finish(self) -> dict[str, Any]:
        """The status to write."""
        for key, version in (("stable", self.stable), ("candidate", self.candidate)):
            if version is None:
                self._status.pop(key, None)
            else:
                self._status[key] = version.to_wire()
        self._status["retiring"] = [v.to_wire() for v in self.retiring]
        self._status["rejected"] = [r.to_wire() for r in self.rejected]
        self._status["version"] = self.stable.version if self.stable else ""
        self._status["weights"] = self._weights()
        self._status["observedGeneration"] = self._generation
        conditions = {condition["type"]: condition for condition in self._status.get("conditions", [])}
        self._status["conditions"] = [conditions[type_] for type_ in _CONDITION_ORDER if type_ in conditions]
        self._status["state"] = self._state()
        return self._status

    def _weights(self) -> str:
        """For the printer column: 100, or 90/10 while a candidate is there."""
        shown = [v for v in (self.stable, self.candidate) if v is not None]
        return "/".join(str(v.weight) for v in shown)

    def _state(self) -> str:
        conditions = self._status.get("conditions", [])
        for type_ in (c.DEGRADED, c.PROGRESSING):
            if c.is_true(conditions, type_):
                reason = str((self.condition(type_) or {}).get("reason"))
                return reason if reason == c.COMPRESSING else type_
        available = c.find_condition(conditions, c.AVAILABLE)
        if available is None:
            return "Pending"
        return c.AVAILABLE if available["status"] == "True" else str(available["reason"])
