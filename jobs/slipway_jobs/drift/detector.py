"""The decision: is this window drift? An alarm needs evidence *and* an effect, for a signal that has enough values.

Evidence: each kind of drift is a family. A signal's p-value, adjusted by Holm over its family, feeds the signal's
e-detector (`corrections.e_detector`); the bar is the run length asked for, times the number of families (the mean of
their detectors is one too). So the one signal that says the model errs does not pay for the many that look at its
inputs. Windows that overlap share traffic: each phase of a sliding window has detectors of its own that see disjoint
windows, and the bar is higher by their number.
Effect: of this very window, above the threshold that the reference drawn against itself gives (`calibration`).

The streams of concept drift come on top: Page-Hinkley with a run length as long as that of all windowed signals, ADWIN
with a confidence that is no rate of alarms. What all of it comes to is measured by benchmarks/drift.py.

An alarm has an id that follows from the profile, the signal and the window, so a watcher that is killed and sees a
window again says the same again; and while a signal stays drifted it is `active`, not new. Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from slipway_jobs.drift.calibration import DRAWS, calibrate
from slipway_jobs.drift.comparisons import COMPARISONS
from slipway_jobs.drift.concept import FLOOR, ConceptStream, StreamChange
from slipway_jobs.drift.corrections.e_detector import advance
from slipway_jobs.drift.corrections.holm import holm
from slipway_jobs.drift.errors import StateError
from slipway_jobs.drift.profile import ReferenceProfile
from slipway_jobs.drift.signals import EMBEDDING, ERROR, Kind, Signal
from slipway_jobs.drift.statistics.maximum_mean_discrepancy import kernel, unbiased
from slipway_jobs.drift.windows import Window, WindowRule

STATE_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """`run_length`: mean windows up to a false alarm, at the least. `least`: values that a signal needs in a window.

    `reference_level`: the chance that the reference is off by more than the p-values allow for, over all signals.
    """

    run_length: float = 200.0
    reference_level: float = 0.05
    least: int = 50
    adwin_delta: float = 1e-4
    draws: int = DRAWS

    def __post_init__(self) -> None:
        if not self.run_length > 1 or self.least < 2 or not 0 < self.adwin_delta < 1:
            raise ValueError("run_length must be above 1, least at least 2, adwin_delta between 0 and 1")


@dataclass(frozen=True)
class SignalResult:
    """How a signal did in a window. `corrected`: its p-value after Holm; `evidence`: its e-detector, against `bar`."""

    signal: str
    kind: Kind
    test: str
    statistic: float
    effect: float
    threshold: float
    p_value: float
    corrected: float
    evidence: float
    bar: float
    values: int

    @property
    def drifted(self) -> bool:
        """Significant and large enough."""
        return self.evidence >= self.bar and self.effect >= self.threshold


@dataclass(frozen=True)
class Alarm:
    """A signal that drifted in this window and not before. `start`, `end`: wall clock. Streams have no p-value."""

    id: str
    signal: str
    kind: Kind
    test: str
    statistic: float
    effect: float
    threshold: float
    p_value: float | None
    corrected: float | None
    window: int
    start: float
    end: float


@dataclass(frozen=True)
class Verdict:
    """What one window says. `skipped`: signals that could not be judged, with the reason."""

    window: int
    records: int
    results: list[SignalResult] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    active: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def drifted(self) -> bool:
        """Whether any signal is drifted, newly or still."""
        return bool(self.active)


def _corrected_by_kind(compared: list[tuple[Signal, float, float, float]]) -> list[float]:
    """Holm's adjusted p-values within each kind, in the order given."""
    corrected = [1.0] * len(compared)
    for kind in Kind:
        members = [place for place, (signal, *_) in enumerate(compared) if signal.kind is kind]
        for place, adjusted in zip(members, holm([compared[place][3] for place in members]), strict=True):
            corrected[place] = adjusted
    return corrected


class Detector:
    """Judges the windows of one model's traffic in the order of their index."""

    def __init__(self, profile: ReferenceProfile, rule: WindowRule, settings: Settings | None = None) -> None:
        self.profile, self.rule, self.settings = profile, rule, settings or Settings()
        sizes = Counter(signal.kind for signal in profile.signals)
        self.bar = self.settings.run_length * rule.panes * len(sizes)
        self._levels = {
            signal.name: self.settings.reference_level / len(sizes) / sizes[signal.kind] for signal in profile.signals
        }
        self._calibrated = calibrate(profile, rule.size, self._levels, self.settings.draws)
        self._evidence: list[dict[str, float]] = [{} for _ in range(rule.panes)]
        self._active: set[str] = set()
        self._last = -1
        self._changes: list[StreamChange] = []
        self._stream = ConceptStream(
            profile.sample.numbers.get(ERROR, np.zeros(0)),
            self.settings.run_length * rule.size,
            self.settings.adwin_delta,
        )

    def observe_error(self, value: float | None) -> list[StreamChange]:
        """Take one value of the error stream. What it reveals becomes an alarm with the next window."""
        changes = self._stream.add(value)
        self._changes = [*self._changes, *changes][-16:]
        return changes

    def observe(self, window: Window) -> Verdict:
        """Judge a window. One that has been judged already gives a verdict without results, and changes nothing."""
        if window.index <= self._last:
            return Verdict(window.index, window.summary.records, active=sorted(self._active))
        self._last = window.index
        compared, skipped = self._compare(window)
        corrected = _corrected_by_kind(compared)
        evidence = self._evidence[window.index % self.rule.panes]
        results = []
        for (signal, statistic, effect, p_value), adjusted in zip(compared, corrected, strict=True):
            evidence[signal.name] = advance(evidence.get(signal.name, 0.0), adjusted)
            values = window.summary.size_of(signal.name)
            results.append(
                SignalResult(
                    signal.name,
                    signal.kind,
                    signal.test,
                    statistic,
                    effect,
                    self._threshold(signal, values),
                    p_value,
                    adjusted,
                    evidence[signal.name],
                    self.bar,
                    values,
                )
            )
        alarms = [*self._windowed_alarms(window, results), *self._stream_alarms(window)]
        return Verdict(window.index, window.summary.records, results, alarms, sorted(self._active), skipped)

    def _compare(self, window: Window) -> tuple[list[tuple[Signal, float, float, float]], dict[str, str]]:
        compared, skipped = [], {}
        for signal in self.profile.signals:
            values = window.summary.size_of(signal.name)
            if values < self.settings.least:
                skipped[signal.name] = f"{values} values, {self.settings.least} are needed"
                continue
            if signal.name == EMBEDDING:
                compared.append((signal, *self._compare_embeddings(window)))
                continue
            test = COMPARISONS[signal.test]
            reference = self.profile.layout[signal.name].counts
            counts = window.summary.sketches[signal.name].counts
            statistic = float(test.statistic(reference, counts))
            if test.p_value is not None:
                p_value = test.p_value(reference, counts, self._levels[signal.name])
            else:
                p_value = self._calibrated[signal.name].p_value(float(test.distance(reference, counts)), values)
            compared.append((signal, statistic, float(test.effect(reference, counts)), p_value))
        return compared, skipped

    def _compare_embeddings(self, window: Window) -> tuple[float, float, float]:
        rows = window.summary.embedding_rows()
        reference = self.profile.embeddings
        matrix = kernel(np.concatenate([reference, rows]), self.profile.bandwidth)
        members = np.arange(len(matrix))[None, :] < len(reference)
        statistic = float(unbiased(matrix, members)[0])
        distance = math.sqrt(max(0.0, statistic))
        return statistic, distance, self._calibrated[EMBEDDING].p_value(distance, len(rows))

    def _threshold(self, signal: Signal, values: int) -> float:
        order = 0.5 if signal.name == EMBEDDING else COMPARISONS[signal.test].effect_order
        return self._calibrated[signal.name].threshold(values, order)

    def _windowed_alarms(self, window: Window, results: list[SignalResult]) -> list[Alarm]:
        alarms = []
        for result in results:
            if not result.drifted:
                if result.signal in self._active:  # over: what was found is spent, the next alarm must be earned anew
                    self._active.discard(result.signal)
                    for evidence in self._evidence:
                        evidence.pop(result.signal, None)
                continue
            if result.signal in self._active:
                continue
            self._active.add(result.signal)
            alarms.append(
                Alarm(
                    self._id(result.signal, result.test, window.index),
                    result.signal,
                    result.kind,
                    result.test,
                    result.statistic,
                    result.effect,
                    result.threshold,
                    result.p_value,
                    result.corrected,
                    window.index,
                    window.start,
                    window.end,
                )
            )
        return alarms

    def _stream_alarms(self, window: Window) -> list[Alarm]:
        """At most one for each stream test in a window."""
        alarms = []
        changed = {change.test: change for change in self._changes}
        self._changes = []
        for test in ("adwin", "pageHinkley"):
            name = f"{ERROR}:{test}"
            change = changed.get(test)
            if change is None:
                self._active.discard(name)
                continue
            if name in self._active:
                continue
            self._active.add(name)
            alarms.append(
                Alarm(
                    self._id(ERROR, test, window.index),
                    ERROR,
                    Kind.CONCEPT,
                    test,
                    change.statistic,
                    change.effect,
                    FLOOR,
                    None,
                    None,
                    window.index,
                    window.start,
                    window.end,
                )
            )
        return alarms

    def _id(self, signal: str, test: str, window: int) -> str:
        return hashlib.sha256(f"{self.profile.digest}/{signal}/{test}/{window}".encode()).hexdigest()[:16]

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON. Save it before an alarm is acted on: the id makes saying it twice harmless."""
        return {
            "version": STATE_VERSION,
            "profile": self.profile.digest,
            "rule": [self.rule.size, self.rule.stride],
            "last": self._last,
            "evidence": self._evidence,
            "active": sorted(self._active),
            "changes": [asdict(change) for change in self._changes],
            "stream": self._stream.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one stopped. Raises StateError for a state of another profile, rule or version."""
        expected = {
            "version": STATE_VERSION,
            "profile": self.profile.digest,
            "rule": [self.rule.size, self.rule.stride],
        }
        for key, value in expected.items():
            if state.get(key) != value:
                raise StateError(f"the saved state has {key} {state.get(key)!r}, not {value!r}.", "Start without it.")
        try:
            self._evidence = [{str(k): float(v) for k, v in phase.items()} for phase in state["evidence"]]
            self._active = set(state["active"])
            self._changes = [StreamChange(**change) for change in state["changes"]]
            self._stream.restore(state["stream"])
            self._last = int(state["last"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the saved state is damaged: {error!r}.", "Start without it.") from error
