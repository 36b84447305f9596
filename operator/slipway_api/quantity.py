"""Kubernetes quantities as numbers."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

_SUFFIXES: dict[str, Decimal] = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def parse_quantity(text: str | int | float) -> Decimal:
    """The value of a quantity: `parse_quantity("1500m") == 1.5`, `parse_quantity("2Gi") == 2147483648`.

    Raises ValueError for anything that is not a quantity.
    """
    raw = str(text).strip()
    suffix = next((s for s in sorted(_SUFFIXES, key=len, reverse=True) if raw.endswith(s)), "")
    try:
        value = Decimal(raw[: len(raw) - len(suffix)] if suffix else raw)
    except InvalidOperation:
        raise ValueError(f"not a Kubernetes quantity: {text!r}") from None
    if not value.is_finite():
        raise ValueError(f"not a Kubernetes quantity: {text!r}")
    return value * _SUFFIXES.get(suffix, Decimal(1))


def format_bytes(count: float) -> str:
    """A byte count for people: `format_bytes(1610612736) == "1.5Gi"`."""
    for suffix in ("", "Ki", "Mi", "Gi", "Ti"):
        if count < 1024 or suffix == "Ti":
            return f"{count:.4g}{suffix}"
        count /= 1024
    raise AssertionError("unreachable")
