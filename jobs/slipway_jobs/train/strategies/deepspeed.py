"""DeepSpeed ZeRO, stages 1 to 3 (arXiv:1910.02054).

The optimizer is the same torch AdamW as everywhere, so a loss curve differs from ddp's by float order only. bf16 is
DeepSpeed's torch_autocast: float32 weights and optimizer state, bfloat16 compute and gathers.
deepspeed is imported in `prepare` and nowhere else: it costs seconds. None of its extensions is compiled (see
`_without_extensions`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from slipway_api.trainjob import DeepSpeed
from slipway_jobs.errors import InfrastructureError, JobError, UserError
from slipway_jobs.train.loss import LossModel
from slipway_jobs.train.model import BuiltModel, persistent_buffers
from slipway_jobs.train.optimizer import adamw, set_learning_rate
from slipway_jobs.train.ranks import bounded_groups, translated_errors
from slipway_jobs.train.strategies.base import CheckpointSource, Sharding, StrategyConfig, degraded

_TAG = "zero"  # the directory that DeepSpeed makes inside a checkpoint
_ALIGNMENT = 1024  # elements by which DeepSpeed may pad each parameter's or group's partition


class DeepSpeedStrategy:
    """deepspeed.initialize, with ZeRO of the stage that is asked for."""

    name = "deepspeed"
    portable = False

    def __init__(self, config: StrategyConfig) -> None:
        self._config = config
        self._spec = config.spec.deepspeed or DeepSpeed()

    def prepare(self, built: BuiltModel) -> None:
        """Place the model and let DeepSpeed split it. Raises UserError StrategyUnavailable where it cannot run."""
        device = self._config.context.device
        built.materialise(built.lm)
        self.lm = built.lm.to(device)
        # DeepSpeed gathers a module's weights only while that module runs, so the output projection runs as a module.
        self._inner = LossModel(self.lm, compute_dtype=None, fused=False)
        self._total = built.parameters
        optimizer = adamw(self.lm.named_parameters(), self._config.training.optimizer)
        self._deepspeed = _import_deepspeed(self._config)
        try:
            with translated_errors(self._config.context.rank), bounded_groups(self._config.context.timeout):
                self._engine, self._optimizer, _, _ = self._deepspeed.initialize(
                    model=self._inner, optimizer=optimizer, config=self._settings(), dist_init_required=False
                )
        except JobError:
            raise
        except Exception as error:
            raise _unavailable(error) from error
        self.loss_model = self._engine

    def _settings(self) -> dict[str, Any]:
        training, spec = self._config.training, self._spec
        vectors = [p.numel() for p in self.lm.parameters() if p.ndim < 2]
        zero: dict[str, Any] = {
            "stage": spec.stage,
            "contiguous_gradients": True,
            "overlap_comm": self._config.context.device.type == "cuda",
        }
        if spec.stage == 3:
            # By default ZeRO-3 keeps every parameter below 100,000 elements whole on every rank. Here only vectors
            # (norms, biases) stay: gathering them costs more than they weigh, and a small model must be sharded too.
            zero["stage3_param_persistence_threshold"] = max(vectors, default=0) + 1
        if spec.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self._config.context.device.type == "cuda"}
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": training.micro_batch_size,
            "gradient_accumulation_steps": self._config.accumulation_steps,
            "gradient_clipping": float(training.max_grad_norm),
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # the same AdamW everywhere, offloaded or not
            "steps_per_print": sys.maxsize,
        }
        if self._config.compute_dtype is not None:
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return settings

    def sharding(self) -> Sharding:
        """Counts the partitions: of the parameters (stage 3) and of the optimizer's master copy (every stage)."""
        spec, world = self._spec, self._config.context.world_size
        asked = f"deepspeed(zero={spec.stage})"
        if type(self._engine).__name__ != "DeepSpeedEngine" or self._engine.zero_optimization_stage() != spec.stage:
            raise degraded(asked, f"the model is a {type(self._engine).__name__}")
        parameters = list(self.lm.parameters())
        if spec.stage == 3:
            if not all(hasattr(p, "ds_tensor") for p in parameters):
                raise degraded(asked, "parameters are whole on every rank")
            held = sum(cast(Any, p).ds_tensor.numel() for p in parameters)
            optimized = sum(flat.numel() for flat in self._optimizer.fp32_partitioned_groups_flat)
        else:
            held = sum(p.numel() for p in parameters)
            optimized = sum(flat.numel() for flat in self._optimizer.single_partition_of_fp32_groups)
        split = held if spec.stage == 3 else optimized
        slack = _ALIGNMENT * len(parameters)
        if max(abs(n - self._total / world) for n in (split, optimized)) > min(slack, self._total / 4):
            raise degraded(asked, f"this rank holds {split} of {self._total} parameters, the optimizer {optimized}")
        words = [f"zero={spec.stage}"]
        words += [] if spec.stage == 3 or world == 1 else [f"optimizer state 1/{world}"]
        words += ["optimizer offload"] if spec.offload_optimizer else []
        words.append(self._config.training.precision)
        return Sharding(f"deepspeed({', '.join(words)})", parameters=held, optimizer_parameters=optimized)

    def zero_grad(self) -> None:
        """Nothing to do: DeepSpeed forgets gradients at the end of its step."""

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """DeepSpeed counts micro-batches itself: every one ends with its step(), which updates at the last only."""
        yield
        if not last:
            self._engine.step()

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss of one micro-batch."""
        loss: Tensor = self._engine(input_ids, labels)
        return loss

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients. The loss is normalised already, so DeepSpeed must not divide by the accumulation steps."""
        self._engine.backward(loss, scale_wrt_gas=False)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode, no gradients."""
        self.loss_model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.loss_model.train()

    def gradient_norm(self) -> Tensor | None:
        """Unknown: DeepSpeed computes it inside its step."""
        return None

    def step(self, learning_rate: float, norm: Tensor | None) -> float | None:
        """Clip and update. Where the norm is not finite DeepSpeed leaves the weights alone, and so says the result."""
        set_learning_rate(self._optimizer, learning_rate)
        self._engine.step()
        if self._optimizer.overflow:
            return math.inf
        found = self._engine.get_global_grad_norm()
        return math.nan if found is None else float(found)

    def snapshot(self) -> ZeroSnapshot:
        """DeepSpeed writes its live state, so it is written at once."""
        return ZeroSnapshot(self._engine)

    def restore(self, source: CheckpointSource, group: dist.ProcessGroup) -> None:
        """Load this rank's partitions. They are pickles: the caller has checked them against this job's manifest."""
        with contextlib.ExitStack() as stack:
            directory = source.local_path
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-zero-")))
                source.download(directory)
            path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG, load_lr_scheduler_states=False)
            if path is None:
                raise InfrastructureError("CheckpointUnreadable", f"DeepSpeed found nothing to load in {source.uri}")

    def full_state(self) -> dict[str, Tensor]:
        """Gathered tensor by tensor; stages 1 and 2 hold every parameter whole."""
        first = self._config.context.rank == 0
        full: dict[str, Tensor] = {}
        for name, parameter in self.lm.named_parameters(remove_duplicate=False):
            sharded = hasattr(parameter, "ds_tensor")
            gathered = self._deepspeed.zero.GatheredParameters([parameter]) if sharded else contextlib.nullcontext()
            with gathered:
                if first:
                    full[name] = parameter.detach().to("cpu", copy=True)
        if first:
            full |= {name: buffer.detach().cpu() for name, buffer in persistent_buffers(self.lm)}
        return full

    def close(self) -> None:
        """Remove DeepSpeed's hooks, so that another run in this process starts clean."""
        self._engine.destroy()


class ZeroSnapshot:
    """What DeepSpeed's save_checkpoint writes, cut to this rank's files."""

    background = False

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def write(self, directory: Path, group: dist.ProcessGroup) -> None:
        """Write this rank's partitions. Collective over DeepSpeed's own groups."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _TAG).mkdir(exist_ok=True)  # DeepSpeed makes it on rank 0 only, and every rank has its own here
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)
        (directory / "zero_to_fp32.py").unlink(missing_ok=True)  # a checkpoint holds no code


def _import_deepspeed(config: StrategyConfig) -> ModuleType:
    if config.context.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", str(config.context.local_rank))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed  # noqa: PLC0415 - see the module's docstring
        from deepspeed.utils import logger  # noqa: PLC0415

        logger.setLevel(logging.WARNING)
        _without_extensions(deepspeed)
    except Exception as error:
        raise _unavailable(error) from error
    module: ModuleType = deepspeed
    return module


def _without_extensions(deepspeed: ModuleType) -> None:
    """Keep DeepSpeed from compiling, on a CPU, an extension that training does not use.

    Its TorchBackend (deepspeed 0.19, comm/torch.py) first probes with compiler processes which extensions could be
    built, in every rank, and then builds one: an all-reduce in shared memory, which only `inference_all_reduce` calls.
    That was 60 s of CPU at the first start on a machine, and needed g++ and ninja. Here nothing can be built.
    """
    deepspeed.ops.__compatible_ops__ = {}


def _unavailable(error: object) -> UserError:
    said = str(error).strip().splitlines()
    return UserError(
        "StrategyUnavailable",
        f"strategy.deepspeed cannot run on this worker: {said[-1][:300] if said else type(error).__name__}. Use an "
        "image with deepspeed, or strategy.fsdp, which shards the same way without it",
    )
