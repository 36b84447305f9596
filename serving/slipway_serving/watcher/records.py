"""A captured record as text and as features. Pure, but for the chat template that is loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from slipway_jobs.drift.features import Features, feedback_features


class Prompts:
    """What was asked, as text. `backend`: the model's tokenizers.Tokenizer; `directory`: of its files."""

    def __init__(self, backend: Any, directory: Path) -> None:
        self._backend, self._directory = backend, directory

    def compared(self, record: Mapping[str, Any]) -> str:
        """What is compared with the reference: of a chat what was said, without the template around it."""
        if "messages" in record:
            return "\n".join(message["content"] for message in record["messages"])
        prompt = record["prompt"]
        return prompt if isinstance(prompt, str) else str(self._backend.decode(prompt, skip_special_tokens=True))

    def learnt(self, record: Mapping[str, Any]) -> str:
        """What a retrain learns from: of a chat what the model was given, if the template can be applied."""
        if "messages" not in record or self._templated is None:
            return self.compared(record)
        try:
            return str(self._templated(record["messages"], add_generation_prompt=True, tokenize=False))
        except Exception:  # templates are programs; the router has answered, so it is the cut that it refuses
            return self.compared(record)

    @cached_property
    def _templated(self) -> Any:
        from transformers import AutoTokenizer  # noqa: PLC0415 - seconds, and only chats need it

        tokenizer = AutoTokenizer.from_pretrained(self._directory, local_files_only=True)
        return tokenizer.apply_chat_template if tokenizer.chat_template else None


def error_of(entry: Mapping[str, Any]) -> float | None:
    """How wrong an answer was, 0 to 1: what the rating says, else 1 where it was corrected, else unknown."""
    rating = entry.get("rating")
    if rating is not None:
        return (1.0 - float(rating)) / 2
    return 1.0 if entry.get("corrected") else None


def features_of_feedback(entry: Mapping[str, Any]) -> Features:
    """Label and error."""
    return feedback_features(entry.get("label"), error_of(entry))
