"""The training engine: from prepared data to a model directory, on one rank of many. It needs torch, and never Ray.

`Engine.train` is the story: resume or start, step, evaluate, checkpoint, export. `Engine._step` is one optimizer step,
to be read aloud. What a rank must know to go on is (TrainState, the strategy's tensors); the order of the data and the
learning rate are pure functions of the step, so a run that was killed anywhere ends with the same bits as one that was
not.

It never prepares data, starts processes or reports to anyone but its listener.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

from slipway_api.quantity import parse_quantity
from slipway_api.run import RunSpec
from slipway_api.trainjob import CheckpointStatus, PlanStatus, TrainedModel
from slipway_jobs.cpu_bf16 import fast_bf16_on_cpu
from slipway_jobs.data import PreparedData, order
from slipway_jobs.errors import Preempted, UserError
from slipway_jobs.storage import Storage
from slipway_jobs.train.checkpoint.manifest import TrainState
from slipway_jobs.train.checkpoint.saver import CheckpointSaver
from slipway_jobs.train.checkpoint.store import CheckpointStore
from slipway_jobs.train.evaluate_loss import held_out_loss
from slipway_jobs.train.export import Export
from slipway_jobs.train.lineage import completed_model
from slipway_jobs.train.listener import EngineListener, StepMetrics
from slipway_jobs.train.model import BuiltModel, build, has_dropout, preload_model, recompute_activations
from slipway_jobs.train.ranks import RankContext, Ranks, translated_errors
from slipway_jobs.train.schedule import LearningRate
from slipway_jobs.train.strategies import Strategy, StrategyConfig, make_strategy, preload_strategy

__all__ = ["Engine", "EngineListener", "RankContext", "StepMetrics", "TrainResult", "preload"]

_SMOOTHING = 0.1  # weight of the newest step in the smoothed step time


@dataclass(frozen=True)
class TrainResult:
    """How training ended."""

    model: TrainedModel
    steps: int  # optimizer steps that the model has seen
    resumed_from_step: int | None  # None: it began at the beginning; -1: the model was complete already


@dataclass(frozen=True)
class MicroBatch:
    """Sequences for one forward pass, [micro-batch, length] int64, on the device."""

    input_ids: Tensor
    last: bool  # of its optimizer step


class Engine:
    """One rank's part of a training run. `listener` is heard on rank 0 only and may be None elsewhere."""

    def __init__(
        self, run: RunSpec, prepared: PreparedData, context: RankContext, listener: EngineListener | None = None
    ) -> None:
        self.run = run
        self.prepared = prepared
        self.context = context
        self._listener = listener if context.rank == 0 else None
        self._storage = Storage(run.storage)
        training, self._length = run.training, run.data.sequence_length
        self._sequences = prepared.train.n_sequences(self._length)
        self.steps = training.steps or order.steps_of_epochs(
            training.epochs or 1, training.global_batch_size, self._sequences
        )
        self._schedule = LearningRate.of(training, self.steps)
        rows = training.micro_batch_size * context.world_size
        if training.global_batch_size % rows:
            raise UserError(
                "BatchIndivisible",
                f"training.globalBatchSize {training.global_batch_size} is not divisible by microBatchSize x workers "
                f"({training.micro_batch_size} x {context.world_size})",
            )
        self._accumulation = training.global_batch_size // rows
        self._step_tokens = training.global_batch_size * self._length
        # Targets of the whole global batch. The gradients end as a mean over ranks, hence the world size.
        self._loss_scale = context.world_size / (training.global_batch_size * (self._length - 1))

    def train(self) -> TrainResult:
        """Train to the end, from the newest valid checkpoint if there is one. Collective.

        Raises JobError: UserError (LossNotFinite, StrategyUnavailable, ...), OutOfMemory, Preempted,
        InfrastructureError (PeerLost, StrategyDegraded, ...).
        """
        with translated_errors(self.context.rank):
            ranks = Ranks(self.context)
            found = ranks.first_does(lambda: completed_model(self._storage, uid=self.run.uid), slow=True)
            if found is not None:
                if self._listener:
                    self._listener.on_model(found)
                ranks.close()
                return TrainResult(found, self.steps, resumed_from_step=-1)
            result = _Training(self, ranks).run()
            ranks.close()
            return result

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's sequences of one optimizer step (from 0): a pure function of the seed and the step."""
        training, context = self.run.training, self.context
        batch = order.global_batch(training.seed, step, training.global_batch_size, self._sequences)
        mine = order.rank_slice(batch, context.rank, context.world_size)
        for index, rows in enumerate(order.micro_batches(mine, training.micro_batch_size)):
            tokens = torch.from_numpy(self.prepared.train.sequences(rows, self._length))
            yield MicroBatch(tokens.to(context.device, non_blocking=True), last=index == self._accumulation - 1)


def preload(run: RunSpec) -> None:
    """Import what the run will need, which takes seconds: for a rank that waits for its data, or for its peers."""
    preload_model(run.model)
    preload_strategy(run.strategy)


class _Training:
    """The state of one `Engine.train`."""

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        self._engine = engine
        self._ranks = ranks
        self._listener = engine._listener
        self._run, self._context = engine.run, engine.context
        self._state = TrainState()
        self._resumed_from: int | None = None
        if self._context.device.type == "cpu":
            # Two ranks on two cores with two threads each would fight; the manifest says what a worker may use.
            wanted = int(parse_quantity(self._run.workers.resources.cpu))
            torch.set_num_threads(max(1, min(wanted, os.cpu_count() or 1)))
            if self._run.training.precision == "bf16":
                fast_bf16_on_cpu()

    # --- the story ------------------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        self._stage("Starting")
        self._build()
        self._resume()
        self._stage("Training")
        try:
            if self._state.step == 0:
                self._evaluate()
            while self._state.step < self._engine.steps:
                self._saver.before_step(self._state.step + 1)
                self._step()
                self._report_saves()
                self._now_and_then()
            self._saver.drain()
        except (UserError, Preempted):
            self._saver.drain()  # every rank is here for the same reason: what is being saved can be finished
            self._report_saves()
            raise
        self._report_saves()
        self._stage("SavingModel")
        model = self._export()
        return TrainResult(model, self._state.step, self._resumed_from)

    def _step(self) -> None:
        """One optimizer step."""
        engine, strategy, done = self._engine, self._strategy, self._state.step
        started = perf_counter()
        self._seed_dropout(done)
        rate = engine._schedule.at(done)
        # --------------------------------------------------------------------------------------------------------
        strategy.zero_grad()
        total = torch.zeros((), device=self._context.device)
        for micro in engine.micro_batches(done):
            with strategy.micro_batch(last=micro.last):
                loss = strategy.loss(micro.input_ids, micro.input_ids)  # summed over this micro-batch's tokens
                strategy.backward(loss * engine._loss_scale, last=micro.last)
                total += loss.detach()
        norm = strategy.gradient_norm()
        loss_value, norm_value, stop = self._agree(total, norm)  # the one point where the host waits for the device
        self._demand_finite(loss_value, norm_value)  # before the optimizer: bad weights must never be
        late_norm = strategy.step(rate, norm)
        if late_norm is not None:
            norm_value = late_norm
            self._demand_finite(loss_value, norm_value)
        # --------------------------------------------------------------------------------------------------------
        self._advance(loss_value, rate, norm_value, perf_counter() - started)
        if stop:
            self._stop()

    def _now_and_then(self) -> None:
        """What happens after some steps only."""
        done, last = self._state.step, self._state.step == self._engine.steps
        every = self._run.training.eval_every_steps
        if last or (every and done % every == 0):
            self._evaluate()
        if last or self._saver.due(done):
            self._save()

    # --- parts of a step ------------------------------------------------------------------------------------------

    def _agree(self, total: Tensor, norm: Tensor | None) -> tuple[float, float, bool]:
        """Loss per token of the global batch, gradient norm, whether rank 0 wants to stop: the same on every rank."""
        wants_stop = self._listener is not None and self._listener.stop_message is not None
        mine = torch.stack(
            [
                total,
                total.new_zeros(()) if norm is None else norm.to(total.device, total.dtype),
                total.new_full((), float(wants_stop)),
            ]
        )
        dist.all_reduce(mine)
        loss, norm_sum, stop = mine.tolist()
        world = self._context.world_size
        return loss * self._engine._loss_scale / world, norm_sum / world, stop > 0

    def _demand_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm} (loss {loss:.4f})"
        raise UserError(
            "LossNotFinite",
            f"training: {what} at step {self._state.step + 1} of {self._engine.steps}; the weights were not updated "
            "and the last checkpoint is intact. Lower training.optimizer.learningRate, lengthen the warm-up, or look "
            "for odd documents in data.sources",
        )

    def _seed_dropout(self, step: int) -> None:
        """A loaded model may have dropout: if its draws depended on what came before, a resumed run would differ."""
        if self._dropout:
            torch.manual_seed((self._run.training.seed << 40) + (step << 16) + self._context.rank)

    def _advance(self, loss: float, rate: float, norm: float, seconds: float) -> None:
        """The step is done: remember it, tell it."""
        engine, before = self._engine, self._state.step_seconds
        smoothed = seconds if before is None else before + _SMOOTHING * (seconds - before)
        self._state = replace(self._state, step=self._state.step + 1, loss=loss, step_seconds=smoothed)
        if self._listener is None:
            return
        self._listener.on_step(
            StepMetrics(
                step=self._state.step,
                steps=engine.steps,
                loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens=engine._step_tokens,
                seconds=seconds,
                tokens_per_second=engine._step_tokens / smoothed,
                eta_seconds=(engine.steps - self._state.step) * smoothed,
                eval_loss=self._state.eval_loss,
            )
        )

    def _stop(self) -> None:
        """Save what was done, and leave. All ranks have agreed on the step."""
        message = self._ranks.first_does(lambda: self._listener.stop_message if self._listener else None)
        self._save()
        self._saver.drain()
        raise Preempted("Stopped", message or "the run was told to stop")

    # --- the chapters ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        run, prepared, context = self._run, self._engine.prepared, self._context
        self._built: BuiltModel = build(
            run.model,
            vocab_size=prepared.vocab_size,
            seed=run.training.seed,
            eos_id=prepared.eos_id,
            pad_id=prepared.pad_id,
        )
        self._built.lm.train()
        self._dropout = has_dropout(self._built.lm)
        if run.training.activation_checkpointing:
            recompute_activations(self._built.lm)
        self._strategy: Strategy = make_strategy(
            StrategyConfig(run.strategy, run.training, context, self._engine._accumulation)
        )
        self._strategy.prepare(self._built)
        held = self._ranks.all_do(self._strategy.sharding)
        self._sharding = held[context.rank]
        plan = PlanStatus(
            strategy=self._sharding.text,
            world_size=context.world_size,
            device=context.device_name,
            backend=context.collective,
            parameters=self._built.parameters,
            parameters_per_rank=max(each.parameters for each in held),
            micro_batch_size=run.training.micro_batch_size,
            accumulation_steps=self._engine._accumulation,
            train_tokens=prepared.train_tokens,
            eval_tokens=prepared.eval_tokens,
            data_digest=prepared.digest,
        )
        if self._listener:
            self._listener.on_plan(plan)

    def _resume(self) -> None:
        run, strategy = self._run, self._strategy
        store = CheckpointStore(
            self._engine._storage,
            uid=run.uid,
            attempt=run.attempt,
            keep_last=run.checkpoint.keep_last,
            ranks=self._ranks,
        )
        checkpoint, skipped = store.newest_valid(strategy.name, portable=strategy.portable)
        if checkpoint is not None:
            strategy.restore(checkpoint, self._ranks.storage)
            self._state = checkpoint.manifest.state
            self._resumed_from = self._state.step
        self._saver = CheckpointSaver(
            store,
            self._ranks,
            uid=run.uid,
            strategy=strategy.name,
            every_steps=run.checkpoint.every_steps,
            step=self._state.step,
        )
        if self._listener:
            self._listener.on_resume(self._state.step, skipped)

    def _evaluate(self) -> None:
        """Measure the held-out loss, if there is held-out data."""
        dataset = self._engine.prepared.eval
        if dataset is None or self._state.eval_step == self._state.step:
            return
        found = held_out_loss(
            self._strategy,
            dataset,
            self._context,
            sequence_length=self._engine._length,
            micro_batch_size=self._run.training.micro_batch_size,
        )
        self._state = replace(self._state, eval_loss=found.loss, eval_step=self._state.step)
        if self._state.step == 0:
            self._state = replace(self._state, initial_eval_loss=found.loss)
        if self._listener:
            self._listener.on_eval(self._state.step, found.loss, found.tokens)

    def _save(self) -> None:
        self._saver.start(self._strategy.snapshot(), self._state)

    def _report_saves(self) -> None:
        if self._listener is None:
            return
        for end in self._saver.finished():
            if end.failure is None:
                self._listener.on_checkpoint(CheckpointStatus(step=end.step, uri=end.uri))
            else:
                self._listener.on_warning(
                    "CheckpointNotSaved", f"the checkpoint of step {end.step} at {end.uri} failed: {end.failure}"
                )

    def _export(self) -> TrainedModel:
        self._evaluate()  # a run that was resumed after its last step has not measured it
        weights = self._strategy.full_state()
        gpu = self._context.device.type == "cuda"
        export = Export(self._run, self._engine.prepared, self._built, self._state, self._sharding.text, gpu)
        model = self._ranks.first_does(
            lambda: export.write(self._engine._storage, self._strategy.lm, weights), slow=True
        )
        if self._listener:
            self._listener.on_model(model)
        self._strategy.close()
        return model

    def _stage(self, stage: str) -> None:
        if self._listener:
            self._listener.on_stage(stage)
