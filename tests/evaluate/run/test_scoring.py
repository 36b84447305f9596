"""The engine against transformers and lm_eval: the same numbers, whatever is batched with what."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.scoring.batches import plan
from slipway_jobs.evaluate.scoring.choices import log_likelihoods
from slipway_jobs.evaluate.scoring.generation import Decoding, _choose, generate
from slipway_jobs.evaluate.scoring.latency import measure
from slipway_jobs.evaluate.scoring.model import ScoringModel
from slipway_jobs.evaluate.scoring.modeling import score_documents, windows

from .conftest import load, make_model, text_of

TEXTS = [text_of(count, seed=count) for count in (3, 60, 17, 90, 1, 33)]
CHOICES = [
    (
        f"{text_of(12 + row, seed=row)}\nQuestion {row}: which one?\nAnswer:",
        f" {text_of(1 + row % 3, seed=row + choice)}",
    )
    for row in range(6)
    for choice in range(4)
]


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(1, 200), max_size=40), budget=st.integers(1, 400))
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget


@settings(max_examples=200)
@given(count=st.integers(0, 120), window=st.integers(2, 40), part=st.floats(0.01, 1.0))
def test_each_token_but_the_first_is_scored_once_with_enough_context(count: int, window: int, part: float) -> None:
    stride = max(1, int(window * part))
    tokens = list(range(count))
    scored = []
    for one in windows(tokens, window, stride):
        assert 1 <= one.first < len(one.tokens) <= window + 1
        assert len(one.tokens) - 1 <= window  # what the model reads
        for place in range(one.first, len(one.tokens)):
            token = one.tokens[place]  # its number is its place in the document
            assert place >= min(token, max(1, window - stride))
            scored.append(token)
    assert scored == tokens[1:]


def test_loss_is_transformers_own(model: ScoringModel) -> None:
    scores = score_documents(model, TEXTS, window=128, stride=64)
    for text, score in zip(TEXTS, scores, strict=True):
        tokens = [0, *model.tokenizer.encode(text, add_special_tokens=False)]
        if len(tokens) > 128:
            continue
        ids = torch.tensor([tokens])
        with torch.no_grad():
            loss = model.lm(input_ids=ids, labels=ids).loss.item()
        assert score.tokens == len(tokens) - 1
        assert score.bytes == len(text.encode())
        assert score.nll / score.tokens == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 5), (16, 16), (31, 1)])
def test_sliding_window_is_that_of_the_documentation(model: ScoringModel, window: int, stride: int) -> None:
    """The loop of https://huggingface.co/docs/transformers/perplexity, with the labels that it sets."""
    text = text_of(70, seed=9)
    tokens = [0, *model.tokenizer.encode(text, add_special_tokens=False)]
    total, count, previous = 0.0, 0, 1
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        fresh = end - previous
        # With stride == window the documentation's loop leaves a window's first token out; ours reads one more.
        start = begin if stride < window or begin == 0 else begin - 1
        ids = torch.tensor([tokens[start:end]])
        if fresh > 0:
            with torch.no_grad():
                logits = model.lm(input_ids=ids[:, :-1]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            total += losses[-fresh:].double().sum().item()
            count += fresh
        previous = end
        if end == len(tokens):
            break
    (score,) = score_documents(model, [text], window=window, stride=stride)
    assert score.tokens == count == len(tokens) - 1
    assert score.nll == pytest.approx(total, rel=1e-6)


def test_a_special_token_in_a_document_is_text(model: ScoringModel) -> None:
    (score,) = score_documents(model, ["a <|endoftext|> b"], window=64, stride=32)
    assert score.tokens > 5


def test_loss_does_not_depend_on_the_batch(model_dir: Path, model: ScoringModel) -> None:
    together = score_documents(model, TEXTS, window=64, stride=32)
    alone = [score_documents(load(model_dir, batch_tokens=64), [text], window=64, stride=32)[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-6)


def test_an_architecture_with_other_logits_keeps_its_own_head(tmp_path: Path, model: ScoringModel) -> None:
    class Capped(GPT2LMHeadModel):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = torch.tanh(output.logits)
            return output

    torch.manual_seed(0)
    lm = Capped(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    odd = ScoringModel(lm, model.tokenizer, batch_tokens=256, device=torch.device("cpu"))
    (score,) = score_documents(odd, ["the quick brown fox"], window=64, stride=32)
    ids = torch.tensor([[0, *model.tokenizer.encode("the quick brown fox", add_special_tokens=False)]])
    with torch.no_grad():
        loss = lm(input_ids=ids, labels=ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(loss, ids[0, 1:], reduction="sum").item()
    assert score.nll == pytest.approx(expected, rel=1e-6)


# --- choices ------------------------------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_lm_eval(model_dir: Path, model: ScoringModel) -> None:
    from lm_eval.api.instance import Instance  # noqa: PLC0415 - seconds
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    long = (text_of(300, seed=4), " honey jars")  # loses tokens of its context
    trailing = ("the quick brown ", "fox")
    pairs = [*CHOICES, long, trailing, ("", "the quick"), (long[0], " box")]
    theirs = HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=4, max_length=128).loglikelihood(
        [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)], disable_tqdm=True
    )
    assert model.shares_prompts
    ours = log_likelihoods(model, pairs)
    row_by_row = load(model_dir)
    row_by_row.shares_prompts = False
    for mine in (ours, log_likelihoods(row_by_row, pairs)):
        for (value, greedy), (expected, expected_greedy) in zip(mine, theirs, strict=True):
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert greedy == expected_greedy


def test_choices_do_not_see_each_other(model: ScoringModel) -> None:
    prompt = CHOICES[0][0]
    alone = log_likelihoods(model, [(prompt, " the quick brown fox")])[0][0]
    beside = log_likelihoods(model, [(prompt, " dog"), (prompt, " the quick brown fox"), (prompt, " jars of honey")])
    assert beside[1][0] == pytest.approx(alone, rel=1e-6)


def test_a_prompt_is_read_once(model: ScoringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = model.lm.base_model.forward
    monkeypatch.setattr(
        model.lm.base_model, "forward", lambda *a, **k: (read.append(k["input_ids"].numel()), forward(*a, **k))[1]
    )
    prompt = text_of(40, seed=3)
    log_likelihoods(model, [(prompt, f" {word}") for word in ("fox", "dog", "jars", "honey")])
    assert sum(read) < 1.5 * len(model.encode(prompt))


@pytest.mark.parametrize("choice", ["", "x" * 4000])
def test_choices_that_cannot_be_scored(model: ScoringModel, choice: str) -> None:
    with pytest.raises(UserError, match="choice"):
        log_likelihoods(model, [("the quick", choice)])


# --- generation ---------------------------------------------------------------------------------------------------

PROMPTS = [text_of(count, seed=count) for count in (2, 30, 9, 17, 4)]


@pytest.mark.parametrize(
    "decoding", [Decoding(20), Decoding(20, temperature=1.5, top_k=40, top_p=0.9)], ids=["greedy", "sampled"]
)
def test_answers_do_not_depend_on_the_batch(model_dir: Path, model: ScoringModel, decoding: Decoding) -> None:
    seeds = list(range(len(PROMPTS)))
    together = generate(model, PROMPTS, decoding, seeds)
    shuffled = generate(model, PROMPTS[::-1], decoding, seeds[::-1])[::-1]
    alone = [generate(model, [prompt], decoding, [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert together == shuffled == alone


def test_greedy_answers_are_transformers_own(model: ScoringModel) -> None:
    for prompt, answer in zip(PROMPTS, generate(model, PROMPTS, Decoding(16), [0] * len(PROMPTS)), strict=True):
        ids = torch.tensor([model.encode(prompt)])
        out = model.lm.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        assert answer.text == model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer.tokens == out.shape[1] - ids.shape[1]


def test_sampling_follows_the_seed_and_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = [_choose(logits, Decoding(1, temperature=2.0), torch.Generator().manual_seed(seed)) for seed in range(4000)]
    for token, probability in enumerate((logits / 2).softmax(0).tolist()):
        assert drawn.count(token) / len(drawn) == pytest.approx(probability, abs=0.03)
    nucleus = {
        _choose(logits, Decoding(1, temperature=2.0, top_p=0.5), torch.Generator().manual_seed(seed))
        for seed in range(200)
    }
    assert nucleus == {0, 1}  # 0.455 alone does not reach one half
    top = {_choose(logits, Decoding(1, temperature=9.0, top_k=3), torch.Generator().manual_seed(s)) for s in range(200)}
    assert top == {0, 1, 2}


def test_an_answer_ends_before_its_stop_text(model: ScoringModel) -> None:
    (full,) = generate(model, [PROMPTS[1]], Decoding(24), [0])
    assert full.finish == "length" and full.tokens == 24
    stop = full.text[6:9]
    (cut,) = generate(model, [PROMPTS[1]], Decoding(24, stop=("no such text", stop)), [0])
    assert cut.finish == "stop"
    assert cut.text == full.text[: full.text.find(stop)]
    assert cut.tokens < 24


def test_what_cannot_be_written_is_refused(model: ScoringModel) -> None:
    with pytest.raises(UserError, match="maxNewTokens"):
        generate(model, ["a"], Decoding(128), [0])
    with pytest.raises(UserError, match="no chat template"):
        generate(model, ["a"], Decoding(8), [0], chat=True)


def test_chat_template(model_dir: Path) -> None:
    chatty = load(model_dir)
    chatty.tokenizer.chat_template = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}<answer>"
    (answer,) = generate(chatty, ["a lazy dog"], Decoding(8), [0], chat=True)
    assert answer == generate(chatty, ["<user>a lazy dog<answer>"], Decoding(8), [0])[0]


def test_latency_counts_every_token(model: ScoringModel) -> None:
    ticks = iter(range(10_000))
    scores = measure(model, [1, 2, 3], prompt_tokens=5, new_tokens=4, clock=lambda: float(next(ticks)))
    assert [(s.first_token_seconds, s.token_seconds, s.tokens) for s in scores] == [(1.0, (1.0, 1.0, 1.0), 4)] * 3


# --- models that do not fit ---------------------------------------------------------------------------------------


def test_a_tokenizer_that_does_not_fit_is_named_with_both_sizes(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "small", vocabulary=200)
    with pytest.raises(UserError, match=r"has \d+ entries, the model's embedding only 200") as caught:
        load(directory)
    assert caught.value.reason == "VocabularyMismatch"


def test_half_precision_runs_in_half_precision(model_dir: Path) -> None:
    half = load(model_dir, precision="bf16")
    assert {parameter.dtype for parameter in half.lm.parameters()} == {torch.bfloat16}
    (score,) = score_documents(half, [TEXTS[1]], window=64, stride=32)
    (full,) = score_documents(load(model_dir), [TEXTS[1]], window=64, stride=32)
    assert score.nll != full.nll
    assert math.isclose(score.nll, full.nll, rel_tol=0.05)
