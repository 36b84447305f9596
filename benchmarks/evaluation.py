"""What an evaluation costs: scoring speed against bare loops, a second worker, and the way to the first score.

    python benchmarks/evaluation.py [--quick] [--tokens N] [--questions N] [--only perplexity,choices,workers,start]

On a Llama of 4 layers, 256 wide, with random weights (fp32) and a vocabulary of 4,096, on this machine's standard
library. Two sides always take turns of some seconds, and what is printed is the median of the turns' ratios with its
quartiles: a busy minute of the machine is both sides' minute. "of CPU" compares the CPU time of the two processes' own
work, which others on the machine can hardly change; "of wall" what a clock shows.
- perplexity: scored tokens/s of what a worker does with a shard (tokenizing, windows, scores of each document), and of
  a bare loop over windows that are cut already (the same batches, logits of every place). Target: >= 90% of CPU.
- choices: questions of four choices, against lm_eval's hf backend at its best of three batch sizes; how many choices
  are the same, and the largest difference of a log-likelihood. Target: not slower (of CPU), the same choices.
- workers: the same shards on one worker and on two, one thread each, models loaded before: the scoring phase alone.
  "of CPU" is the one worker's CPU time over the busier one's of two: what two free cores would give. Target: >= 1.7x.
- start: evaluation_start.py, on a control plane of its own. Target: <= 15 s from apply to the first scored example.
Needs no network. Matrix products in one thread (OMP_NUM_THREADS=1), so that a worker is one core.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", RAY_USAGE_STATS_ENABLED="0")
# A token of its own: Ray would otherwise write one into the home directory.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.urandom(32).hex())

import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from evaluation_start import start
from slipway_api.evaljob import Suite
from slipway_api.run import EvalRunSpec
from slipway_jobs.data.tokenizer import train_bpe
from slipway_jobs.evaluate.dataset import Example, ModelingInput
from slipway_jobs.evaluate.scoring.batches import plan
from slipway_jobs.evaluate.scoring.choices import log_likelihoods
from slipway_jobs.evaluate.scoring.engine import score
from slipway_jobs.evaluate.scoring.model import ScoringModel
from slipway_jobs.evaluate.scoring.modeling import _tokens, windows

WINDOW, STRIDE, BUDGET = 256, 128, 4096
TURN_TOKENS = 20_000  # scored in one turn


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


# --- turns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Seconds that a piece of work took: of CPU, and on the clock."""

    cpu: float
    wall: float


def timed(work: Callable[[], Any]) -> tuple[Spent, Any]:
    """In this process; all of its threads count."""
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall), value


def in_turns(number: int, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Both results, in the order of the arguments; in odd turns the second one goes first."""
    if number % 2:
        second_result = second()
        return first(), second_result
    return first(), second()


def spread(ratios: Sequence[float], unit: str = "x") -> str:
    """The median and the quartiles; as percentages where `unit` is %."""
    scale, digits = (100, 0) if unit == "%" else (1, 2)
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return f"{scale * middle:.{digits}f}{unit} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def compared(pairs: Sequence[tuple[Spent, Spent]], unit: str = "x") -> str:
    """How many times as fast the second is, by CPU time and by the clock."""
    cpu = spread([one.cpu / other.cpu for one, other in pairs], unit)
    return f"{cpu} of CPU, {spread([one.wall / other.wall for one, other in pairs], unit)} of wall, {len(pairs)} turns"


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
    suite = Suite.model_validate({"name": "text", "languageModeling": {"windowTokens": WINDOW, "strideTokens": STRIDE}})
    rounds: list[tuple[list[str], int]] = []
    chunk, scored = [], 0
    for text in texts:
        chunk.append(text)
        scored += len(_tokens(model, text)) - 1
        if scored >= TURN_TOKENS:
            rounds.append((chunk, scored))
            chunk, scored = [], 0
        if sum(count for _, count in rounds) >= tokens:
            break
    pairs = []
    for number, (chunk, _) in enumerate([rounds[0], *rounds]):  # the first turn is a warm-up
        cut = [window for text in chunk for window in windows(_tokens(model, text), WINDOW, STRIDE)]
        examples = [Example(i, str(i), str(i), {}, ModelingInput(text)) for i, text in enumerate(chunk)]
        (bare, loss), (ours, scores) = in_turns(
            number,
            lambda cut=cut: timed(lambda: bare_loop(model, cut)),
            lambda examples=examples: timed(lambda: score(model, suite, examples, seed=0)),
        )
        assert abs(sum(one.modeling.nll for one in scores) / loss - 1) < 1e-4, "they must compute the same"
        pairs.append((bare, ours))
    del pairs[0]
    total = sum(count for _, count in rounds)
    rates = [total / sum(pair[side].cpu for pair in pairs) for side in (0, 1)]
    print(
        f"perplexity over {total:,} tokens (window {WINDOW}, stride {STRIDE}): {rates[1]:,.0f} tokens in a second of "
        f"CPU with tokenizing, bare loop {rates[0]:,.0f}: {compared(pairs, '%')} (target >= 90%)",
        flush=True,
    )


# --- choices ------------------------------------------------------------------------------------------------------


def choices(model: ScoringModel, texts: list[str], count: int, turn: int = 20) -> None:
    from lm_eval.api.instance import Instance  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    draw = random.Random(1)
    lines = [line.strip() for text in texts[:200] for line in text.splitlines() if len(line.strip()) > 20]
    questions = [
        ("\n".join(draw.sample(lines, 4)) + "\nNext:", [" " + draw.choice(lines)[:40] for _ in range(4)])
        for _ in range(count)
    ]
    backends = {
        size: HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=size, max_length=model.max_length)
        for size in (4, 16, 64)
    }

    def theirs(size: int, pairs: list[tuple[str, str]]) -> tuple[Spent, Any]:
        requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        return timed(lambda: backends[size].loglikelihood(requests, disable_tqdm=True))

    def asked(start: int) -> list[tuple[str, str]]:
        return [(prompt, choice) for prompt, listed in questions[start : start + turn] for choice in listed]

    log_likelihoods(model, asked(0))  # a warm-up, and theirs is to find the best batch size
    best = min(backends, key=lambda size: min(theirs(size, asked(0))[0].cpu for _ in range(2)))
    spent, apart, same = [], 0.0, 0
    for number, begin in enumerate(range(0, count, turn)):
        pairs = asked(begin)
        (their_time, expected), (our_time, scores) = in_turns(
            number,
            lambda pairs=pairs: theirs(best, pairs),
            lambda pairs=pairs: timed(lambda: log_likelihoods(model, pairs)),
        )
        spent.append((their_time, our_time))
        apart = max(apart, *(abs(one[0] - other[0]) for one, other in zip(scores, expected, strict=True)))
        for question in range(0, len(pairs), 4):
            picked = [max(range(4), key=lambda c, f=found: f[question + c][0]) for found in (scores, expected)]
            same += picked[0] == picked[1]
    rates = [count / sum(pair[side].cpu for pair in spent) for side in (0, 1)]
    print(
        f"choices, {count} questions of 4: {rates[1]:.1f} questions in a second of CPU, lm_eval hf (batch {best}) "
        f"{rates[0]:.1f}: {compared(spent)} (target >= 1x); same choice {same}/{count}, largest difference "
        f"{apart:.1e} nats",
        flush=True,
    )


# --- workers ------------------------------------------------------------------------------------------------------


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
                    "languageModeling": {"windowTokens": WINDOW, "strideTokens": WINDOW},
                    "data": {"sources": [{"uri": str(folder / "text")}]},
                }
            ],
            "workers": {"count": count, "resources": {"cpu": "1"}},
        }
    )  # fmt: skip


def cpu_of_workers() -> dict[int, float]:
    """CPU seconds so far of every evaluation worker of this process's Ray, by pid."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        if "ray::EvalWorker" in " ".join(process.cmdline()):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def workers(folder: Path, model: Path, texts: list[str], turns: int) -> None:
    import ray  # noqa: PLC0415

    from slipway_jobs.data.fingerprints import Fingerprints  # noqa: PLC0415
    from slipway_jobs.evaluate.dataset import examples, open_suite, shards  # noqa: PLC0415
    from slipway_jobs.evaluate.pool import Call, WorkerPool  # noqa: PLC0415
    from slipway_jobs.evaluate.score_store import ScoreKey  # noqa: PLC0415
    from slipway_jobs.storage import Storage  # noqa: PLC0415

    # Three: one for the pool of one and two for the pool of two. Those that are not asked sleep.
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    runs = {count: spec(folder, model, texts, count) for count in (1, 2)}
    opened = open_suite(runs[1], 0, Fingerprints(Storage(folder / "memo")), print)
    made = examples(opened, 0)
    cut = shards(made)
    key = ScoreKey("a" * 64, opened.digest, 0)
    pools = {count: WorkerPool(run, say=print) for count, run in runs.items()}

    def work(count: int, numbers: Sequence[int]) -> tuple[float, float]:
        """Seconds on the clock, and of CPU of the busiest worker."""
        calls = [Call("score", ("model", key, n, 0, [made[place] for place in cut[n]])) for n in numbers]
        before, began = cpu_of_workers(), time.perf_counter()
        pools[count].work(calls, lambda _, result: result.value > 0)
        wall = time.perf_counter() - began
        return wall, max(after - before[pid] for pid, after in cpu_of_workers().items())

    for count, pool in pools.items():  # imports, models and first passes
        ray.get([slot.actor.load.remote("model") for slot in pool._slots])
        work(count, [0, 0])
    wall, cpu = [], []
    for number in range(turns):
        one, two = in_turns(number, lambda: work(1, range(len(cut))), lambda: work(2, range(len(cut))))
        wall.append(one[0] / two[0])
        cpu.append(one[1] / two[1])
    ray.shutdown()
    print(
        f"workers: {len(cut)} shards of {len(made)} documents on two workers against one: {spread(cpu)} of CPU, "
        f"{spread(wall)} of wall, {turns} turns (target >= 1.7x on 2 quiet cores)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: some minutes, wider spreads")
    parser.add_argument("--tokens", type=int, help="of perplexity; 1,000,000, quick 100,000")
    parser.add_argument("--questions", type=int, help="of choices; 400, quick 100")
    parser.add_argument("--only", default="perplexity,choices,workers,start")
    options = parser.parse_args()
    asked = options.only.split(",")
    torch.set_num_threads(1)
    load = "/".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} CPUs, load {load}, Python {sys.version.split()[0]}, torch {torch.__version__}", flush=True)
    texts = documents()
    with tempfile.TemporaryDirectory(prefix="slipway-evaluation-") as scratch:
        folder = Path(scratch)
        directory = make_model(folder / "model", texts)
        model = ScoringModel.load(directory, "model", batch_tokens=BUDGET)
        if "perplexity" in asked:
            perplexity(model, texts, options.tokens or (100_000 if options.quick else 1_000_000))
        if "choices" in asked:
            choices(model, texts, options.questions or (100 if options.quick else 400))
        some = [text for text in texts if 8_000 < len(text) < 12_000][:40]  # 10 shards or so
        if "workers" in asked:
            workers(folder / "workers", directory, some, turns=3 if options.quick else 6)
        if "start" in asked:
            start(folder / "start", directory, some, repeats=2 if options.quick else 5)
    print(f"load at the end {'/'.join(f'{one:.1f}' for one in os.getloadavg())}")


if __name__ == "__main__":
    main()
