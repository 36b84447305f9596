"""EvalJob (ej): measures a model, and holds it at a gate.

Suites say what is measured; gates say what must hold. Everything that decides a score is immutable; the gate's
thresholds are not, because a verdict is computed from stored scores: a changed gate is judged anew without a new run.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slipway_api.base import (
    ApiModel,
    Decimal,
    LabelName,
    LongText,
    Name,
    Rule,
    ShortText,
    Timestamp,
    Uri,
    exactly_one,
    immutable,
    immutable_optional,
    map_list,
)
from slipway_api.conditions import Condition
from slipway_api.metrics import METRICS, SUITE_KINDS, MetricChoice, SuiteKind
from slipway_api.references import ModelReference
from slipway_api.split import Split
from slipway_api.trainjob import AttemptRecord, DataSource, Retry, Usage, Workers

# As for a TrainJob: a RayJob's name may have 47 characters; ours is "<name>-<attempt>".
MAX_NAME_LENGTH = 40
# The jobs of a cross-validation are "<name>-fold-<number>", and those are names of jobs in their turn.
MAX_CROSS_VALIDATION_NAME_LENGTH = MAX_NAME_LENGTH - len("-fold-19")

Confidence = Literal["0.9", "0.95", "0.99"]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
FieldName = Annotated[str, Field(min_length=1, max_length=128)]
Label = Annotated[str, Field(min_length=1, max_length=256)]


# --- suites -------------------------------------------------------------------------------------------------------


class EvalData(ApiModel):
    """The examples of a suite."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=32)] = Field(
        description="Documents (languageModeling), or rows of jsonl or parquet with the fields that the prompt names."
    )
    split: Split | None = Field(
        default=None,
        description="Take the held-out part only: with the sources and the split of a TrainJob, what it did not see.",
    )
    limit: int | None = Field(
        default=None, ge=1, le=100_000_000, description="Take so many examples, drawn by the seed. Default: all."
    )


class FewShot(ApiModel):
    """Solved examples that are put before each prompt."""

    count: int = Field(default=0, ge=0, le=64, description="How many.")
    sources: Annotated[list[DataSource], Field(max_length=32)] = Field(
        default_factory=list,
        description="Where they are drawn from, by the seed. Default: the suite's own examples, never the one asked.",
    )


class Slice(ApiModel):
    """A field whose values cut the examples into groups, each with scores of its own."""

    field: FieldName = Field(description="Field of the rows; for text files: file, the path that the document is from.")
    values: Annotated[list[Label], Field(max_length=64)] = Field(
        default_factory=list, description="The groups to report. Default: the 20 most frequent values."
    )


class LanguageModeling(ApiModel):
    """Loss per token of documents, with a sliding window (https://huggingface.co/docs/transformers/perplexity)."""

    window_tokens: int | None = Field(
        default=None, ge=8, le=1048576, description="Tokens that the model sees at once. Default: its longest, to 2048."
    )
    stride_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1048576,
        description="Tokens between two windows; each token is scored once, with at least window - stride tokens of "
        "context. Default: half the window.",
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.strideTokens) || !has(self.windowTokens) || self.strideTokens <= self.windowTokens",
            "strideTokens must not be above windowTokens",
        ),
    )


class MultipleChoice(ApiModel):
    """The choice that the model finds likeliest after the prompt; also classification, when labels are the choices."""

    prompt: Text = Field(description="Template: {field} stands for a field of the row.")
    choices: Annotated[list[Label], Field(max_length=256)] = Field(
        default_factory=list, description="The same choices for every row: the labels of a classification."
    )
    choices_field: FieldName | None = Field(default=None, description="Field of the row with its list of choices.")
    answer_field: FieldName = Field(description="Field with the right choice: its text, or its index from 0.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.choices.size() > 1) != has(self.choicesField)",
            "set either choices (two or more) or choicesField",
        ),
    )


class Generation(ApiModel):
    """Text that the model writes after the prompt, compared with references."""

    prompt: Text = Field(description="Template: {field} stands for a field of the row.")
    reference_field: FieldName = Field(description="Field with the reference: a text, or a list of texts.")
    max_new_tokens: int = Field(default=128, ge=1, le=65536, description="Longest answer, in tokens.")
    temperature: Decimal = Field(default="0", description="0: greedy. Above: sampling, by the seed.")
    top_k: int = Field(default=0, ge=0, le=1048576, description="Sample among the k likeliest tokens. 0: all.")
    top_p: Decimal = Field(default="1", description="Sample among the likeliest tokens of this joint probability.")
    stop: Annotated[list[Label], Field(max_length=8)] = Field(
        default_factory=list, description="The answer ends before the first of these texts."
    )
    chat_template: bool = Field(
        default=False, description="Put the prompt as a user's turn into the tokenizer's chat template."
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("double(self.topP) > 0.0 && double(self.topP) <= 1.0", "topP must be above 0 and at most 1", ".topP"),
        Rule(
            "double(self.temperature) > 0.0 || (self.topK == 0 && double(self.topP) == 1.0)",
            "topK and topP need a temperature above 0: at 0 the likeliest token is taken",
        ),
    )


class Benchmark(ApiModel):
    """A task of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), with its own metrics."""

    task: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][\w.,+-]*$")] | None = Field(
        default=None, description="Name of a task or group: arc_easy, hellaswag, mmlu, truthfulqa_mc2, ..."
    )
    uri: Uri | None = Field(default=None, description="A task's own YAML file, or a directory of such: no network.")
    limit: int | None = Field(default=None, ge=1, le=100_000_000, description="Examples per task. Default: all.")
    chat_template: bool = Field(default=False, description="Put prompts into the tokenizer's chat template.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (exactly_one("task", "uri"),)


class Latency(ApiModel):
    """How fast the model answers, one request at a time, as it stands on one worker."""

    requests: int = Field(default=32, ge=2, le=100_000, description="Requests that are measured, after a warm-up.")
    prompt_tokens: int = Field(default=128, ge=1, le=1048576, description="Tokens of each prompt (random).")
    new_tokens: int = Field(default=64, ge=2, le=65536, description="Tokens of each answer.")


class Perturbations(ApiModel):
    """Seeded changes of the prompts: how much of the score is lost when people write carelessly."""

    kinds: Annotated[list[Literal["typo", "case", "slang"]], Field(min_length=1, max_length=3)] = Field(
        default=["typo", "case", "slang"], description="typo: swapped, lost and doubled letters; case; slang spellings."
    )
    rate: Decimal = Field(default="0.1", description="Part of the words that is changed.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule("double(self.rate) > 0.0 && double(self.rate) <= 1.0", "rate must be above 0 and at most 1", ".rate"),
    )


class Suite(ApiModel):
    """Examples, a task and what is computed of it."""

    name: LabelName = Field(description="Name of the suite, unique in the job.")
    language_modeling: LanguageModeling | None = Field(default=None, description="Loss and perplexity of documents.")
    multiple_choice: MultipleChoice | None = Field(default=None, description="Choices, or labels of a classification.")
    generation: Generation | None = Field(default=None, description="Generated text against references.")
    benchmark: Benchmark | None = Field(default=None, description="A task of lm-evaluation-harness.")
    latency: Latency | None = Field(default=None, description="Speed of answers.")
    data: EvalData | None = Field(default=None, description="The examples. Default: spec.data.")
    metrics: Annotated[list[MetricChoice], Field(max_length=32)] = Field(
        default_factory=list, description="What to compute; auto: what fits the task. Default: spec.metrics."
    )
    slices: Annotated[list[Slice], Field(max_length=8)] = Field(
        default_factory=list, description="Groups with scores of their own. Default: spec.slices."
    )
    few_shot: FewShot | None = Field(default=None, description="Solved examples. Default: spec.fewShot.")
    perturbations: Perturbations | None = Field(
        default=None, description="Score careless writing too, for robustnessDrop."
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("languageModeling", "multipleChoice", "generation", "benchmark", "latency"),
        Rule(
            "!(has(self.benchmark) || has(self.latency)) || (!has(self.data) && self.metrics.size() == 0 "
            "&& self.slices.size() == 0 && !has(self.perturbations))",
            "benchmark and latency bring their own data and metrics: data, metrics, slices and perturbations must not "
            "be set beside them",
        ),
        Rule(
            "!has(self.fewShot) || has(self.multipleChoice) || has(self.generation) || has(self.benchmark)",
            "fewShot needs multipleChoice, generation or benchmark",
        ),
    )

    @property
    def kind(self) -> SuiteKind | Literal["benchmark"]:
        """Which task it is."""
        if self.benchmark is not None:
            return "benchmark"
        return next(
            kind
            for kind, value in zip(
                SUITE_KINDS,
                (self.language_modeling, self.multiple_choice, self.generation, self.latency),
                strict=True,
            )
            if value is not None
        )


# --- gates --------------------------------------------------------------------------------------------------------


class Gate(ApiModel):
    """One thing that must hold: a bound, or not being worse than the baseline."""

    suite: LabelName | None = Field(default=None, description="The suite. May be left out where there is one only.")
    metric: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][\w.,/+-]*$")] = Field(
        description="A metric that the suite computes."
    )
    op: Literal["<", "<=", ">", ">="] | None = Field(default=None, description="How the metric must stand to value.")
    value: Annotated[str, Field(max_length=32, pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,12})?([eE][-+]?[0-9]{1,2})?$")] | (
        None
    ) = Field(default=None, description="The bound, as a decimal string.")
    not_worse_than: Literal["baseline"] | None = Field(
        default=None, description="Compare with spec.baseline on the same examples."
    )
    margin: Decimal | None = Field(
        default=None,
        description="How much worse than the baseline is still accepted, in the metric's unit. Default: 0.",
    )
    confidence: Confidence | None = Field(
        default=None,
        description="Judge the unfavourable end of the interval of this confidence instead of the score itself.",
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("op", "notWorseThan", message="set either op with value, or notWorseThan"),
        Rule("has(self.op) == has(self.value)", "op and value belong together"),
        Rule("!has(self.margin) || has(self.notWorseThan)", "margin needs notWorseThan"),
    )


class CrossValidation(ApiModel):
    """k-fold: k TrainJobs, each without one part of the documents and measured on the part that it never saw."""

    folds: int = Field(ge=2, le=20, description="How many parts, and TrainJobs.")


def _any_kind(variable: str, *, auto: bool = False) -> str:
    """CEL: whether the metric `variable` is one of those that suite `s` can give (or that auto gives)."""
    return " || ".join(
        f"(has(s.{kind}) && {variable} in {[m.name for m in METRICS if kind in m.kinds and (m.auto or not auto)]})"
        for kind in SUITE_KINDS
    ).replace("'", '"')


def _gate_rule() -> Rule:
    """A gate names a suite that there is and a metric that it computes. A benchmark's metrics are its own."""
    asked = "(s.metrics.size() > 0 ? s.metrics : self.metrics)"
    sliced = [metric.name for metric in METRICS if metric.needs == "slices"]
    needs = (
        f"(!(g.metric in {sliced}) || s.slices.size() > 0 || self.slices.size() > 0) "
        '&& (g.metric != "robustnessDrop" || has(s.perturbations))'
    ).replace("'", '"')
    return Rule(
        "self.gate.all(g, self.suites.exists(s, (has(g.suite) ? g.suite == s.name : self.suites.size() == 1) "
        f"&& (has(s.benchmark) || (({_any_kind('g.metric')}) && {needs} "
        f"&& (has(s.latency) || g.metric in {asked} "
        f'|| ("auto" in {asked} && ({_any_kind("g.metric", auto=True)})))))))',
        "each gate must name a suite (suite may be left out where there is one only) and a metric that it computes: "
        "one of its metrics, or of spec.metrics, or one that auto stands for; groupDisparity and biasAmplification "
        "need slices, robustnessDrop needs perturbations",
    )


def _metric_kind_rule() -> Rule:
    """What is asked for by name must be something that the suite's task can give."""
    return Rule(
        f'self.suites.all(s, s.metrics.all(m, m == "auto" || {_any_kind("m")}))',
        "a suite's metrics must fit its task: see spec.suites.metrics in the manual",
    )


class EvalJobSpec(ApiModel):
    """Which model to measure, on what, and what must hold."""

    model: ModelReference = Field(description="The model to measure.")
    baseline: ModelReference | None = Field(
        default=None, description="A model to compare with, example by example: the one in use, or the untrained one."
    )
    suites: Annotated[list[Suite], Field(min_length=1), map_list("name", max_items=16)] = Field(
        description="What is measured."
    )
    data: EvalData | None = Field(default=None, description="Examples of the suites that name none.")
    metrics: Annotated[list[MetricChoice], Field(min_length=1, max_length=32)] = Field(
        default=["auto"], description="Metrics of the suites that name none; those that do not fit a task are left out."
    )
    slices: Annotated[list[Slice], Field(max_length=8)] = Field(
        default_factory=list, description="Slices of the suites that name none."
    )
    few_shot: FewShot | None = Field(default=None, description="Solved examples for the suites that say nothing of it.")
    gate: Annotated[list[Gate], Field(max_length=32)] = Field(
        default_factory=list,
        description="What must hold for the condition Passed. May be changed: stored scores are judged anew.",
    )
    cross_validation: CrossValidation | None = Field(
        default=None,
        description="Train model.trainJob's spec once for each fold, measure each model on the documents that its fold "
        "holds out (suites with data of their own: on those), and report mean and spread. Needs model.trainJob.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Decides draws of examples, sampling, perturbations and bootstraps."
    )
    batch_tokens: int = Field(
        default=4096, ge=64, le=16777216, description="Most tokens of one forward pass on one worker."
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="What the model computes in.")
    workers: Workers = Field(
        default_factory=Workers, description="Workers that share the examples, each with the whole model."
    )
    retry: Retry = Field(default_factory=Retry, description="What to do when the run ends without the user's fault.")
    suspend: bool = Field(default=False, description="Stop the run and free everything; false continues it.")
    queue: LabelName | None = Field(
        default=None, description="Kueue LocalQueue that each attempt waits in. May change only while suspend is true."
    )
    priority_class_name: Name | None = Field(default=None, description="PriorityClass of the run.")
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="Fail when not finished this long after the first attempt began."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="Delete the EvalJob this long after its end. Results stay."
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.data) || has(self.crossValidation) "
            "|| self.suites.all(s, has(s.data) || has(s.benchmark) || has(s.latency))",
            "every suite needs data: set spec.data, or data in each suite that is not a benchmark or latency",
        ),
        Rule(
            "!has(self.data) || !has(self.crossValidation)",
            "crossValidation measures suites without data on the held-out documents of each fold: leave spec.data out",
        ),
        Rule(
            "has(self.baseline) || !self.gate.exists(g, has(g.notWorseThan))",
            "a gate with notWorseThan needs spec.baseline",
            ".gate",
        ),
        Rule(
            "!has(self.crossValidation) || has(self.model.trainJob)",
            "crossValidation needs model.trainJob: it trains that job's spec again for each fold",
        ),
        _gate_rule(),
        _metric_kind_rule(),
        immutable("model"),
        immutable_optional("baseline"),
        immutable("suites"),
        immutable_optional("data"),
        immutable("metrics"),
        immutable("slices"),
        immutable_optional("fewShot"),
        immutable_optional("crossValidation"),
        immutable("seed"),
        immutable("batchTokens"),
        immutable("precision"),
        immutable("workers"),
        immutable_optional("priorityClassName"),
        Rule(
            "oldSelf.suspend || (has(self.queue) == has(oldSelf.queue) "
            "&& (!has(self.queue) || self.queue == oldSelf.queue))",
            "queue may change only while suspend is true: suspend the job, change its queue, resume it",
        ),
    )


# --- status -------------------------------------------------------------------------------------------------------


class Interval(ApiModel):
    """A two-sided confidence interval. Decimals are strings."""

    confidence: Confidence = Field(description="Its confidence.")
    low: ShortText = Field(description="Lower end.")
    high: ShortText = Field(description="Upper end.")


class Comparison(ApiModel):
    """The baseline on the same examples, and whether the difference is real."""

    value: ShortText = Field(description="The baseline's score.")
    difference: ShortText = Field(description="Score minus the baseline's.")
    p_value: ShortText | None = Field(default=None, description="Of the paired test, two-sided.")
    test: ShortText = Field(default="", description="The paired test: McNemar, paired bootstrap, ...")
    intervals: Annotated[list[Interval], Field(max_length=3)] = Field(
        default_factory=list, description="Of the difference."
    )


class MetricValue(ApiModel):
    """One score. Decimals are strings."""

    suite: LabelName = Field(description="The suite.")
    metric: ShortText = Field(description="The metric.")
    slice: ShortText = Field(default="", description="field=value of the group; empty: all examples.")
    value: ShortText = Field(description="The score.")
    higher_is_better: bool = Field(description="Which way is better.")
    count: int = Field(ge=0, description="Examples (tokens, for perplexity and loss) that it rests on.")
    seed: int = Field(default=0, ge=0, description="The seed of draws, sampling and bootstrap.")
    standard_error: ShortText | None = Field(default=None, description="Standard error.")
    method: ShortText = Field(default="", description="How the error was found: analytic, bootstrap, ...")
    intervals: Annotated[list[Interval], Field(max_length=3)] = Field(
        default_factory=list, description="Confidence intervals."
    )
    baseline: Comparison | None = Field(default=None, description="The comparison with spec.baseline.")


class SuiteStatus(ApiModel):
    """How a suite went."""

    name: LabelName = Field(description="The suite.")
    state: Literal["Pending", "Running", "Succeeded", "Failed"] = Field(description="How it stands.")
    reason: ShortText | None = Field(default=None, description="Why it failed, as one CamelCase word.")
    message: LongText | None = Field(default=None, description="Why it failed and what to do; or warnings.")
    examples: int = Field(default=0, ge=0, description="Examples of the suite.")
    done: int = Field(default=0, ge=0, description="Examples that are scored.")
    cached: bool = Field(default=False, description="Its scores were there: the same was computed before.")


class EvalProgress(ApiModel):
    """Where the run is."""

    done: int = Field(ge=0, description="Examples scored, over all suites and models.")
    total: int = Field(ge=0, description="Examples in all, as far as known.")
    summary: ShortText = Field(default="", description="done/total, for the printer column.")
    suite: ShortText = Field(default="", description="The suite that is scored.")
    examples_per_second: ShortText | None = Field(default=None, description="Over all workers.")
    eta_seconds: int | None = Field(default=None, ge=0, description="Estimated seconds until the end.")
    updated_at: Timestamp | None = Field(default=None, description="When the run last said so.")


class GateResult(ApiModel):
    """The verdict on one gate."""

    gate: ShortText = Field(description="The gate in words: held-out/perplexity <= 200.")
    passed: bool = Field(description="Whether it holds.")
    message: LongText = Field(description="The value, the threshold, and what it was judged by.")


class MeasuredModel(ApiModel):
    """A model as the run found it."""

    uri: LongText = Field(description="Where it was loaded from.")
    digest: ShortText = Field(description="Digest over its files.")
    parameters: int = Field(default=0, ge=0, description="Number of parameters.")


class EvalResults(ApiModel):
    """What was written."""

    uri: LongText = Field(description="Directory of the results: results.json, and a parquet file for each suite.")
    report: LongText = Field(description="The HTML report.")
    digest: ShortText = Field(default="", description="Digest of results.json.")


class FoldResult(ApiModel):
    """One fold of a cross-validation."""

    fold: int = Field(ge=0, description="Fold number, from 0.")
    train_job: ShortText = Field(description="Its TrainJob.")
    eval_job: ShortText = Field(description="Its EvalJob.")
    state: ShortText = Field(default="", description="How it stands.")


class EvalJobStatus(ApiModel):
    """What the operator knows about the job."""

    observed_generation: int | None = Field(default=None, ge=0, description="The generation that status describes.")
    conditions: Annotated[list[Condition], map_list("type", max_items=16)] = Field(
        default_factory=list, description="Suspended, Running, Succeeded, Failed, Passed."
    )
    state: ShortText | None = Field(default=None, description="The conditions in one word, for people.")
    model_name: ShortText | None = Field(default=None, description="The model in words, for the printer column.")
    suites_summary: ShortText | None = Field(default=None, description="Suites done, of all, for the printer column.")
    attempt: int | None = Field(default=None, ge=1, description="Number of the current attempt.")
    attempts: Annotated[list[AttemptRecord], map_list("number", max_items=128)] = Field(
        default_factory=list, description="Every attempt and how it ended; the oldest are dropped beyond 20."
    )
    ray_job_name: ShortText | None = Field(default=None, description="The RayJob of the current attempt.")
    start_time: Timestamp | None = Field(default=None, description="When the first attempt was created.")
    completion_time: Timestamp | None = Field(default=None, description="When the job succeeded or failed.")
    next_attempt_time: Timestamp | None = Field(default=None, description="When the next attempt may start.")
    storage: LongText | None = Field(default=None, description="Prefix of the run's logs.")
    model: MeasuredModel | None = Field(default=None, description="The model that was measured.")
    baseline: MeasuredModel | None = Field(default=None, description="The baseline that was measured.")
    progress: EvalProgress | None = Field(default=None, description="Where the run is.")
    suites: Annotated[list[SuiteStatus], map_list("name", max_items=16)] = Field(
        default_factory=list, description="How each suite stands."
    )
    metrics: Annotated[list[MetricValue], map_list("suite", "metric", "slice", max_items=512)] = Field(
        default_factory=list, description="The scores."
    )
    gates: Annotated[list[GateResult], Field(max_length=32)] = Field(
        default_factory=list, description="The verdict on each gate, in the spec's order."
    )
    folds: Annotated[list[FoldResult], map_list("fold", max_items=20)] = Field(
        default_factory=list, description="The folds of a cross-validation."
    )
    results: EvalResults | None = Field(default=None, description="What was written.")
    pool: ShortText | None = Field(default=None, description="The pool of nodes that the plan has found room in.")
    usage: Usage | None = Field(default=None, description="What the attempts have used.")


class EvalJob(ApiModel):
    """Measures a model on suites of examples, and judges it by gates."""

    api_version: Literal["slipway.dev/v1alpha1"] = "slipway.dev/v1alpha1"
    kind: Literal["EvalJob"] = "EvalJob"
    metadata: dict[str, Any]
    spec: EvalJobSpec = Field(description="Which model to measure, on what, and what must hold.")
    status: EvalJobStatus | None = Field(default=None, description="What the operator knows about the job.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
            f"metadata.name must have at most {MAX_NAME_LENGTH} characters: the RayJob's name is derived from it",
        ),
        Rule(
            f"!has(self.spec.crossValidation) || self.metadata.name.size() <= {MAX_CROSS_VALIDATION_NAME_LENGTH}",
            f"metadata.name must have at most {MAX_CROSS_VALIDATION_NAME_LENGTH} characters with crossValidation: the "
            "names of its TrainJobs are derived from it",
        ),
    )
