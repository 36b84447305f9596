"""From a row to the text that a model is asked: templates, answers, solved examples before the question. Pure.

A name in braces stands for a field of the row; doubled braces stand for themselves, and braces around anything that is
no name are left alone, so that code and JSON can stand in a prompt.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from slipway_jobs.data.documents import Row
from slipway_jobs.errors import UserError

_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.-]*)\}")
SHOT_SEPARATOR = "\n\n"  # between two solved examples, as in lm-evaluation-harness


def fill(template: str, row: Row, field: str) -> str:
    """The template with the row's fields. Raises UserError PromptFieldMissing; `field` is the template's path."""

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if row.fields.get(match[1]) is None:
            raise UserError(
                "PromptFieldMissing",
                f"{field}: {row.where} has no field {match[1]!r} (its fields: {_names(row)}); "
                "correct the template, or repair the row",
            )
        return as_text(row.fields[match[1]])

    return _PLACE.sub(value, template)


def as_text(value: Any) -> str:
    """A field's value as a prompt shows it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def choices_of(row: Row, name: str, field: str) -> tuple[str, ...]:
    """The row's own list of choices. Raises UserError ChoicesInvalid."""
    value = row.fields.get(name)
    if not isinstance(value, list) or len(value) < 2 or any(not as_text(choice) for choice in value):
        raise UserError(
            "ChoicesInvalid",
            f"{field}: {row.where} has no list of two or more choices in field {name!r} (its fields: {_names(row)})",
        )
    return tuple(as_text(choice) for choice in value)


def gold_of(row: Row, name: str, choices: Sequence[str], field: str) -> int:
    """Index of the right choice, from its text or its index. Raises UserError AnswerInvalid."""
    value = row.fields.get(name)
    found = f"no field {name!r}"
    if value is not None:
        text = as_text(value)
        if text in choices:
            return list(choices).index(text)
        if text.isascii() and text.isdigit() and int(text) < len(choices):
            return int(text)
        found = f"{text[:80]!r} in field {name!r}"
    raise UserError(
        "AnswerInvalid",
        f"{field}: {row.where} has {found}; it must be one of the choices ({', '.join(map(repr, choices[:8]))}"
        f"{', ...' if len(choices) > 8 else ''}) or its index from 0",
    )


def references_of(row: Row, name: str, field: str) -> tuple[str, ...]:
    """The row's references. Raises UserError ReferenceMissing."""
    value = row.fields.get(name)
    values = value if isinstance(value, list) else [value]
    if not values or any(one is None for one in values):
        raise UserError(
            "ReferenceMissing",
            f"{field}: {row.where} has no reference in field {name!r} (its fields: {_names(row)}); "
            "name the right field, or repair the row",
        )
    return tuple(as_text(one) for one in values)


def draw_shots(pool: Sequence[str], asked: str, count: int, seed: int, field: str) -> list[int]:
    """Places in `pool` (ids of rows) of the solved examples for the row with the id `asked`, which is never drawn.

    The same for the same pool, row and seed. Raises UserError FewShotTooFew.
    """
    generator = random.Random(f"{seed}:{asked}")
    drawn: list[int] = []
    # A copy of the asked row would give the answer away as well: ids of copies differ only after the dash.
    same = asked.partition("-")[0]
    if count * 4 < len(pool):  # rejection: no pass over a large pool for each row
        seen: set[int] = set()
        while len(drawn) < count and len(seen) < len(pool):
            place = generator.randrange(len(pool))
            if place not in seen:
                seen.add(place)
                if pool[place].partition("-")[0] != same:
                    drawn.append(place)
    else:
        others = [place for place, one in enumerate(pool) if one.partition("-")[0] != same]
        drawn = generator.sample(others, min(count, len(others)))
    if len(drawn) < count:
        raise UserError(
            "FewShotTooFew",
            f"{field}.count: {count} solved examples are asked for, but there are only {len(drawn)} rows besides the "
            "asked one; lower count or add rows",
        )
    return drawn


def delimiter(prompt: str) -> str:
    """What stands between a prompt and a choice: one space, unless the prompt ends in white space already."""
    return "" if not prompt or prompt[-1].isspace() else " "


def _names(row: Row) -> str:
    return ", ".join(sorted(map(repr, row.fields))[:20]) or "none"
