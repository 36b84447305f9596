"""Where training starts from: exact parameter counts, the same bits everywhere, clear words for what cannot load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from slipway_api.references import FreshModel, TrainingModel
from slipway_api.run import RunSpec
from slipway_jobs.data import PreparedData
from slipway_jobs.errors import UserError
from slipway_jobs.storage import Storage
from slipway_jobs.train.engine import Engine
from slipway_jobs.train.lineage import completed_model
from slipway_jobs.train.loss import LossModel
from slipway_jobs.train.model import build, has_dropout
from slipway_jobs.train.ranks import RankContext

MakeRun = Callable[..., RunSpec]


def fresh(**changes: Any) -> TrainingModel:
    shape = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "max_position_embeddings": 64, **changes}
    return TrainingModel(fresh=FreshModel(**shape))


def made(model: TrainingModel, seed: int = 0) -> Any:
    built = build(model, vocab_size=300, seed=seed, eos_id=0, pad_id=0)
    built.materialise(built.lm)
    return built.lm


@settings(max_examples=25)
@given(
    heads=st.sampled_from([1, 2, 4, 6]),
    head_dim=st.sampled_from([2, 8, 16]),
    layers=st.integers(1, 3),
    grouped=st.booleans(),
    intermediate=st.sampled_from([None, 8, 50]),
    tied=st.booleans(),
    vocabulary=st.integers(257, 1000),
)
def test_parameter_count_is_what_the_api_says(
    heads: int, head_dim: int, layers: int, grouped: bool, intermediate: int | None, tied: bool, vocabulary: int
) -> None:
    spec = FreshModel(
        hidden_size=max(8, heads * head_dim),
        layers=layers,
        heads=heads if heads * head_dim >= 8 else 1,
        kv_heads=1 if grouped else None,
        intermediate_size=intermediate,
        tie_embeddings=tied,
    )
    built = build(TrainingModel(fresh=spec), vocab_size=vocabulary, seed=0, eos_id=0, pad_id=0)
    assert built.parameters == spec.parameter_count(vocabulary)


def test_initial_weights_depend_on_seed_and_name_only() -> None:
    first, same, other = made(fresh(), seed=1), made(fresh(), seed=1), made(fresh(), seed=2)
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), same.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c), name
    layers = first.model.layers
    assert not torch.equal(layers[0].mlp.up_proj.weight, layers[1].mlp.up_proj.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert made(fresh(tie_embeddings=False)).lm_head.weight is not first.model.embed_tokens.weight
    # A deeper model starts with the same embedding: order of creation plays no part.
    assert torch.equal(made(fresh(layers=3), seed=1).model.embed_tokens.weight, first.model.embed_tokens.weight)


def test_the_forward_pass_is_that_of_a_model_built_in_the_ordinary_way() -> None:
    ours = made(fresh())
    ordinary = LlamaForCausalLM(ours.config)
    ordinary.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.eval()(tokens).logits, ordinary.eval()(tokens).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_model_gives_the_same_logits(
    tied: bool, make_run: MakeRun, prepared: PreparedData, alone: RankContext, tmp_path: Path
) -> None:
    model = fresh(tie_embeddings=tied).to_wire()
    run = make_run(storage=tmp_path, world=1, strategy={"ddp": {}}, model=model, training={"steps": 2})
    trained: list[Any] = []

    def find(module: torch.nn.Module, _inputs: Any) -> None:
        if isinstance(module, LossModel) and not trained:
            trained.append(module.lm)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(find)
    result = Engine(run, prepared, alone, Listener()).train()
    hook.remove()
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        expected = trained[0].eval()(tokens).logits
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(reloaded(tokens).logits, expected)
    assert reloaded.config.eos_token_id == prepared.eos_id and reloaded.config.dtype == torch.float32
    assert completed_model(Storage(tmp_path), uid=run.uid) == result.model
    assert completed_model(Storage(tmp_path), uid="another") is None

    lineage = json.loads((tmp_path / "model" / "slipway.json").read_text())
    assert lineage["data"]["digest"] == prepared.digest and lineage["digest"] == result.model.digest
    assert lineage["base"]["fresh"]["hiddenSize"] == 32 and lineage["config"]["training"]["steps"] == 2
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file["path"] for file in lineage["files"]}
    assert "a reference needs at least 100" in lineage["reference"]["problem"]  # one long line is few requests
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    assert completed_model(Storage(tmp_path)) is None


def test_training_goes_on_from_a_directory(
    make_run: MakeRun, prepared: PreparedData, alone: RankContext, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.1)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "notes.txt").write_text("not a weight")
    model = {"uri": str(tmp_path / "base")}

    def result(storage: str, strategy: str, attempt: int = 1) -> Any:
        run = make_run(
            storage=tmp_path / storage, world=1, attempt=attempt, model=model, tokenizer=None, strategy={strategy: {}}
        )
        listener = Listener()
        return Engine(run, prepared, alone, listener).train(), listener

    first, heard = result("a", "ddp")
    again, _ = result("b", "ddp")
    assert first.model.digest == again.model.digest  # dropout draws are a function of the step
    assert heard.losses[0] > heard.losses[-1]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert type(reloaded).__name__ == "GPT2LMHeadModel" and reloaded.config.vocab_size == 320
    assert reloaded.dtype == torch.bfloat16  # as the base was stored
    lineage = json.loads((tmp_path / "a" / "model" / "slipway.json").read_text())
    assert lineage["base"] == {"uri": str(tmp_path / "base")} and lineage["dtype"] == "bfloat16"
    result("c", "fsdp")
    assert has_dropout(reloaded) and not has_dropout(made(fresh()))


def test_the_base_model_is_only_read(
    make_run: MakeRun, prepared: PreparedData, alone: RankContext, tmp_path: Path
) -> None:
    made(fresh()).save_pretrained(tmp_path / "base")  # float32: loading maps the file itself
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    run = make_run(storage=tmp_path, world=1, model={"uri": str(tmp_path / "base")}, tokenizer=None)
    Engine(run, prepared, alone, Listener()).train()
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before


def directory(tmp_path: Path, files: dict[str, str]) -> TrainingModel:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return TrainingModel(uri=str(tmp_path))


LLAMA = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
WRONG = [
    pytest.param({}, "ModelNotFound", "no config.json", id="empty"),
    pytest.param({"config.json": LLAMA}, "NoSafetensors", "no weights at all", id="no weights"),
    pytest.param(
        {"config.json": LLAMA, "pytorch_model.bin": "x"}, "NoSafetensors", "only pytorch_model.bin", id="pickled"
    ),
    pytest.param(
        {"config.json": json.dumps({"model_type": "from-mars"}), "model.safetensors": "x"},
        "UnknownArchitecture",
        "from-mars",
        id="unknown architecture",
    ),
    pytest.param(
        {
            "config.json": json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "code.X"}}),
            "code.py": "raise SystemExit",
            "model.safetensors": "x",
        },
        "UnknownArchitecture",
        "own code",
        id="remote code",
    ),
    pytest.param({"config.json": LLAMA, "model.safetensors": "x"}, "ModelUnreadable", "cannot load", id="damaged"),
]


@pytest.mark.parametrize(("files", "reason", "words"), WRONG)
def test_what_cannot_be_loaded_is_said(files: dict[str, str], reason: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build(directory(tmp_path, files), vocab_size=300, seed=0, eos_id=0, pad_id=0)
    assert caught.value.reason == reason and words in str(caught.value)


def test_a_missing_directory_and_a_small_vocabulary_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory") as caught:
        build(TrainingModel(uri=str(tmp_path / "none")), vocab_size=300, seed=0, eos_id=0, pad_id=0)
    assert caught.value.reason == "ModelNotFound"
    made(fresh()).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        build(TrainingModel(uri=str(tmp_path)), vocab_size=301, seed=0, eos_id=0, pad_id=0)
    assert caught.value.reason == "VocabularyMismatch"


class Listener:
    """Remembers the losses."""

    stop_message = None

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, metrics: Any) -> None:
        self.losses.append(metrics.loss)

    def on_stage(self, stage: str) -> None: ...
    def on_plan(self, plan: Any) -> None: ...
    def on_resume(self, step: int, skipped: Any) -> None: ...
    def on_eval(self, step: int, loss: float, tokens: int) -> None: ...
    def on_checkpoint(self, checkpoint: Any) -> None: ...
    def on_warning(self, reason: str, message: str) -> None: ...
    def on_model(self, model: Any) -> None: ...
