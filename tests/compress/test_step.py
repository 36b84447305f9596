"""The step around a scheme: found instead of made, damaged and made again, refused, killed, and what is wrong at once.

All with `magnitude`, which needs no library, or `nf4`, which is quick.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slipway_api.run import RUN_ENV, CompressRunSpec, ExitCode
from slipway_jobs.compress import compress, load_compressed
from slipway_jobs.errors import InfrastructureError, JobError, UserError
from slipway_jobs.model_files import directory_digest, sort_metadata

from .conftest import QUICK, World

MAGNITUDE = {"magnitude": {}}
Contract = Callable[..., CompressRunSpec]


class Log(list[str]):
    """What was said, and whether anything was computed."""

    @property
    def computed(self) -> bool:
        return any(line.startswith("compressing ") for line in self)


def run(spec: CompressRunSpec, log: Log | None = None) -> Any:
    return compress(spec, progress=(log if log is not None else Log()).append, effort=QUICK)


def failure(spec: CompressRunSpec) -> JobError:
    with pytest.raises(JobError) as raised:
        run(spec)
    return raised.value


def test_found_the_second_time(contract: Contract, tmp_path: Path) -> None:
    first, second = Log(), Log()
    made = run(contract(MAGNITUDE, cache=tmp_path), first)
    found = run(contract(MAGNITUDE, cache=tmp_path), second)
    assert first.computed and not made.cached
    assert not second.computed and found == made.model_copy(update={"cached": True})


@pytest.mark.parametrize(
    ("sparsity", "window"),
    [("0.4", 32), ("0.5", 16)],
)
def test_another_question_is_another_entry(
    contract: Contract, world: World, tmp_path: Path, sparsity: str, window: int
) -> None:
    made = run(contract(MAGNITUDE, cache=tmp_path))
    held_out = {"sources": [{"uri": str(world.held_out)}], "sequenceLength": window, "maxTokens": 256}
    other = run(contract({"magnitude": {"sparsity": sparsity}}, cache=tmp_path, heldOut=held_out))
    assert other.uri != made.uri and not other.cached


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "marker"])
def test_damaged_output_is_made_again(contract: Contract, tmp_path: Path, damage: str) -> None:
    made = run(contract(MAGNITUDE, cache=tmp_path))
    weights = Path(made.uri) / "model.safetensors"
    content = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        weights.write_bytes(content[:-100])
    elif damage == "remove":
        weights.unlink()
    else:
        (Path(made.uri).parent / "index.json").unlink()
    if damage in ("flip", "truncate"):
        with pytest.raises(InfrastructureError) as raised:
            load_compressed(made.uri, torch.device("cpu"))
        assert raised.value.reason == "ModelDamaged"
    log = Log()
    again = run(contract(MAGNITUDE, cache=tmp_path), log)
    assert log.computed and not again.cached and again.digest == made.digest
    assert weights.read_bytes() == content


def test_weights_that_are_made_again_are_the_same_bytes(tmp_path: Path) -> None:
    """The library writes metadata in another order each time."""
    tensors = {"a": torch.arange(5.0), "b": torch.ones(2, 3)}
    metadata = {f"entry {number} ä": f'{{"value": {number}}}' for number in range(30)}
    written = []
    for number in range(3):
        file = tmp_path / f"{number}.safetensors"
        save_file(tensors, file, metadata=metadata)
        sort_metadata(file)
        written.append(file.read_bytes())
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == metadata
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(file).items())
    assert len(set(written)) == 1


def test_too_much_lost(contract: Contract, tmp_path: Path) -> None:
    """Refused with the numbers, kept for people, not usable; allowed later, it is taken without computing again."""
    strict = contract({"magnitude": {"sparsity": "0.9"}}, cache=tmp_path, maxQualityLoss="0.0")
    # Random weights know nothing, so a change may also be for the better: take a loss that cannot be met.
    strict = _with_limit(strict, "0.0")
    result = run(_with_limit(strict, None))
    if float(result.quality_loss) <= 0:
        pytest.skip("this model got better by losing weights")
    shutil.rmtree(tmp_path / "compressed")
    error = failure(strict)
    assert isinstance(error, UserError) and error.reason == "QualityLossTooHigh"
    assert result.before.perplexity in error.message and result.after.perplexity in error.message
    kept = next((tmp_path / "refused").iterdir()) / "model"
    assert str(kept) in error.message and (kept / "model.safetensors").is_file()
    assert not [path for path in (tmp_path / "compressed").iterdir() if not path.name.startswith(".")]

    log = Log()
    with pytest.raises(UserError):
        run(strict, log)
    assert not log.computed  # the verdict stands in the refused entry
    allowed = run(_with_limit(strict, "1e9"), log)
    assert not log.computed and Path(allowed.uri).is_dir() and "/compressed/" in allowed.uri
    assert load_compressed(allowed.uri, torch.device("cpu"))
    assert failure(strict).reason == "QualityLossTooHigh"  # also where the entry is there


def _with_limit(spec: CompressRunSpec, limit: str | None) -> CompressRunSpec:
    return spec.model_copy(update={"compression": spec.compression.model_copy(update={"max_quality_loss": limit})})


# --- what is wrong at once ----------------------------------------------------------------------------------------


def test_not_enough_calibration_data(contract: Contract, world: World, tmp_path: Path) -> None:
    calibration = {"sources": [{"uri": str(world.calibration)}], "samples": 500, "sequenceLength": 64}
    error = failure(contract({"wanda": {}}, cache=tmp_path, calibration=calibration))
    assert error.reason == "CalibrationTooSmall" and "500 samples of 64 tokens" in error.message
    assert not (tmp_path / "compressed").exists()


def test_calibrated_on_what_is_measured(contract: Contract, world: World, tmp_path: Path) -> None:
    calibration = {"sources": [{"uri": str(world.held_out)}], "samples": 2, "sequenceLength": 16}
    error = failure(contract({"wanda": {}}, cache=tmp_path, calibration=calibration))
    assert error.reason == "CalibrationOverlapsHeldOut"


def test_missing_texts_are_named_by_their_field(contract: Contract, tmp_path: Path) -> None:
    error = failure(contract(MAGNITUDE, cache=tmp_path, heldOut={"sources": [{"uri": str(tmp_path / "no.txt")}]}))
    assert error.reason == "DataNotFound" and error.message.startswith("compression.heldOut.sources[0]")


@pytest.mark.parametrize("scheme", ["gptq", "awq", "fp8"])
def test_no_kernel_is_an_error_not_a_fallback(contract: Contract, tmp_path: Path, scheme: str) -> None:
    error = failure(contract({scheme: {}}, cache=tmp_path, emulate=False))
    assert error.reason == "SchemeHasNoKernel" and "emulate" in error.message


def test_unknown_architecture(contract: Contract, world: World, tmp_path: Path) -> None:
    model = _changed(world.model, tmp_path / "model", model_type="wishful", architectures=["WishfulForCausalLM"])
    assert failure(contract(MAGNITUDE, model=model, cache=tmp_path)).reason == "UnknownArchitecture"


def test_a_model_that_changed_since_its_gate_is_refused_before_anything_is_computed(
    contract: Contract, world: World, tmp_path: Path
) -> None:
    spec, log = contract(MAGNITUDE, cache=tmp_path), Log()
    right, other = (spec.model_copy(update={"digest": d}) for d in (directory_digest(world.model), "sha256:other"))
    assert failure(other).reason == "ModelDigestMismatch"
    assert not any(tmp_path.rglob("*.safetensors"))
    assert run(right, log).base_digest == right.digest
    assert log.computed


def test_compressed_twice(contract: Contract, tmp_path: Path) -> None:
    once = run(contract({"nf4": {}}, cache=tmp_path))
    assert failure(contract(MAGNITUDE, model=Path(once.uri), cache=tmp_path)).reason == "AlreadyCompressed"


def test_damaged_weights(contract: Contract, world: World, tmp_path: Path) -> None:
    model = _changed(world.model, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"\x00" * 1000)
    assert failure(contract(MAGNITUDE, model=model, cache=tmp_path)).reason == "ModelUnreadable"


def _changed(model: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(model, target)
    document = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**document, **config}))
    return target


# --- the process that a RayJob starts -----------------------------------------------------------------------------


def _start(spec: CompressRunSpec, log: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, RUN_ENV: json.dumps(spec.to_wire()), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "slipway_jobs.compress"], env=environ, stdout=stream, stderr=subprocess.STDOUT
        )


def test_killed_and_started_again(contract: Contract, tmp_path: Path) -> None:
    """SIGKILL while it computes leaves nothing that passes for a result; the next attempt makes it, or finds it."""
    spec = contract(MAGNITUDE, cache=tmp_path / "cache")
    log = tmp_path / "log"
    first = _start(spec, log)
    _wait(lambda: b"compressing" in log.read_bytes() or first.poll() is not None)
    assert first.poll() is None, log.read_text()
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=30)
    entries = [path for path in (tmp_path / "cache" / "compressed").glob("*") if not path.name.startswith(".")]
    assert entries == []

    second = _start(spec, log)
    assert second.wait(timeout=120) == ExitCode.SUCCEEDED, log.read_text()
    assert "Succeeded: made " in log.read_text()
    (entry,) = [path for path in (tmp_path / "cache" / "compressed").glob("*") if not path.name.startswith(".")]
    assert load_compressed(entry / "model", torch.device("cpu"))


def test_the_tokenizer_of_the_texts_does_not_take_torchao_away(contract: Contract, tmp_path: Path) -> None:
    """A process with an empty cache reads a tokenizer first, for which transformers is made lean."""
    log = tmp_path / "log"
    process = _start(contract({"int8WeightOnly": {}}, cache=tmp_path / "cache"), log)
    assert process.wait(timeout=120) == ExitCode.SUCCEEDED, log.read_text()


def test_a_refused_contract_ends_with_the_users_exit_code(contract: Contract, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _start(contract({"gptq": {}}, cache=tmp_path / "cache", emulate=False), log)
    assert process.wait(timeout=60) == ExitCode.USER_ERROR
    assert "UserError (SchemeHasNoKernel)" in log.read_text()


def _wait(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
