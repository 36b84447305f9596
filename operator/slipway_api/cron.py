"""Cron expressions of five fields in UTC: minute, hour, day of month, month, day of week (POSIX crontab).

Each field is `*`, numbers, ranges `a-b` and steps `*/n`, `a-b/n`, joined by commas. Days of the week are 0 to 7, both
ends being Sunday. As in every cron, a day matches when either day field does, where both are restricted. No names, no
@daily, no time zones: one form, which the schema's pattern checks when the manifest is applied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_BOUNDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_NUMBERS = ("[0-5]?[0-9]", "(1?[0-9]|2[0-3])", "([1-9]|[12][0-9]|3[01])", "([1-9]|1[0-2])", "[0-7]")
_DAYS_AHEAD = 8 * 366 + 2  # 29 February is at most eight years away


def _field(number: str) -> str:
    item = rf"(\*|{number}(-{number})?)(/[1-9][0-9]?)?"
    return f"{item}(,{item})*"


CRON_PATTERN = "^" + " +".join(_field(number) for number in _NUMBERS) + "$"


class CronError(ValueError):
    """An expression that means nothing; says which field."""


@dataclass(frozen=True)
class Cron:
    """When it is time."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    either_day: bool  # both day fields are restricted

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Raises CronError for what the pattern refuses, and for a range that runs backwards."""
        if not re.fullmatch(CRON_PATTERN, text):
            raise CronError(f"{text!r} is not a cron expression of five fields (minute hour day month weekday)")
        fields = text.split()
        minutes, hours, days, months, weekdays = (
            _values(field, *bounds) for field, bounds in zip(fields, _BOUNDS, strict=True)
        )
        weekdays = frozenset(day % 7 for day in weekdays)
        return cls(
            minutes, hours, days, months, weekdays, not fields[2].startswith("*") and not fields[4].startswith("*")
        )

    def next_after(self, moment: datetime) -> datetime | None:
        """The first minute after `moment` that matches, in UTC; None where no day ever does (31 February)."""
        moment = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        for ahead in range(_DAYS_AHEAD):
            day = moment.replace(hour=0, minute=0) + timedelta(days=ahead) if ahead else moment
            if not self._is_on(day):
                continue
            for hour in sorted(hour for hour in self.hours if hour >= day.hour):
                least = day.minute if hour == day.hour else 0
                minute = min((minute for minute in self.minutes if minute >= least), default=None)
                if minute is not None:
                    return day.replace(hour=hour, minute=minute)
        return None

    def _is_on(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (by_date or by_weekday) if self.either_day else (by_date and by_weekday)


def _values(field: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        start, end = (low, high) if first == "*" else (int(first), int(last or (high if step else first)))
        if start > end:
            raise CronError(f"{name}: the range {span} runs backwards")
        found.update(range(start, end + 1, int(step or 1)))
    return frozenset(found)
