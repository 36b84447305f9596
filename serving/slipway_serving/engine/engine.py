"""Continuous batching (Orca, Yu et al., OSDI 2022): requests join and leave between two tokens, and wait for no other.

One thread owns the model. Each turn of its loop takes in what has come, reads the new prompts, adds one token to every
answer under way, and hands the pieces out. Callers live in an event loop and get an async stream; closing it frees the
row before the next token.

transformers has a continuous batching of its own. Its paged cache pays off with GPU kernels; on a CPU its first call
was ten times slower than plain generation of the same (24 s against 2.2 s for 16 answers of a toy model, before this
was written). This loop is a screen long and needs no kernels.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from slipway_serving.engine.generation import Finish, Generation, Piece
from slipway_serving.engine.model import ServedModel
from slipway_serving.engine.rows import RowCache
from slipway_serving.engine.sampling import Sampler
from slipway_serving.engine.signals import entropies
from slipway_serving.engine.streams import AnswerStream, EngineFailed, Reader, hand_out, let_go
from slipway_serving.engine.text import GrowingText

_PREFILL_TOKENS = 4096  # of one forward pass: longer waits are not put on the answers under way
_IDLE_SECONDS = 1.0
# So long the next token waits for a first one to be sent: computing takes the interpreter's lock and the CPU's caches
# from the event loop that sends it.
_FIRST_TOKEN_SECONDS = 0.002


class QueueFull(Exception):  # noqa: N818 - so is this
    """More requests wait than may."""


class NotFinite(Exception):  # noqa: N818 - and so is this
    """The model gives no numbers for this answer."""


@dataclass
class _Answer:
    """One answer, from its request to its last piece."""

    number: int
    generation: Generation
    reader: Reader
    sampler: Sampler
    text: GrowingText
    generated: int = 0
    next_token: int = 0
    entropy: float = 0.0  # the sum over its tokens
    losses: _Losses | None = None  # of the prompts that were read together, if one of them is asked for


class _Losses:
    """How well the model knew the prompts of one pass. Measured when first asked for: no first token waits for it."""

    def __init__(self, measure: Callable[[], dict[int, float]]) -> None:
        self._measure: Callable[[], dict[int, float]] | None = measure
        self._found: dict[int, float] = {}

    def of(self, number: int) -> float | None:
        """Of the prompt of this answer; None: it did not ask, or its prompt is too short."""
        if self._measure is not None:
            self._found, self._measure = self._measure(), None  # and with it go the hidden states
        return self._found.get(number)


@dataclass
class _Call:
    """Something else to do with the model, between two tokens."""

    work: Callable[[ServedModel], Any]
    done: Callable[[Any, BaseException | None], None]


@dataclass
class Load:
    """How busy the engine is."""

    running: int = 0
    waiting: int = 0
    cache_tokens: int = 0
    steps: int = field(default=0)


class Engine:
    """Owns a model and its thread. Thread-safe."""

    def __init__(self, model: ServedModel, *, max_batch: int, max_queue: int) -> None:
        self.model = model
        self.max_batch = max_batch
        self._max_queue = max_queue
        self._cache = RowCache(max_batch, model.max_context)
        self._changed = threading.Condition()
        self._waiting: deque[_Answer] = deque()
        self._calls: deque[_Call] = deque()
        self._cancelled: set[int] = set()
        self._joining: list[_Answer] = []  # their prompts are being read
        self._running: list[_Answer] = []  # in the order of the cache's rows
        self._numbers = itertools.count()
        self._closing = False
        self._steps = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._thread.start()

    # --- for callers ----------------------------------------------------------------------------------------------

    @property
    def load(self) -> Load:
        """How busy it is now."""
        return Load(len(self._running) + len(self._joining), len(self._waiting), self._cache.tokens, self._steps)

    def stream(self, generation: Generation) -> AnswerStream:
        """The answer, piece by piece: it is in the queue when this returns. Raises QueueFull, EngineFailed.

        Whoever does not read it to its end must close it.
        """
        reader = Reader(asyncio.get_running_loop(), asyncio.Queue())
        number = self._submit(generation, reader).number
        return AnswerStream(reader, lambda: self.cancel(number))

    def cancel(self, number: int) -> None:
        """Free the row of this answer before the next token, or its place in the queue."""
        with self._changed:
            self._cancelled.add(number)
            self._changed.notify_all()

    async def call(self, work: Callable[[ServedModel], Any]) -> Any:
        """Do something with the model between two tokens. Raises what it raises, or EngineFailed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            def apply() -> None:
                if not future.done():
                    future.set_exception(error) if error is not None else future.set_result(result)

            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(apply)

        with self._changed:
            self._check()
            self._calls.append(_Call(work, settle))
            self._changed.notify_all()
        return await future

    def close(self) -> None:
        """End the thread after its present step."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _submit(self, generation: Generation, reader: Reader) -> _Answer:
        decode = self.model.tokenizer.decode
        text = GrowingText(lambda tokens: decode(tokens, skip_special_tokens=True), generation.stop)
        answer = _Answer(next(self._numbers), generation, reader, Sampler(generation), text)
        with self._changed:
            self._check()
            if len(self._waiting) >= self._max_queue and len(self._running) + len(self._waiting) >= self.max_batch:
                raise QueueFull(f"{len(self._waiting)} requests are waiting already")
            self._waiting.append(answer)
            self._changed.notify_all()
        return answer

    def _check(self) -> None:
        if self.failure is not None:
            raise EngineFailed(f"the model failed: {type(self.failure).__name__}: {self.failure}")
        if self._closing:
            raise EngineFailed("the engine is closed")

    # --- the thread -----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while self._turn():
                    pass
        except BaseException as error:  # whoever waits must hear of it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = error
            left, calls = [*self._running, *self._joining, *self._waiting], list(self._calls)
            self._running, self._joining, self._waiting, self._calls = [], [], deque(), deque()
            self._cache.clear()
        hand_out([(answer.reader, error) for answer in left])
        for call in calls:
            call.done(None, error)

    def _turn(self) -> bool:
        """One turn of the loop; whether there is another."""
        with self._changed:
            while not (self._closing or self._waiting or self._running or self._calls):
                self._cancelled.clear()  # of answers that have ended
                self._changed.wait(_IDLE_SECONDS)
            if self._closing:
                raise EngineFailed("the engine is closed")
            self._forget_cancelled()
            self._joining, calls = self._admit(), list(self._calls)
            self._calls.clear()
        for call in calls:
            self._do(call)
        if self._joining:
            self._join()
        if self._running:
            self._step()
        return True

    def _forget_cancelled(self) -> None:
        if not self._cancelled:
            return
        self._waiting = deque(a for a in self._waiting if a.number not in self._cancelled)
        for row in range(len(self._running) - 1, -1, -1):
            if self._running[row].number in self._cancelled:
                self._leave(row)
        self._cancelled.clear()

    def _admit(self) -> list[_Answer]:
        """Who joins now: the oldest first, as many as there are rows, and one pass can read."""
        joining: list[_Answer] = []
        longest = 0
        while self._waiting and len(self._running) + len(joining) < self.max_batch:
            longest = max(longest, len(self._waiting[0].generation.prompt))
            if joining and longest * (len(joining) + 1) > _PREFILL_TOKENS:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _do(self, call: _Call) -> None:
        try:
            result, error = call.work(self.model), None
        except Exception as raised:
            result, error = None, raised
        call.done(result, error)

    def _join(self) -> None:
        joined = self._joining
        logits, hidden = self.model.prefill([answer.generation.prompt for answer in joined], self._cache)
        scored = {row: answer for row, answer in enumerate(joined) if answer.generation.loss}
        losses = _Losses(functools.partial(self._losses, hidden, scored))
        for answer in scored.values():
            answer.losses = losses
        first = len(self._running)
        self._running += joined
        self._joining = []
        self._advance(range(first, len(self._running)), logits)
        let_go({answer.reader.loop for answer in joined}, _FIRST_TOKEN_SECONDS)
        if scored:
            losses.of(joined[0].number)

    def _losses(self, hidden: Any, scored: dict[int, _Answer]) -> dict[int, float]:
        found = self.model.losses(hidden, {row: answer.generation.prompt for row, answer in scored.items()})
        return {scored[row].number: loss for row, loss in found.items()}

    def _step(self) -> None:
        self._steps += 1
        logits = self.model.step([answer.next_token for answer in self._running], self._cache)
        self._advance(range(len(self._running)), logits)

    def _advance(self, rows: range, logits: Any) -> None:
        """Pick a token for each of these rows; rows that end leave; then the texts are handed out."""
        best, places = logits.max(-1)  # of all rows in one go, though some will not want it
        likeliest, finite = places.tolist(), best.isfinite().tolist()  # a NaN is larger than any number
        self._measure([self._running[row] for row in rows], logits)
        made: list[tuple[Reader, Piece | BaseException]] = []
        ended = []
        for row, scores, token, whole in zip(rows, logits, likeliest, finite, strict=True):
            answer = self._running[row]
            if not whole:
                why = "its logits are no finite numbers: the weights are damaged, or overflow in this precision"
                made.append((answer.reader, NotFinite(why)))
                ended.append(row)
                continue
            piece = self._advance_one(answer, scores, token)
            if piece.finish is not None and answer.generation.entropy:
                piece = replace(piece, entropy=answer.entropy / answer.generated)
            if piece.finish is not None and answer.losses is not None:
                piece = replace(piece, loss=answer.losses.of(answer.number))
            made.append((answer.reader, piece))
            if piece.finish is not None:
                ended.append(row)
        for row in reversed(ended):
            self._leave(row, wipe=not finite[row - rows.start])
        hand_out(made)

    def _measure(self, answers: list[_Answer], logits: Any) -> None:
        """Add the entropies of what is picked from now, in one go for all answers that ask."""
        asking = [row for row, answer in enumerate(answers) if answer.generation.entropy]
        if not asking:
            return
        for row, entropy in zip(asking, entropies(logits[asking]).tolist(), strict=True):
            answers[row].entropy += entropy

    def _advance_one(self, answer: _Answer, scores: Any, likeliest: int) -> Piece:
        asked = answer.generation
        token, told = answer.sampler.pick(scores, likeliest)
        logprobs = (told,) if told is not None else ()
        answer.generated += 1
        answer.next_token = token
        if token in self.model.end_tokens and not asked.ignore_end:
            return Piece(answer.text.finish(), answer.generated, logprobs, "stop")
        text = answer.text.push(token)
        finish: Finish | None = None
        if answer.text.stopped:
            finish = "stop"
        elif answer.generated >= asked.max_tokens or len(asked.prompt) + answer.generated >= self.model.max_context:
            finish = "length"
            text += answer.text.finish()
        return Piece(text, answer.generated, logprobs, finish)

    def _leave(self, row: int, *, wipe: bool = False) -> None:
        self._cache.remove(row, wipe=wipe)
        self._running[row] = self._running[-1]
        self._running.pop()


def warm_up(engine: Engine) -> float:
    """Short answers, so that the first request does not pay for what is done once; the seconds that they took."""
    started, compiled = time.monotonic(), engine.model.compiled is not None

    async def ask() -> None:
        token = next(iter(engine.model.end_tokens), 0)
        async for _ in engine.stream(
            Generation((token,), max_tokens=8 if compiled else 2, temperature=0, ignore_end=True)
        ):
            pass

    async def ask_all() -> None:
        # A compiled step is one program for a single row, and another for any number of them.
        await ask()
        if compiled and engine.max_batch > 1:
            await asyncio.gather(ask(), ask())

    # In a thread with a loop of its own: whoever loads a model may be in one already.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, ask_all()).result()
    return time.monotonic() - started
