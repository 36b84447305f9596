"""Bad input gets one clear error at the right place, and harms nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from .conftest import Stack, condition, finished, train_job

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ONE = {"count": 1, "resources": {"cpu": "1", "memory": "512Mi"}}  # two jobs at a time


def edited(corpus: Path, path: str, value: Any) -> dict[str, Any]:
    """A good job with one field replaced; None removes it."""
    job = train_job("bad", corpus)
    *parents, last = path.split(".")
    node: Any = job
    for name in parents:
        node = node[name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return job


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.trainig", {}, "spec.trainig"),
        ("spec.training.lr", "1", "spec.training.lr"),
        ("spec.workers.count", "two", "spec.workers.count"),
        ("spec.workers.count", 0, "spec.workers.count"),
        ("spec.training.epochs", 2, "exactly one of steps, epochs"),
        ("spec.strategy.ddp", {}, "at most one of ddp, fsdp, deepspeed"),
        ("spec.tokenizer", None, "a fresh model has no tokenizer"),
        ("spec.data.sequenceLength", 4096, "maxPositionEmbeddings"),
        ("spec.training.microBatchSize", 3, "divisible"),
        ("spec.training.optimizer.learningRate", "fast", "spec.training.optimizer.learningRate"),
        ("spec.data.sources", [], "spec.data.sources"),
        ("metadata.name", "a" * 41, "at most 40 characters"),
        ("metadata.name", "Upper", "metadata.name"),
    ],
)
def test_refused_at_apply_with_the_path(stack: Stack, corpus: Path, path: str, value: Any, told: str) -> None:
    answer = stack.apply(edited(corpus, path, value), check=False)
    assert told in answer
    assert "created" not in answer


def test_what_decides_the_result_is_immutable(stack: Stack, corpus: Path) -> None:
    job = train_job("frozen", corpus)
    job["spec"]["suspend"] = True
    stack.apply(job)
    job["spec"]["training"]["steps"] = 21
    assert "training is immutable" in stack.apply(job, check=False)
    stack.kubectl("delete", "trainjob", "frozen")


def rejected(corpus: Path, tmp_path: Path) -> dict[str, tuple[dict[str, Any], str, str]]:
    """name -> (job, reason of Failed, words of its message)."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(
        ["some words"],
        trainers.BpeTrainer(
            special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    tokenizer.save(str(pickled / "tokenizer.json"))
    (pickled / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )

    def source(uri: str, **more: str) -> dict[str, Any]:
        return {"sources": [{"uri": uri, **more}], "sequenceLength": 64}

    no_tokenizer = train_job("no-safetensors", corpus, model={"uri": pickled.as_uri()}, workers=ONE)
    del no_tokenizer["spec"]["tokenizer"]
    too_many = train_job("too-many", corpus, workers={"count": 64})
    too_many["spec"]["training"]["globalBatchSize"] = 128
    nan = train_job("diverges", corpus, workers=ONE)
    nan["spec"]["training"]["optimizer"] = {"learningRate": "1e12"}
    nan["spec"]["training"]["maxGradNorm"] = "0"
    return {
        "missing": (train_job("missing", corpus, data=source("file:///no/such/file.txt")), "", "data.sources[0]"),
        "empty": (train_job("empty", corpus, data=source(f"file://{tmp_path}/empty.txt")), "", "empty.txt"),
        "bad-line": (
            train_job("bad-line", corpus, data=source(f"file://{tmp_path}/bad.jsonl", format="jsonl")),
            "",
            "bad.jsonl:2",
        ),
        "no-safetensors": (no_tokenizer, "NoSafetensors", "safetensors"),
        "too-many": (too_many, "DoesNotFit", "spec.workers"),
        "diverges": (nan, "LossNotFinite", "step"),
    }


def test_bad_runs_fail_once_with_the_reason_and_leave_a_good_one_alone(
    stack: Stack, corpus: Path, tmp_path: Path
) -> None:
    cases = rejected(corpus, tmp_path)
    stack.apply(*[job for job, _, _ in cases.values()], train_job("good", corpus, workers=ONE))
    for name, (_, reason, told) in cases.items():
        status = stack.wait(name, finished, timeout=240)
        failed = condition(status, "Failed")
        assert failed[0] == "True", name
        assert told in failed[2], f"{name}: {failed}"
        assert reason in ("", failed[1]), f"{name}: {failed}"
        assert len(status.get("attempts", [])) <= 1, f"{name} was tried again"
        log = stack.run("slipway", "logs", f"tj/{name}") if status.get("attempts") else ""
        assert "starting the workers again" not in log, f"{name}: a user's error was taken for a crash"
    stack.finish("good")
