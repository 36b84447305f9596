"""The examples of a suite: read, drawn, rendered, and cut into shards. The same spec and data give the same examples.

Two steps, because the first is cheap and decides whether the second is needed: `open_suite` finds the files and their
digests, which name the scores; `examples` reads them. Nothing here needs torch, Ray or the model.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slipway_api.evaljob import FewShot, MultipleChoice, Slice, Suite
from slipway_api.run import EvalRunSpec
from slipway_jobs.data.documents import Row, rows
from slipway_jobs.data.fingerprints import Fingerprints
from slipway_jobs.data.sources import Source, resolve
from slipway_jobs.data.split import nothing_in, part_of
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate import templates

CODE_VERSION = 1  # raise it with any change that alters a score: stored scores of another version are not taken
_SHARDS = 32  # at most: enough to share work evenly and to lose little, few enough to keep batches full
_MIN_SHARD, _MAX_SHARD = 32 << 10, 64 << 20  # characters


@dataclass(frozen=True)
class ModelingInput:
    """A document to be scored."""

    text: str


@dataclass(frozen=True)
class ChoiceInput:
    """A prompt and what may follow it. `choices` are continuations, the delimiter included."""

    prompt: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class GenerationInput:
    """A prompt to be continued, and what a good continuation looks like."""

    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class LatencyInput:
    """A request of random tokens, drawn by the seed of the example."""

    seed: int


Input = ModelingInput | ChoiceInput | GenerationInput | LatencyInput


@dataclass(frozen=True)
class Example:
    """One example, ready to be scored."""

    index: int
    id: str
    where: str  # for messages
    fields: dict[str, str]
    input: Input
    perturbed: Input | None = None

    @property
    def size(self) -> int:
        """About how much work it is, in characters."""
        own = _size(self.input)
        return own if self.perturbed is None else own + _size(self.perturbed)


@dataclass(frozen=True)
class OpenSuite:
    """A suite whose files are found. `digest` names everything that decides its scores but model and seed."""

    suite: Suite
    field: str  # suites[0]
    sources: tuple[Source, ...]
    shot_sources: tuple[Source, ...]
    few_shot: FewShot | None
    slices: tuple[Slice, ...]
    own_slices: bool
    limit: int | None
    digest: str


def slices_of(run: EvalRunSpec, suite: Suite) -> list[Slice]:
    """The suite's slices, else the job's."""
    return [] if suite.kind in ("benchmark", "latency") else suite.slices or run.slices


def few_shot_of(run: EvalRunSpec, suite: Suite) -> FewShot | None:
    """The suite's solved examples, else the job's; None where there are none to be shown."""
    if suite.kind not in ("multipleChoice", "generation", "benchmark"):
        return None
    chosen = suite.few_shot or run.few_shot
    return chosen if chosen is not None and chosen.count > 0 else None


def open_suite(
    run: EvalRunSpec, position: int, fingerprints: Fingerprints, progress: Callable[[str], None]
) -> OpenSuite:
    """Find and hash the files of a suite. Raises UserError (DataNotFound, DataEmpty, ...) and InfrastructureError."""
    suite = run.suites[position]
    field = f"suites[{position}]"
    few_shot = few_shot_of(run, suite)
    sources: list[Source] = []
    shot_sources: list[Source] = []
    data = None
    if suite.kind not in ("benchmark", "latency"):
        data = suite.data or run.data
        if data is None:
            raise UserError("DataMissing", f"{field}.data: the suite {suite.name!r} has no data; set it, or spec.data")
        where = f"{field}.data.sources" if suite.data else "data.sources"
        sources = resolve(data.sources, where, fingerprints, progress)
        if data.split is not None:
            sources = part_of(sources, data.split, held_out=True, field=_split_field(where))
        if few_shot is not None and few_shot.sources:
            where = f"{field}.fewShot.sources" if suite.few_shot else "fewShot.sources"
            shot_sources = resolve(few_shot.sources, where, fingerprints, progress)
    slices = slices_of(run, suite)
    limit = data.limit if data else None
    task = suite.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include={
            "language_modeling",
            "multiple_choice",
            "generation",
            "latency",
            "perturbations",
        },  # a benchmark has its own
    )
    decides: list[Any] = [
        CODE_VERSION,
        task,
        [source.digest for source in sources],
        limit,
        None if few_shot is None else [few_shot.count, [source.digest for source in shot_sources]],
        sorted({one.field for one in slices}),
        run.precision,
        run.batch_tokens,
        # A time means something on the same kind of worker only.
        run.workers.resources.model_dump(mode="json") if suite.kind == "latency" else None,
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return OpenSuite(
        suite=suite,
        field=field,
        sources=tuple(sources),
        shot_sources=tuple(shot_sources),
        few_shot=few_shot,
        slices=tuple(slices),
        own_slices=bool(suite.slices),
        limit=limit,
        digest=digest,
    )


def examples(opened: OpenSuite, seed: int) -> list[Example]:
    """Every example of the suite, in order. Raises UserError naming the field and the row, and what reading raises."""
    if opened.suite.latency is not None:
        count = opened.suite.latency.requests
        return [Example(i, f"request-{i}", f"request {i}", {}, LatencyInput(seed * count + i)) for i in range(count)]
    found = _identified(opened.sources, opened.suite)
    if not found and opened.sources[0].part is not None:
        raise nothing_in(opened.sources[0].part, _split_field(_data_field(opened)))
    if not found:
        raise UserError("DataEmpty", f"{_data_field(opened)}: there is no row in the data; check the files")
    _check_slices(opened, [row for _, row in found])
    pool = _identified(opened.shot_sources, opened.suite) if opened.shot_sources else found
    places = list(range(len(found)))
    if opened.limit is not None and opened.limit < len(found):
        places = sorted(random.Random(f"limit:{seed}").sample(places, opened.limit))
    shots = _Shots(opened, pool, seed)
    made = []
    for index, place in enumerate(places):
        identity, row = found[place]
        plain = _input(opened, row)
        fields = {
            one.field: templates.as_text(row.fields[one.field])
            for one in opened.slices
            if row.fields.get(one.field) is not None
        }
        changed = _perturbed(opened, plain, seed, identity)
        example = Example(index, identity, row.where, fields, plain, changed)
        made.append(shots.before(example) if opened.few_shot is not None else example)
    return made


def shards(made: Sequence[Example]) -> list[range]:
    """Consecutive ranges of examples of about equal work. Depends on the examples alone, not on the workers."""
    total = sum(example.size for example in made)
    target = min(max(total / _SHARDS, _MIN_SHARD), _MAX_SHARD)
    if made and isinstance(made[0].input, LatencyInput):
        return [range(len(made))]  # one after the other, on one worker
    cut: list[range] = []
    start, size = 0, 0
    for place, example in enumerate(made):
        size += example.size
        if size >= target:
            cut.append(range(start, place + 1))
            start, size = place + 1, 0
    if start < len(made):
        cut.append(range(start, len(made)))
    return cut


# --- rows ---------------------------------------------------------------------------------------------------------


def _identified(sources: Iterable[Source], suite: Suite) -> list[tuple[str, Row]]:
    """Every row with its id: the digest of its content, numbered where the same content comes again."""
    found: list[tuple[str, Row]] = []
    seen: dict[str, int] = {}
    for source in sources:
        for row in rows([source]):
            checked = _with_text(row, source) if suite.language_modeling is not None else row
            content = json.dumps(row.fields, sort_keys=True, default=str).encode()
            digest = hashlib.sha256(content).hexdigest()[:16]
            seen[digest] = number = seen.get(digest, 0) + 1
            found.append((digest if number == 1 else f"{digest}-{number}", checked))
    return found


def _with_text(row: Row, source: Source) -> Row:
    """The row with its document in the field `text`, whatever the source calls it."""
    name = "text" if source.format == "text" else source.text_field
    text = row.fields.get(name)
    if not isinstance(text, str) or not text:
        raise UserError(
            "DataFieldMissing",
            f"{source.field}.textField: {row.where} has no text in field {name!r}; set textField, or repair the row",
        )
    return Row({**row.fields, "text": text}, row.where)


def _check_slices(opened: OpenSuite, found: Sequence[Row]) -> None:
    """A field that no row has is a typing error where the suite itself asks for it."""
    for one in opened.slices:
        if opened.own_slices and all(row.fields.get(one.field) is None for row in found):
            raise UserError(
                "SliceFieldMissing",
                f"{opened.field}.slices: no row has a field {one.field!r}; the first, {found[0].where}, has "
                f"{', '.join(sorted(map(repr, found[0].fields))[:20])}",
            )


def _data_field(opened: OpenSuite) -> str:
    return opened.sources[0].field.rpartition("[")[0] if opened.sources else f"{opened.field}.data"


def _split_field(sources: str) -> str:
    return f"{sources.removesuffix('sources')}split"


def _input(opened: OpenSuite, row: Row) -> Input:
    suite = opened.suite
    if suite.language_modeling is not None:
        return ModelingInput(row.fields["text"])
    if suite.multiple_choice is not None:
        return _choice(suite.multiple_choice, row, f"{opened.field}.multipleChoice")
    task = suite.generation
    assert task is not None
    field = f"{opened.field}.generation"
    prompt = templates.fill(task.prompt, row, f"{field}.prompt")
    return GenerationInput(prompt, templates.references_of(row, task.reference_field, f"{field}.referenceField"))


def _choice(task: MultipleChoice, row: Row, field: str) -> ChoiceInput:
    prompt = templates.fill(task.prompt, row, f"{field}.prompt")
    labels = (
        templates.choices_of(row, task.choices_field, f"{field}.choicesField")
        if task.choices_field is not None
        else tuple(task.choices)
    )
    gold = templates.gold_of(row, task.answer_field, labels, f"{field}.answerField")
    space = templates.delimiter(prompt)
    return ChoiceInput(prompt, tuple(space + label for label in labels), labels, gold)


def _perturbed(opened: OpenSuite, plain: Input, seed: int, identity: str) -> Input | None:
    how = opened.suite.perturbations
    if how is None or isinstance(plain, LatencyInput):
        return None
    from slipway_jobs.evaluate.perturb import perturb  # noqa: PLC0415 - only where it is asked for

    rate = float(how.rate)
    if isinstance(plain, ModelingInput):
        return ModelingInput(perturb(plain.text, how.kinds, rate, seed, identity))
    return replace(plain, prompt=perturb(plain.prompt, how.kinds, rate, seed, identity))


class _Shots:
    """Solved examples before each prompt; they are never perturbed."""

    def __init__(self, opened: OpenSuite, pool: Sequence[tuple[str, Row]], seed: int) -> None:
        self._opened, self._pool, self._seed = opened, pool, seed
        self._ids = [identity for identity, _ in pool]
        self._field = f"{opened.field}.fewShot" if opened.suite.few_shot else "fewShot"
        self._solved: dict[int, str] = {}

    def before(self, example: Example) -> Example:
        """The example with its solved ones in front."""
        few_shot = self._opened.few_shot
        assert few_shot is not None
        drawn = templates.draw_shots(self._ids, example.id, few_shot.count, self._seed, self._field)
        head = "".join(self._solution(place) + templates.SHOT_SEPARATOR for place in drawn)
        return replace(
            example,
            input=_with_head(example.input, head),
            perturbed=None if example.perturbed is None else _with_head(example.perturbed, head),
        )

    def _solution(self, place: int) -> str:
        if place not in self._solved:
            solved = _input(self._opened, self._pool[place][1])
            if isinstance(solved, ChoiceInput):
                self._solved[place] = solved.prompt + solved.choices[solved.gold]
            else:
                assert isinstance(solved, GenerationInput)
                self._solved[place] = solved.prompt + templates.delimiter(solved.prompt) + solved.references[0]
        return self._solved[place]


def _with_head(one: Input, head: str) -> Input:
    assert isinstance(one, (ChoiceInput, GenerationInput))
    return replace(one, prompt=head + one.prompt)


def _size(one: Input) -> int:
    if isinstance(one, ModelingInput):
        return len(one.text)
    if isinstance(one, ChoiceInput):
        return len(one.prompt) + sum(map(len, one.choices))
    if isinstance(one, GenerationInput):
        return len(one.prompt) + 512  # each new token costs a pass of its own
    return 1
