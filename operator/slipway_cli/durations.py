"""Times as people write and read them: `10m` in, `3m20s` out. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from slipway_cli.errors import UsageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)")
_WEEK = 7 * 86400.0


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `10m`, `1h30m`, or of a bare number; as in kubectl, a negative one means a week.

    Raises UsageError for anything else.
    """
    stripped = text.strip()
    negative, body = stripped.startswith("-"), stripped.lstrip("+-")
    parts = list(_PART.finditer(body))
    if parts and "".join(part.group(0) for part in parts) == body:
        seconds = sum(float(part.group(1)) * _UNITS[part.group(2)] for part in parts)
    elif re.fullmatch(r"\d+(\.\d+)?", body):
        seconds = float(body)
    else:
        raise UsageError(f"{text!r} is not a duration", hint="write it as 90s, 10m or 1h30m")
    return _WEEK if negative else seconds


def short_duration(seconds: float) -> str:
    """At most two units: 8s, 1m20s, 2h5m, 3d4h."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days}d{hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    return f"{whole}s"


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time with its zone; None where there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def ago(text: str | None, now: datetime) -> str:
    """How long before `now` that was, or "<unknown>"."""
    moment = parse_time(text) if text else None
    return short_duration((now - moment).total_seconds()) if moment else "<unknown>"
