"""What the schemes that transformers applies while it loads have in common: torchao's and bitsandbytes'."""

from __future__ import annotations

from typing import Any

from slipway_jobs.compress.quiet import first_line, quiet_libraries
from slipway_jobs.compress.schemes.base import SchemeJob
from slipway_jobs.errors import UserError


def quantize_at_load(job: SchemeJob, config: Any) -> None:
    """Load the source with a quantization config, and save what came out.

    Raises UserError SchemeUnsupported where the library refuses.
    """
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    try:
        with quiet_libraries():
            lm = AutoModelForCausalLM.from_pretrained(
                job.source,
                quantization_config=config,
                dtype=job.dtype,
                device_map={"": job.device},
                use_safetensors=True,
                trust_remote_code=False,
            )
            lm.save_pretrained(job.output)
    except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            "SchemeUnsupported",
            f"compression: {type(config).__name__} cannot be applied to this model on {job.device} "
            f"({first_line(error)}); choose another scheme",
        ) from error
