"""The model that training starts from: fresh random weights, or a Hugging Face directory or hub repository.

Fresh weights are a pure function of (seed, parameter name): every rank, world size and strategy starts from the same
bits, and a sharding strategy can make one block at a time without ever holding the whole model.
Only safetensors are read and no code of a repository is ever run. It never places, wraps or shards anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipway_api.references import FreshModel, TrainingModel
from slipway_jobs.data import check_vocabulary
from slipway_jobs.errors import OutOfMemory, UserError, is_out_of_memory
from slipway_jobs.lean_transformers import lean_transformers
from slipway_jobs.model_files import check_model_files, hub_snapshot, local_copy

_INITIAL_STD = 0.02  # as GPT-2 and Llama start


@dataclass
class BuiltModel:
    """A causal language model in host memory, not yet on a device.

    `lm` may hold parameters on the meta device (fresh models): `materialise` gives them their values.
    """

    lm: nn.Module
    parameters: int
    stored_dtype: torch.dtype  # what the final model is saved in
    base: dict[str, Any]  # for the lineage: where the weights came from
    _fill: dict[int, tuple[str, float | None]] = field(default_factory=dict)  # id of a meta parameter -> name, std
    _seed: int = 0
    _made: dict[int, nn.Parameter] = field(default_factory=dict)  # keeps tied parameters tied

    def materialise(self, module: nn.Module) -> None:
        """Give the parameters below `module` their initial values, float32 in host memory. Done ones are left alone."""
        for child in module.modules():
            for name, parameter in list(child._parameters.items()):
                if parameter is None or not parameter.is_meta:
                    continue
                if id(parameter) not in self._made:
                    full_name, std = self._fill[id(parameter)]
                    self._made[id(parameter)] = nn.Parameter(_initial(full_name, parameter.shape, std, self._seed))
                child._parameters[name] = self._made[id(parameter)]


def build(model: TrainingModel, *, vocab_size: int, seed: int, eos_id: int, pad_id: int) -> BuiltModel:
    """The model that a manifest names, ready to be wrapped.

    `vocab_size`, `eos_id` and `pad_id` are the tokenizer's; a loaded model keeps its own special tokens.
    Raises UserError ModelNotFound, NoSafetensors, UnknownArchitecture, VocabularyMismatch; InfrastructureError.
    """
    lean_transformers()
    if model.fresh is not None:
        return _fresh(model.fresh, vocab_size=vocab_size, seed=seed, eos_id=eos_id, pad_id=pad_id)
    with contextlib.ExitStack() as stack:
        if model.hub is not None:
            directory, base = hub_snapshot(model.hub)
        elif model.uri is not None:
            directory = stack.enter_context(local_copy(model.uri))
            base = {"uri": model.uri}
        else:
            # The operator replaces model.trainJob by the uri of that job's result before it writes the run.
            raise UserError(
                "ModelNotFound", "model: the run names no model that this worker can load (fresh, uri or hub)"
            )
        return _load(directory, base, vocab_size=vocab_size)


def preload_model(model: TrainingModel) -> None:
    """Import what `build` will need."""
    lean_transformers()
    if model.fresh is not None:
        import transformers.models.llama.modeling_llama  # noqa: F401, PLC0415
    else:
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401, PLC0415


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a model's saved state, by full name."""
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in owner._non_persistent_buffers_set:
                yield name, buffer


def has_dropout(lm: nn.Module) -> bool:
    """Whether a forward pass in training mode draws random numbers."""
    config = getattr(lm, "config", None)
    rates = vars(config).items() if config is not None else ()
    named = any(isinstance(rate, float) and rate > 0 for key, rate in rates if "drop" in key)
    return named or any(isinstance(module, nn.Dropout) and module.p > 0 for module in lm.modules())


def recompute_activations(lm: nn.Module) -> None:
    """Keep only each block's input, and compute the rest again in the backward pass (arXiv:1604.06174)."""
    if not getattr(lm, "supports_gradient_checkpointing", False):
        raise UserError(
            "ActivationCheckpointingUnsupported",
            f"training.activationCheckpointing: {type(lm).__name__} cannot recompute activations; set it to false",
        )
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]


# --- fresh --------------------------------------------------------------------------------------------------------


def _fresh(spec: FreshModel, *, vocab_size: int, seed: int, eos_id: int, pad_id: int) -> BuiltModel:
    # From the architecture's own modules: importing the Auto classes costs time that a fresh run need not spend.
    from transformers.models.llama.configuration_llama import LlamaConfig  # noqa: PLC0415
    from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding  # noqa: PLC0415

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.resolved_kv_heads,
        intermediate_size=spec.resolved_intermediate_size,
        max_position_embeddings=spec.max_position_embeddings,
        tie_word_embeddings=spec.tie_embeddings,
        initializer_range=_INITIAL_STD,
        attention_dropout=0.0,
        use_cache=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=eos_id,
        # An embedding never learns its padding row, so the end-of-text token must not be that row.
        pad_token_id=None if pad_id == eos_id else pad_id,
    )
    with torch.device("meta"):
        lm = LlamaForCausalLM(config)
    lm.tie_weights()
    lm.generation_config.pad_token_id = pad_id
    lm.model.rotary_emb = LlamaRotaryEmbedding(config)  # its buffers are computed, not learned: they need real values
    residual_std = _INITIAL_STD / math.sqrt(2 * spec.layers)  # GPT-2: keeps the residual stream's variance level
    fill: dict[int, tuple[str, float | None]] = {}
    for name, parameter in lm.named_parameters():
        into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = None if parameter.ndim < 2 else residual_std if into_residual else _INITIAL_STD
        fill[id(parameter)] = (name, std)
    count = sum(parameter.numel() for parameter in lm.parameters())
    base = {"fresh": spec.to_wire(), "seed": seed}
    return BuiltModel(lm=lm, parameters=count, stored_dtype=torch.float32, base=base, _fill=fill, _seed=seed)


def _initial(name: str, shape: torch.Size, std: float | None, seed: int) -> Tensor:
    """The initial value of one parameter. Always drawn on the CPU: a GPU's generator gives other numbers."""
    if std is None:
        return torch.ones(shape)
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


# --- loaded -------------------------------------------------------------------------------------------------------


def load_causal_lm(directory: Path, where: str, *, field: str = "model") -> Any:
    """The causal language model of a Hugging Face directory, float32 in host memory.

    Raises UserError ModelNotFound, NoSafetensors, UnknownArchitecture, ModelUnreadable; OutOfMemory.
    """
    lean_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    check_model_files(directory, where, field=field)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        stored = getattr(config, "dtype", None)
        lm = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            "UnknownArchitecture",
            f"{field}: {where} is no causal language model that this version of transformers can build without "
            f"running the repository's own code ({_first_line(error)})",
        ) from error
    except Exception as error:  # safetensors and transformers each have their own tree for a damaged file
        if is_out_of_memory(error):
            raise OutOfMemory(
                "OutOfMemory", f"{field}: {where} does not fit the host's memory while loading"
            ) from error
        raise UserError("ModelUnreadable", f"{field}: cannot load {where}: {_first_line(error)}") from error
    lm.stored_dtype = stored if isinstance(stored, torch.dtype) else torch.float32
    return lm


def _load(directory: Path, base: dict[str, Any], *, vocab_size: int) -> BuiltModel:
    lm = load_causal_lm(directory, base.get("uri") or base["hub"]["repo"])
    check_vocabulary(vocab_size, lm.get_input_embeddings().weight.shape[0])
    return BuiltModel(
        lm=lm,
        parameters=sum(parameter.numel() for parameter in lm.parameters()),
        stored_dtype=lm.stored_dtype,
        base=base,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
