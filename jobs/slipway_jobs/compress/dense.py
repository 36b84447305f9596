"""Models from directories to memory, on one device, without ever running their code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from slipway_jobs.compress.quiet import first_line, quiet_libraries
from slipway_jobs.errors import JobError, OutOfMemory, UserError, is_out_of_memory
from slipway_jobs.model_files import check_model_files


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """What models compute in: float32 on a CPU, bfloat16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def load_dense(directory: Path, where: str, device: torch.device) -> Any:
    """The model in floating point, in evaluation mode.

    Raises UserError UnknownArchitecture, AlreadyCompressed, ModelUnreadable; OutOfMemory.
    """
    if "quantization_config" in _config(directory, where):
        raise UserError(
            "AlreadyCompressed",
            f"model: {where} is quantized already (config.json has a quantization_config); name the model that it was "
            "made from, or serve it without compression",
        )
    return from_pretrained(directory, where, device, {})


def _config(directory: Path, where: str) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError("ModelUnreadable", f"model: cannot read config.json of {where}: {error}") from error
    return config if isinstance(config, dict) else {}


def from_pretrained(directory: Path, where: str, device: torch.device, options: dict[str, Any]) -> Any:
    """The model of a directory, in evaluation mode; `options` go to transformers. Raises as `load_dense` does."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    check_model_files(directory, where)
    try:
        with quiet_libraries():
            lm = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=compute_dtype(device),
                device_map={"": device},
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                **options,
            )
    except (ValueError, KeyError) as error:
        raise UserError(
            "UnknownArchitecture",
            f"model: {where} is no causal language model that this version of transformers can build without running "
            f"the repository's own code ({first_line(error)})",
        ) from error
    except JobError:
        raise
    except Exception as error:  # each library has its own tree for a damaged file
        if is_out_of_memory(error):
            raise OutOfMemory(
                "OutOfMemory", f"model: {where} does not fit the memory of {device} while loading"
            ) from error
        raise UserError("ModelUnreadable", f"model: cannot load {where}: {first_line(error)}") from error
    return lm.eval()
