"""What jobs need and what the machine has: CPUs, GPUs and memory, compared and put into words."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from slipway_api.quantity import format_bytes


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of each resource; memory in bytes."""

    cpu: Decimal = Decimal(0)
    gpu: Decimal = Decimal(0)
    memory: Decimal = Decimal(0)

    @classmethod
    def of(cls, cpu: float, gpu: float = 0, memory: float = 0) -> Resources:
        """From plain numbers, as JSON has them."""
        return cls(Decimal(str(cpu)), Decimal(str(gpu)), Decimal(str(memory)))

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpu + other.cpu, self.gpu + other.gpu, self.memory + other.memory)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpu - other.cpu, self.gpu - other.gpu, self.memory - other.memory)

    def __mul__(self, count: int) -> Resources:
        return Resources(self.cpu * count, self.gpu * count, self.memory * count)

    def fits(self, free: Resources) -> bool:
        """Whether all of it fits into what is free. Nothing needed always fits, even if more is used than there is."""
        return all(
            need == 0 or need <= have
            for need, have in ((self.cpu, free.cpu), (self.gpu, free.gpu), (self.memory, free.memory))
        )


def total(amounts: list[Resources]) -> Resources:
    """The sum."""
    result = Resources()
    for amount in amounts:
        result = result + amount
    return result


def largest(*amounts: Resources) -> Resources:
    """The most of each resource."""
    return Resources(
        max((amount.cpu for amount in amounts), default=Decimal(0)),
        max((amount.gpu for amount in amounts), default=Decimal(0)),
        max((amount.memory for amount in amounts), default=Decimal(0)),
    )


def describe(amount: Resources) -> str:
    """For people: `2 CPUs, 1 GPU, 4Gi of memory`."""
    parts = [
        _count(amount.cpu, "CPU"),
        _count(amount.gpu, "GPU"),
        f"{format_bytes(float(amount.memory))} of memory" if amount.memory else "",
    ]
    return ", ".join(part for part in parts if part) or "nothing"


def describe_shortage(need: Resources, free: Resources, capacity: Resources) -> str:
    """What is free of that which does not fit: `0 of 2 CPUs free`; "" when everything fits."""
    parts = []
    if need.cpu and need.cpu > free.cpu:
        parts.append(f"{_number(free.cpu)} of {_count(capacity.cpu, 'CPU', zero=True)}")
    if need.gpu and need.gpu > free.gpu:
        parts.append(f"{_number(free.gpu)} of {_count(capacity.gpu, 'GPU', zero=True)}")
    if need.memory and need.memory > free.memory:
        parts.append(
            f"{format_bytes(max(0.0, float(free.memory)))} of {format_bytes(float(capacity.memory))} of memory"
        )
    return f"{', '.join(parts)} free" if parts else ""


def _count(amount: Decimal, word: str, *, zero: bool = False) -> str:
    if not amount and not zero:
        return ""
    return f"{_number(amount)} {word}{'' if amount == 1 else 's'}"


def _number(amount: Decimal) -> str:
    return f"{max(amount, Decimal(0)).normalize():f}"
