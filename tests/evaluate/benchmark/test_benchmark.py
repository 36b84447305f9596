"""Benchmarks on a tiny model: the harness's own answers, through our seam."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slipway_api.evaljob import Benchmark, FewShot
from slipway_api.trainjob import DataSource
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.benchmark import PreparedBenchmark, prepare
from slipway_jobs.evaluate.benchmark_engine import EngineScorer, Part, cuts
from slipway_jobs.evaluate.benchmark_index import _write, builtin_tasks
from slipway_jobs.evaluate.benchmark_model import generation_settings, harness_model
from slipway_jobs.evaluate.benchmark_scores import compare, mcnemar
from slipway_jobs.storage import Storage

from .conftest import scorer_of
from .task_files import CHOICE, choice_rows, write_rows, write_task

FIELD = "suites[0].benchmark"


def prepared(tmp_path: Path, uri: Path, **options: Any) -> PreparedBenchmark:
    chosen = {name: options.pop(name) for name in ("limit", "chat_template") if name in options}
    return prepare(Benchmark(uri=str(uri), **chosen), suite="bench", field=FIELD, work=tmp_path / "work", **options)


def scores(result: Any) -> dict[str, float]:
    return {metric.metric: float(metric.value) for metric in result.metrics}


def test_the_same_as_the_harness_with_its_own_model(
    tmp_path: Path, tasks: Path, make_model: Callable[[int], Any], tokenizer: Any
) -> None:
    """Choices, whole texts and greedy answers, some too long for the model: the scores, errors, log-likelihoods and
    texts of lm_eval's HFLM."""
    from lm_eval.evaluator import evaluate  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    bench = prepared(tmp_path, tasks, few_shot=FewShot(count=2), seed=5)
    asked: list[Part] = []
    ours = bench.run(scorer_of(make_model(3), tokenizer, asked))
    bench._seed()
    reference = evaluate(
        lm=HFLM(pretrained=make_model(3), tokenizer=tokenizer, batch_size=4, device="cpu"),
        task_dict=dict(bench.loaded),
        bootstrap_iters=1000,
    )
    assert reference is not None
    for task in ("colours", "texts", "writes"):
        expected = {k: v for k, v in reference["results"][task].items() if "," in k and "_stderr" not in k}
        assert expected
        for key, value in expected.items():
            metric = f"{task}/{key.removesuffix(',none')}"
            found = next(one for one in ours.metrics if one.metric == metric)
            assert float(found.value) == pytest.approx(value, rel=1e-5)
            error = reference["results"][task][key.replace(",", "_stderr,")]
            assert (found.standard_error is None) == (error == "N/A")
            if found.standard_error is not None:
                assert float(found.standard_error) == pytest.approx(error, rel=1e-5)
        theirs = reference["samples"][task]
        rows = [row for row in ours.rows if row["task"] == task]
        assert [row["id"] for row in rows] == [one["doc_hash"] for one in theirs]
        for row, one in zip(rows, theirs, strict=True):
            assert row["prompt"] == one["arguments"][0][0]
            if task == "colours":
                assert row["log_likelihoods"] == pytest.approx([one[0][0] for one in one["resps"]], abs=1e-4)
            elif task == "writes":
                assert row["answer"] == one["filtered_resps"][0]
    colours = [row for row in ours.rows if row["task"] == "colours"]
    assert all(row["prompt"].count("Question:") == 3 for row in colours)  # two solved examples before each
    assert {row["answer"] for row in ours.rows if row["task"] == "writes"} != {""}
    longest = max(len(tokenizer.encode(row["prompt"])) for row in colours)
    texts = [len(tokenizer.encode(json.loads(row["document"])["text"])) for row in ours.rows if row["task"] == "texts"]
    assert longest > 64 and max(texts) > 128  # the model is built for 64 tokens
    assert {part.kind for part in asked} == {"pairs", "texts", "prompts"}


def test_one_task_by_file(tmp_path: Path, tasks: Path, scorer: EngineScorer) -> None:
    """Errors, intervals, counts and rows; the same again for the same seed; other documents, another digest."""
    told: list[tuple[int, int]] = []
    bench = prepared(tmp_path, tasks / "colours.yaml", limit=10, seed=3, confidences=("0.9", "0.95"))
    assert (bench.documents, bench.roots, bench.warnings) == (10, ("colours",), ())
    result = bench.run(scorer, lambda done, total: told.append((done, total)))
    assert told[-1] == (10, 10)
    accuracy = next(metric for metric in result.metrics if metric.metric == "acc")
    right = [row["score_acc"] for row in result.rows]
    value = sum(right) / 10
    error = math.sqrt(value * (1 - value) / 9)
    assert (float(accuracy.value), accuracy.count, accuracy.seed, accuracy.higher_is_better) == (value, 10, 3, True)
    assert float(accuracy.standard_error or 0) == pytest.approx(error)
    assert error > 0
    assert float(accuracy.intervals[1].high) == pytest.approx(value + 1.959964 * error, rel=1e-5)
    assert [interval.confidence for interval in accuracy.intervals] == ["0.9", "0.95"]
    assert [row["index"] for row in result.rows] == list(range(10))
    assert json.loads(result.rows[0]["document"]) == choice_rows(24)[0]
    assert result.versions == {"colours": 1.0}
    assert bench.run(scorer) == result

    def digest(uri: Path = tasks / "colours.yaml", **options: Any) -> str:
        shutil.rmtree(tmp_path / "work")
        return prepared(tmp_path, uri, **options).digest

    moved = shutil.copytree(tasks, tmp_path / "elsewhere")
    assert digest(moved / "colours.yaml", limit=10) == bench.digest
    assert digest(limit=11) != bench.digest
    shots = digest(limit=10, few_shot=FewShot(count=1))
    assert shots != bench.digest
    write_rows(tasks / "data" / "choices.jsonl", choice_rows(24)[:1] + choice_rows(23, seed=77))
    assert digest(limit=10) != bench.digest


def test_a_group_has_its_aggregate_and_its_tasks(tmp_path: Path, tasks: Path, scorer: EngineScorer) -> None:
    """The group's own score by the metric's name, weighted by size; its tasks' by theirs."""
    root = tasks / "grouped"
    root.mkdir()
    shutil.copytree(tasks / "data", root / "data")
    small = CHOICE | {"dataset_kwargs": {"data_files": {"test": "data/more.jsonl"}}, "fewshot_split": None}
    (root / "common").write_text("metadata: {version: 2}\n")
    write_task(root / "big.yaml", task="big", **CHOICE)
    write_task(root / "small.yaml", task="small", include="common", **{k: small[k] for k in small if k != "metadata"})
    metrics = [{"metric": "acc", "weight_by_size": True}]
    write_task(root / "all.yaml", group="all", task=["big", "small"], aggregate_metric_list=metrics)
    bench = prepared(tmp_path, root)
    assert (bench.roots, bench.documents) == (("all",), 32)
    result = bench.run(scorer)
    found = scores(result)
    assert next(iter(found)) == "acc"
    assert found["acc"] == pytest.approx((24 * found["big/acc"] + 8 * found["small/acc"]) / 32)
    assert next(metric.count for metric in result.metrics if metric.metric == "acc") == 32
    assert result.versions["small"] == 2
    assert len(result.values["acc"]) == 32


def test_a_baseline_is_compared_document_by_document(
    tmp_path: Path, tasks: Path, make_model: Callable[[int], Any], tokenizer: Any, scorer: EngineScorer
) -> None:
    """McNemar for right and wrong; no difference against itself."""
    bench = prepared(tmp_path, tasks / "colours.yaml")
    ours, other = bench.run(scorer), bench.run(scorer_of(make_model(8), tokenizer))
    accuracy = next(metric for metric in compare(ours, other, ("0.95",)) if metric.metric == "acc").baseline
    assert accuracy is not None
    left, right = ours.values["acc"], other.values["acc"]
    better = sum(a > b for a, b in zip(left, right, strict=True))
    worse = sum(a < b for a, b in zip(left, right, strict=True))
    assert better + worse > 0
    from scipy.stats import binomtest  # noqa: PLC0415

    assert float(accuracy.p_value or 0) == pytest.approx(binomtest(better, better + worse).pvalue, rel=1e-8)
    assert (accuracy.test, float(accuracy.difference)) == ("McNemar", pytest.approx((better - worse) / 24))
    assert float(accuracy.intervals[0].low) < float(accuracy.difference) < float(accuracy.intervals[0].high)
    same = next(metric for metric in compare(ours, ours, ()) if metric.metric == "acc").baseline
    assert same is not None and (same.difference, same.p_value) == ("0", "1")
    assert mcnemar(9, 2) == pytest.approx(binomtest(9, 11).pvalue)


def test_few_shot_by_the_tasks_rules(tmp_path: Path, tasks: Path) -> None:
    """A task that is defined for no examples stays so, and says it; sources of one's own are refused."""
    write_task(tasks / "zero.yaml", task="zero", num_fewshot=0, **CHOICE)
    bench = prepared(tmp_path, tasks / "zero.yaml", few_shot=FewShot(count=4))
    assert len(bench.warnings) == 1 and bench.warnings[0].startswith("zero: fewShot.count 4 is not applied")
    assert bench.loaded["tasks"]["zero"].get_config("num_fewshot") == 0
    with pytest.raises(UserError, match=r"fewShot\.sources does not go with a benchmark"):
        prepared(tmp_path, tasks / "zero.yaml", few_shot=FewShot(count=1, sources=[DataSource(uri="/x.jsonl")]))


def test_chat_templates(tmp_path: Path, tasks: Path, scorer: EngineScorer) -> None:
    """Solved examples become turns, the question the last one."""
    bench = prepared(tmp_path, tasks / "colours.yaml", limit=2, chat_template=True, few_shot=FewShot(count=1))
    prompt = bench.run(scorer).rows[0]["prompt"]
    assert prompt.startswith("<user>Question:") and prompt.endswith("<assistant>")
    assert prompt.count("<user>") == prompt.count("<assistant>") == 2


def test_a_score_that_is_not_a_number(tmp_path: Path, tasks: Path) -> None:
    """It ends the suite; argmax would have taken the first choice."""
    broken = SimpleNamespace(
        tokenizer_name="x", loglikelihoods=lambda pairs: [(math.nan, False)] * len(pairs), rolling=None, generate=None
    )
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, tasks / "colours.yaml").run(broken)  # type: ignore[arg-type]
    assert caught.value.reason == "LossNotFinite"


def test_generation_settings() -> None:
    """As the harness's own backend reads them; what cannot be honoured is refused by name."""
    greedy = generation_settings({"until": ["\n"], "temperature": 0.7, "do_sample": False}, seed=1)
    assert (greedy.temperature, greedy.stop, greedy.max_new_tokens, greedy.top_k) == (0.0, ("\n",), 256, 0)
    warm = generation_settings({"until": "a", "temperature": 0.7, "top_k": 5, "max_tokens": 9}, seed=1)
    assert (warm.temperature, warm.top_k, warm.max_new_tokens, warm.seed, warm.stop) == (0.7, 5, 9, 1, ("a",))
    assert generation_settings({"do_sample": True}, seed=0).temperature == 1.0
    assert generation_settings({"num_beams": 1}, seed=0).temperature == 0.0
    with pytest.raises(UserError, match=r"generation_kwargs\.num_beams = 4"):
        generation_settings({"num_beams": 4}, seed=0)


def test_parts(make_model: Callable[[int], Any], tokenizer: Any) -> None:
    """Of about equal size, never between two continuations of one context, and all that was asked."""
    sizes = [1000] * 900
    found = list(cuts(range(0, 900, 4), sizes))
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == 900 and all(begin % 4 == 0 for begin, _ in found)
    assert {sum(sizes[begin:end]) for begin, end in found[:-1]} == {36000}
    assert list(cuts([], [])) == []
    asked: list[Part] = []
    pairs = [(f"{'red cat ' * 600}{i}", word) for i in range(20) for word in (" a", " b", " c")]
    scorer = scorer_of(make_model(3), tokenizer, asked)
    assert len(scorer.loglikelihoods(pairs)) == 60
    assert len(asked) > 2 and [pair for part in asked for pair in part.items] == pairs
    assert all(len(part.items) % 3 == 0 and part.first % 3 == 0 for part in asked)


def test_sampled_answers_do_not_depend_on_parts(make_model: Callable[[int], Any], tokenizer: Any) -> None:
    """Each prompt draws by the seed and its own number."""
    settings = generation_settings({"do_sample": True, "max_gen_toks": 6}, seed=4)
    prompts = [f"red {word} cat" for word in ("dog", "house", "tree", "small")] * 2
    scorer = scorer_of(make_model(3), tokenizer)
    together = scorer.generate(prompts, settings)
    alone = [scorer._ask([Part("prompts", (one,), place, settings)])[0][0] for place, one in enumerate(prompts)]
    assert together == alone
    assert together[:4] != together[4:]


def test_answers_go_back_to_their_questions() -> None:
    """Requests with different settings are asked in groups and come back in order."""

    def write(prompts: list[str], settings: Any) -> list[str]:
        return [f"{prompt}:{settings.max_new_tokens}" for prompt in prompts]

    model = harness_model(SimpleNamespace(generate=write), seed=0)  # type: ignore[arg-type]
    asked = [SimpleNamespace(args=(f"p{i}", {"max_gen_toks": 1 + i % 2})) for i in range(5)]
    assert model.generate_until(asked) == ["p0:1", "p1:2", "p2:1", "p3:2", "p4:1"]


class TestByName:
    """The harness's own tasks. Its whole index takes 15 s to build, so the tests keep a small part of it."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Storage:
        import lm_eval.tasks  # noqa: PLC0415
        from lm_eval.tasks._index import TaskIndex  # noqa: PLC0415

        root = Path(lm_eval.tasks.__file__).parent
        cache = Storage(tmp_path / "cache")
        index = TaskIndex.build([root / "arc", root / "humaneval", root / "polemo2"])
        _write(cache, f"benchmarks/lm-eval-{lm_eval.__version__}.json", root, index)
        return cache

    def run(self, tmp_path: Path, name: str, cache: Storage) -> UserError:
        with pytest.raises(UserError) as caught:
            prepare(Benchmark(task=name), suite="b", field=FIELD, work=tmp_path / "work", cache=cache)
        return caught.value

    def test_offline(self, tmp_path: Path, cache: Storage) -> None:
        """Data that cannot be fetched say so, and what to do."""
        error = self.run(tmp_path, "arc_easy", cache)
        assert error.reason == "BenchmarkDataUnavailable"
        assert error.message.startswith(f"{FIELD}.task: the data of arc_easy cannot be fetched")
        assert "HF_HOME" in error.message and "benchmark.uri" in error.message

    def test_code_is_not_run(self, tmp_path: Path, cache: Storage) -> None:
        """Neither what a model writes, nor a metric that is a script on the hub."""
        error = self.run(tmp_path, "humaneval", cache)
        assert (error.reason, "runs code that the model writes" in error.message) == ("BenchmarkUnsupported", True)
        error = self.run(tmp_path, "polemo2_in", cache)
        assert (error.reason, "as a script to run" in error.message) == ("BenchmarkCodeRefused", True)

    def test_unknown(self, tmp_path: Path, cache: Storage) -> None:
        """The nearest names are offered."""
        error = self.run(tmp_path, "arc_esay", cache)
        assert (error.reason, "did you mean arc_easy" in error.message) == ("BenchmarkNotFound", True)

    def test_the_index_is_kept(self, cache: Storage) -> None:
        """Tasks, groups and tags come back as the harness made them, with the files that they lie in."""
        manager = builtin_tasks(cache)
        assert manager.task_index["ai2_arc"].tags == {"arc_challenge", "arc_easy"}
        assert manager.task_index["arc_easy"].yaml_path.is_file()
        assert manager.all_tasks == sorted(manager.task_index)

    def test_a_kept_path_cannot_lead_elsewhere(self, cache: Storage, tmp_path: Path) -> None:
        """Built-in files may run Python, so an index that points out of the package is not believed."""
        from slipway_jobs.evaluate import benchmark_index  # noqa: PLC0415

        name = next(iter(cache.find("benchmarks")))
        document = json.loads(cache.read_bytes(f"benchmarks/{name}"))
        root = tmp_path / "package"
        assert benchmark_index._read(cache, f"benchmarks/{name}", root) is not None
        for path in ("../evil.yaml", "/evil.yaml"):
            document["entries"]["arc_easy"][1] = path
            cache.write_bytes_atomic(f"benchmarks/{name}", json.dumps(document).encode())
            assert benchmark_index._read(cache, f"benchmarks/{name}", root) is None
