"""What an evaluation costs: scoring speed against bare loops, a second worker, and the way to the first score.

    python benchmarks/evaluation.py [--tokens 1000000] [--questions 400] [--only perplexity,choices,workers,start]

On a Llama of 4 layers, 256 wide, with random weights and a vocabulary of 4,096, on this machine's standard library.
- perplexity: scored tokens/s of the engine and of a bare loop over the same windows (sorted, padded, the same budget of
  tokens, logits of every place); they take turns. Target: >= 90%.
- choices: questions of four choices, against lm_eval's hf backend at its best of three batch sizes; the accuracy and
  the largest difference of a log-likelihood. Target: not slower, the same accuracy.
- workers: the same shards on one worker and on two, models loaded before. Target on 2 cores: >= 1.7x.
- start: from the start of the run's process to the first shard in storage, on a Ray cluster that is up. The way from
  `kubectl apply` to that process is in start_up.py. Target: <= 15 s.
Needs no network. Single-threaded matrix products (OMP_NUM_THREADS=1), so that a worker is one core.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", RAY_USAGE_STATS_ENABLED="0")
# A token of its own: Ray would otherwise write one into the home directory.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.urandom(32).hex())

import json
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from slipway_api.run import EvalRunSpec
from slipway_jobs.data.tokenizer import train_bpe
from slipway_jobs.evaluate.scoring.batches import plan
from slipway_jobs.evaluate.scoring.choices import log_likelihoods
from slipway_jobs.evaluate.scoring.model import ScoringModel
from slipway_jobs.evaluate.scoring.modeling import _tokens, score_documents, windows

WINDOW, STRIDE, BUDGET = 256, 128, 4096


def documents() -> list[str]:
    """Modules of the standard library, in an order that is always the same."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path for path in sorted(root.rglob("*.py")) if "test" not in str(path) and "site-packages" not in str(path)
    ]
    random.Random(0).shuffle(paths)
    return [text for path in paths if (text := path.read_text(errors="replace"))]


def make_model(directory: Path, texts: list[str]) -> Path:
    directory.mkdir(parents=True)
    train_bpe(texts[:100], 4096, directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=704, max_position_embeddings=512, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = work()
    return time.perf_counter() - started, value


# --- perplexity ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def bare_loop(model: ScoringModel, sequences: list[Any]) -> float:
    """The least that anybody would write: batches alike in length, one forward pass each, the loss of its logits."""
    total = 0.0
    for batch in plan([len(one.tokens) - 1 for one in sequences], BUDGET):
        length = max(len(sequences[place].tokens) for place in batch) - 1
        inputs = torch.zeros(len(batch), length, dtype=torch.long)
        labels = torch.full((len(batch), length), -100, dtype=torch.long)
        for row, place in enumerate(batch):
            one = sequences[place]
            tokens = torch.tensor(one.tokens)
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            labels[row, one.first - 1 : len(tokens) - 1] = tokens[one.first :]
        logits = model.lm(input_ids=inputs, use_cache=False).logits
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum").item()
    return total


def perplexity(model: ScoringModel, texts: list[str], tokens: int) -> None:
    rounds: list[tuple[list[str], list[Any], int]] = []
    count, chunk, scored = 0, [], 0
    for text in texts:
        mine = len(_tokens(model, text)) - 1
        chunk.append(text)
        count, scored = count + mine, scored + mine
        if scored >= min(tokens, 125_000):  # the two take turns, so that a slow minute of the machine is both's
            cut = [window for text in chunk for window in windows(_tokens(model, text), WINDOW, STRIDE)]
            rounds.append((chunk, cut, scored))
            chunk, scored = [], 0
        if count >= tokens:
            break
    ratios, ours_total, bare_total = [], 0.0, 0.0
    for chunk, cut, _ in rounds:
        bare, loss = timed(lambda cut=cut: bare_loop(model, cut))
        ours, scores = timed(lambda chunk=chunk: score_documents(model, chunk, window=WINDOW, stride=STRIDE))
        assert abs(sum(score.nll for score in scores) / loss - 1) < 1e-4, "they must compute the same"
        ratios.append(bare / ours)
        ours_total, bare_total = ours_total + ours, bare_total + bare
    scored = sum(one[2] for one in rounds)
    print(
        f"perplexity over {scored:,} tokens (window {WINDOW}, stride {STRIDE}): {scored / ours_total:,.0f} tokens/s "
        f"with tokenizing, bare loop {scored / bare_total:,.0f}: {100 * statistics.median(ratios):.0f}% (target >= 90%)"
    )


# --- choices ------------------------------------------------------------------------------------------------------


def choices(model: ScoringModel, texts: list[str], count: int) -> None:
    from lm_eval.api.instance import Instance  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    draw = random.Random(1)
    lines = [line.strip() for text in texts[:200] for line in text.splitlines() if len(line.strip()) > 20]
    questions = [
        ("\n".join(draw.sample(lines, 4)) + "\nNext:", [" " + draw.choice(lines)[:40] for _ in range(4)])
        for _ in range(count)
    ]
    pairs = [(prompt, choice) for prompt, listed in questions for choice in listed]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    theirs = {}
    for size in (4, 16, 64):
        hf = HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=size, max_length=model.max_length)
        theirs[size] = timed(lambda hf=hf: hf.loglikelihood(requests, disable_tqdm=True))
    ours, scores = timed(lambda: log_likelihoods(model, pairs))
    best = min(theirs, key=lambda size: theirs[size][0])
    seconds, expected = theirs[best]
    apart = max(abs(one[0] - other[0]) for one, other in zip(scores, expected, strict=True))
    picked = [
        [max(range(4), key=lambda choice: found[4 * question + choice][0]) for question in range(count)]
        for found in (scores, expected)
    ]
    same = sum(one == other for one, other in zip(*picked, strict=True))
    print(
        f"choices, {count} questions of 4: {count / ours:.1f} questions/s, lm_eval hf (batch {best}) "
        f"{count / seconds:.1f}: {seconds / ours:.2f}x (target >= 1); same choice {same}/{count}, "
        f"largest difference {apart:.1e} nats"
    )


# --- runs ---------------------------------------------------------------------------------------------------------


def spec(folder: Path, model: Path, texts: list[str], count: int) -> EvalRunSpec:
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / "text" / f"{number:04}.txt").write_text(text)
    return EvalRunSpec.model_validate(
        {
            "namespace": "default", "name": "benchmark", "uid": "benchmark", "attempt": 1,
            "storage": str(folder / "job"), "cache": str(folder / "cache"), "results": str(folder / f"eval-{count}"),
            "model": {"uri": str(model)}, "metrics": ["perplexity"], "confidences": ["0.95"],
            "suites": [
                {
                    "name": "text",
                    "languageModeling": {"windowTokens": WINDOW, "strideTokens": STRIDE},
                    "data": {"sources": [{"uri": str(folder / "text")}]},
                }
            ],
            "workers": {"count": count, "resources": {"cpu": "1"}},
        }
    )  # fmt: skip


def ray_head() -> str:
    """A Ray cluster of two CPUs on the loopback interface; its address."""
    import ray  # noqa: PLC0415

    context = ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    return str(context.address_info["address"])


def workers(folder: Path, model: Path, texts: list[str]) -> None:
    import ray  # noqa: PLC0415

    from slipway_jobs.data.fingerprints import Fingerprints  # noqa: PLC0415
    from slipway_jobs.evaluate.dataset import examples, open_suite, shards  # noqa: PLC0415
    from slipway_jobs.evaluate.pool import Call, WorkerPool  # noqa: PLC0415
    from slipway_jobs.evaluate.score_store import ScoreKey  # noqa: PLC0415
    from slipway_jobs.storage import Storage  # noqa: PLC0415

    ray_head()
    seconds = {}
    for count in (1, 2):
        run = spec(folder, model, texts, count)
        opened = open_suite(run, 0, Fingerprints(Storage(folder / "memo")), print)
        made = examples(opened, 0)
        cut = shards(made)
        pool = WorkerPool(run, say=print)
        ready = [slot.actor.load.remote("model") for slot in pool._slots]
        ray.get(ready)
        key = ScoreKey("a" * 64, opened.digest, 0)
        calls = [
            Call("score", ("model", key, number, 0, [made[place] for place in part])) for number, part in enumerate(cut)
        ]
        seconds[count] = timed(lambda calls=calls, pool=pool: pool.work(calls, lambda _, result: result.value > 0))[0]
        pool.close()
    ray.shutdown()
    print(
        f"workers: {len(cut)} shards in {seconds[1]:.1f} s on one, {seconds[2]:.1f} s on two: "
        f"{seconds[1] / seconds[2]:.2f}x (target >= 1.7x on 2 quiet cores)"
    )


def start(folder: Path, model: Path, texts: list[str]) -> None:
    import ray  # noqa: PLC0415

    address = ray_head()
    run = spec(folder, model, texts, 2)
    environment = os.environ | {
        "SLIPWAY_RUN": json.dumps(run.to_wire()),
        "RAY_ADDRESS": address,
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "slipway_jobs.evaluate"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        while not list(Path(run.results).rglob("shards/*.parquet")):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.perf_counter() - began < 240, "no shard in 240 s"
            time.sleep(0.02)
        print(f"start: {time.perf_counter() - began:.1f} s to the first stored scores on two workers (target <= 15 s)")
    finally:
        process.terminate()
        process.wait(timeout=30)
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--only", default="perplexity,choices,workers,start")
    options = parser.parse_args()
    asked = options.only.split(",")
    torch.set_num_threads(1)
    texts = documents()
    with tempfile.TemporaryDirectory(prefix="slipway-evaluation-") as scratch:
        folder = Path(scratch)
        directory = make_model(folder / "model", texts)
        model = ScoringModel.load(directory, "model", batch_tokens=BUDGET)
        if "perplexity" in asked:
            perplexity(model, texts, options.tokens)
        if "choices" in asked:
            choices(model, texts, options.questions)
        some = texts[: max(10, options.tokens // 10_000)]
        if "workers" in asked:
            workers(folder / "workers", directory, some)
        if "start" in asked:
            start(folder / "start", directory, some)


if __name__ == "__main__":
    main()
