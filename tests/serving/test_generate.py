"""A tiny random Llama, saved as a run saves it, continues texts; whatever is no model directory is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slipway_serving.generate import (
    GenerateError,
    GenerationOptions,
    Generator,
    ModelDirectoryError,
    OptionError,
    PromptError,
    load,
)

CONTEXT = 96
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2 layers and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["def add(a, b):\n    return a + b\n"] * 20, vocab_size=300, special_tokens=[END])
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.5,  # far from uniform, so that greedy and sampled texts differ
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    return folder


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(model_dir)


def text(generator: Generator, prompt: str = "def ", **options: object) -> str:
    return "".join(generator.stream(prompt, GenerationOptions(**options)))  # type: ignore[arg-type]


def test_greedy_text_is_what_the_model_says_token_by_token(generator: Generator, model_dir: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    model = LlamaForCausalLM.from_pretrained(model_dir).eval()
    ids = tokenizer("def ", return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(12):  # without a cache: the plain definition of greedy decoding
            following = model(ids, use_cache=False).logits[0, -1].argmax()
            if following == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
    expected = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert text(generator, greedy=True, max_new_tokens=12) == expected


def test_the_same_seed_gives_the_same_text_and_another_one_another(generator: Generator) -> None:
    one = text(generator, seed=1, temperature=1.5)
    torch.rand(7)  # whatever else draws numbers in between
    assert text(generator, seed=1, temperature=1.5) == one
    assert len({text(generator, seed=seed, temperature=1.5) for seed in range(4)}) > 1


def test_the_callers_random_state_is_left_alone(generator: Generator) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    text(generator, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_two_streams_at_once_do_not_disturb_each_other(generator: Generator) -> None:
    alone = [text(generator, seed=seed) for seed in (1, 2)]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda s=seed: together.update({s: text(generator, seed=s)})) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[1], together[2]] == alone


def test_options_change_the_text(generator: Generator) -> None:
    greedy = text(generator, greedy=True)
    assert text(generator, top_k=1, temperature=5.0) == greedy
    assert text(generator, top_p=1e-6, top_k=0, temperature=5.0) == greedy
    assert text(generator, temperature=5.0, top_k=0) != greedy


def test_it_streams_and_stops_when_its_reader_leaves(generator: Generator) -> None:
    before = threading.active_count()
    stream = generator.stream("a", GenerationOptions(max_new_tokens=CONTEXT - 8, temperature=2.0, top_k=0, seed=3))
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_smaller_limit_gives_the_beginning_of_the_same_text(generator: Generator) -> None:
    whole = text(generator, max_new_tokens=24, temperature=2.0, seed=4)
    for limit in (4, 12):
        part = text(generator, max_new_tokens=limit, temperature=2.0, seed=4).rstrip("\ufffd")  # a character cut in two
        assert whole.startswith(part)
        assert 0 < len(part) < len(whole)


def test_prompts_that_cannot_be_continued(generator: Generator) -> None:
    with pytest.raises(PromptError, match="empty"):
        generator.stream("")
    with pytest.raises(PromptError, match="there is room for") as caught:
        generator.stream("x", GenerationOptions(max_new_tokens=CONTEXT))
    assert f"--max-new-tokens {CONTEXT - 1}" in caught.value.hint
    with pytest.raises(PromptError, match="shorten the prompt"):
        generator.stream("\u2603" * 100)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_options_without_meaning(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        GenerationOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["config.json"], "no config.json"),
        (["model.safetensors"], "no safetensors weights; pytorch_model.bin can run code"),
        (["tokenizer.json"], "no tokenizer"),
    ],
)
def test_what_is_missing_is_named(model_dir: Path, tmp_path: Path, remove: list[str], message: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    (broken / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    for name in remove:
        (broken / name).unlink()
    with pytest.raises(ModelDirectoryError, match=message):
        load(broken)


def test_no_directory_and_damaged_weights(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="there is no directory"):
        load(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ModelDirectoryError, match="cannot be loaded"):
        load(broken)


def test_code_in_the_directory_is_not_run(model_dir: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(model_dir, hostile)
    config = json.loads((hostile / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (hostile / "config.json").write_text(json.dumps(config))
    (hostile / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ModelDirectoryError, match="cannot be loaded"):
        load(hostile)
    assert not (tmp_path / "owned").exists()


def test_a_failure_while_generating_reaches_the_reader(model_dir: Path) -> None:
    generator = load(model_dir)
    generator._model.lm_head = torch.nn.Linear(31, 7)  # a shape that cannot be
    with pytest.raises(GenerateError, match="generating failed"):
        text(generator)


def test_the_command_prints_prompt_and_continuation_and_nothing_else(generator: Generator, model_dir: Path) -> None:
    expected = text(generator, greedy=True, max_new_tokens=10)
    command = [sys.executable, "-m", "slipway_cli.main", "generate", "--model", str(model_dir), "--prompt", "def "]
    command += ["--max-new-tokens", "10", "--greedy"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == f"def {expected}\n"
    assert result.stderr == ""


def test_the_module_needs_no_ray() -> None:
    code = "import sys, slipway_serving.generate; print('ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "False\n"
