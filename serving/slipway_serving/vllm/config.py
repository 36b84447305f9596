"""What ray.serve.llm is told of a version: the fields of its LLMConfig (Ray 2.60). Pure; imports neither Ray nor vLLM.

Keys of engine_kwargs are vLLM's engine arguments (https://docs.vllm.ai/en/stable/configuration/engine_args/).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slipway_api.serving import VllmConfig

_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def llm_config(config: VllmConfig) -> dict[str, Any]:
    """The keyword arguments of LLMConfig. The version is the model's id there."""
    arguments: dict[str, Any] = {
        "dtype": _DTYPES[config.precision],
        "max_model_len": config.max_context_tokens,
        "max_num_seqs": config.max_batch,
        "gpu_memory_utilization": config.gpu_memory_part,
        "tensor_parallel_size": config.gpus,
        "enable_prefix_caching": config.prefix_caching,
        "load_format": "safetensors",  # never a pickle
        "trust_remote_code": False,
    }
    hub = config.model.hub
    if hub is not None:
        arguments["revision"] = hub.revision
        arguments["tokenizer_revision"] = hub.revision
    return {
        "model_loading_config": {"model_id": config.version, "model_source": _source(config)},
        "engine_kwargs": arguments,
        # A replica is one pod: its GPUs are beside each other.
        "placement_group_config": {"bundles": [{"GPU": 1}] * config.gpus, "strategy": "STRICT_PACK"},
        "deployment_config": {"health_check_period_s": 10, "graceful_shutdown_timeout_s": 30},
    }


def _source(config: VllmConfig) -> str | dict[str, str]:
    """A path, a hub repository, or a bucket that ray.serve.llm copies to the node."""
    hub, uri = config.model.hub, config.model.uri
    if hub is not None:
        return hub.repo
    assert uri is not None  # TrainJobs are resolved to one
    if uri.startswith(("s3://", "gs://")):
        return {"bucket_uri": uri}
    return url2pathname(urlsplit(uri).path) if uri.startswith("file://") else uri
