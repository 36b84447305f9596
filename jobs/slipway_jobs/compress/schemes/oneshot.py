"""llm-compressor's one-shot calibration, and what every scheme that uses it has in common.

Its imports take seconds, so they are inside. It keeps a global session and logs every layer; both are ours to contain.
What it cannot do with a model (an architecture whose layers it has no mapping for) comes as a UserError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from slipway_jobs.compress.quiet import first_line, quiet_libraries
from slipway_jobs.compress.schemes.base import SchemeJob
from slipway_jobs.errors import OutOfMemory, UserError


def calibrate_and_save(job: SchemeJob, modifiers: list[Any]) -> None:
    """Apply modifiers to the source with the calibration sequences, and save in the compressed-tensors format.

    Raises UserError SchemeUnsupported; OutOfMemory.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        with quiet_libraries(), _quiet_oneshot(), _pinning_only_with_a_gpu():
            from llmcompressor import oneshot  # noqa: PLC0415

            lm = AutoModelForCausalLM.from_pretrained(
                job.source,
                dtype=job.dtype,
                device_map={"": job.device},
                use_safetensors=True,
                trust_remote_code=False,
            )
            data = {} if job.calibration is None else {"dataset": _loader(job.calibration)}
            oneshot(
                model=lm,
                # It insists on a processor even where the data are token ids already.
                processor=AutoTokenizer.from_pretrained(job.source, trust_remote_code=False),
                recipe=modifiers,
                num_calibration_samples=0 if job.calibration is None else len(job.calibration),
                **data,
            )
            lm.save_pretrained(job.output, save_compressed=True)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(
            "OutOfMemory", "compression: calibration ran out of memory; use fewer samples or shorter sequences"
        ) from error
    except Exception as error:  # the library raises what its layers raise
        raise UserError(
            "SchemeUnsupported",
            f"compression: {type(modifiers[0]).__name__} cannot be applied to this model "
            f"({type(error).__name__}: {first_line(error)}); choose another scheme",
        ) from error


def _loader(calibration: torch.Tensor) -> Any:
    from torch.utils.data import DataLoader  # noqa: PLC0415

    ones = torch.ones_like(calibration[:1])
    rows: Any = [{"input_ids": row.unsqueeze(0), "attention_mask": ones} for row in calibration]
    return DataLoader(rows, batch_size=None)


@contextlib.contextmanager
def _quiet_oneshot() -> Iterator[None]:
    """No log file, no line per layer, no bars; and its environment variable as it was before."""
    from loguru import logger  # noqa: PLC0415

    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in ("llmcompressor", "compressed_tensors"):
        logger.disable(name)
    try:
        yield
    finally:
        for name in ("llmcompressor", "compressed_tensors"):
            logger.enable(name)
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


@contextlib.contextmanager
def _pinning_only_with_a_gpu() -> Iterator[None]:
    """AWQ of llm-compressor 0.14 pins its cache for copies to a GPU, also where there is none, and then fails."""
    if torch.cuda.is_available():
        yield
        return
    from llmcompressor.pipelines.cache import IntermediatesCache  # noqa: PLC0415

    original = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_args, **_options: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original
