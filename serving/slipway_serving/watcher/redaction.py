"""Takes e-mail addresses, phone numbers and card numbers out of texts before they are kept.

By pattern, so it is a net with holes, no anonymization: names and addresses stay. Card numbers are told from other
digits by their check digit (ISO/IEC 7812-1, Luhn).
"""

from __future__ import annotations

import re

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]?\d)")
# With a plus or a zero in front, or grouped: a bare run of digits is far more often something else.
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?\d(?:[ ./-]?\d){5,12}"
    r"|\(?0\d{1,4}\)?[ ./-]\d(?:[ ./-]?\d){4,10}"
    r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![\w-])"
)


def redacted(text: str) -> str:
    """The text with [email], [card] and [phone] in their places."""
    text = _EMAIL.sub("[email]", text)
    text = _CARD.sub(lambda found: "[card]" if _checks(found.group()) else found.group(), text)
    return _PHONE.sub("[phone]", text)


def _checks(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()][::-1]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(digits)]
    return sum(doubled) % 10 == 0
