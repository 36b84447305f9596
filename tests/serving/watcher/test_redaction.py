"""What is taken out of texts, and what is not."""

from __future__ import annotations

import pytest

from slipway_serving.watcher.redaction import redacted


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to ann.lee+x@mail.example.org, now", "write to [email], now"),
        ("card 4111 1111 1111 1111 ends", "card [card] ends"),
        ("card 4111-1111-1111-1111", "card [card]"),
        ("not a card: 4111 1111 1111 1112", "not a card: 4111 1111 1111 1112"),
        ("call +49 30 901820 today", "call [phone] today"),
        ("call (555) 123-4567 or 030 901820", "call [phone] or [phone]"),
        ("version 1.2.3, 0x1234567, sum 1234567 of 2026-11-27", "version 1.2.3, 0x1234567, sum 1234567 of 2026-11-27"),
        ("def f(x): return x @ y.T", "def f(x): return x @ y.T"),
        ("", ""),
    ],
)
def test_addresses_cards_and_phones(text: str, kept: str) -> None:
    assert redacted(text) == kept


@pytest.mark.timeout(20)
def test_a_long_text_made_to_be_slow_is_not() -> None:
    for text in ("1" * 16_000, "1 " * 8_000, "a" * 16_000 + "@", "a.b" * 5_000 + "@" + "a." * 4_000, "+1" * 8_000):
        redacted(text)
