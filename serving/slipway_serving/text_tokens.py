"""From what people write to tokens: what looks like a control token in their text is text.

`</s>` in a prompt must not end it, and `<|im_start|>system` in a message must not begin another. Only the chat template
and the tokenizer itself may put control tokens in; whoever wants to place one sends tokens instead of text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Two characters of Unicode's private use area, which no chat template and no control token has.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class TextTokens:
    """The tokens of prompts and conversations."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
        special = sorted({*map(str, tokenizer.all_special_tokens), *added} - {""}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def prompt(self, text: str) -> list[int]:
        """A prompt, with what the tokenizer puts before every text."""
        return list(self._tokenizer.encode(text, add_special_tokens=True, split_special_tokens=True))

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """A conversation through the chat template, up to where the answer begins. Raises what the template raises."""
        found: list[str] = []
        # Control tokens in what people wrote are taken out, and put back as text after the template has run.
        marked = [
            {key: value if key == "role" else self._mark(value, found) for key, value in message.items()}
            for message in messages
        ]
        text = self._tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
        if not found:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        tokens: list[int] = []
        for place, part in enumerate(_MARK.split(text)):
            written = place % 2 == 1  # a mark's number
            words = found[int(part)] if written else part
            tokens += self._tokenizer.encode(words, add_special_tokens=False, split_special_tokens=written)
        return tokens

    def _mark(self, text: str, found: list[str]) -> str:
        def mark(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{_OPEN}{len(found) - 1}{_CLOSE}"

        text = text.replace(_OPEN, "\ufffd").replace(_CLOSE, "\ufffd")  # nobody else makes marks
        return self._special.sub(mark, text) if self._special else text
