"""Local tasks of lm-evaluation-harness with made-up questions."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

WORDS = ("red", "blue", "green", "cat", "dog", "runs", "sleeps", "tree", "house", "small", "large", "sees")

CHOICE: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/choices.jsonl", "train": "data/more.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "train",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0},
}
GENERATION: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/choices.jsonl"}},
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n", " cat"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ROLLING: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/texts.jsonl"}},
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}


def choice_rows(count: int, seed: int = 2) -> list[dict[str, Any]]:
    """Questions with three or four made-up answers each."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = [" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(draw.randint(3, 4))]
        question = " ".join(draw.choices(WORDS, k=draw.randint(4, 9)))
        rows.append({"question": question, "choices": choices, "answer": draw.randrange(len(choices))})
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(path: Path, **config: Any) -> None:
    """A task file."""
    path.write_text(yaml.safe_dump(config))
