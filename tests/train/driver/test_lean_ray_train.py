"""Ray Train without Ray Data: in the driver, and in a rank, which is a class that Ray has pickled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_LOOK = """
import json, sys
real = [name for name, module in sys.modules.items() if name.startswith("ray.data") and getattr(module, "__file__", "")]
print(json.dumps({"ray.train": "ray.train" in sys.modules, "real": real}))
"""


def _in_a_process(program: str, *arguments: str) -> Any:
    """What it has printed last, as JSON."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_neither_driver_nor_rank_imports_ray_data(tmp_path: Path) -> None:
    pickled = tmp_path / "class.pickle"
    write = """
import pathlib, sys
import slipway_jobs.train.ray_adaptor as adaptor
from ray import cloudpickle
from ray.actor import _modify_class
pathlib.Path(sys.argv[1]).write_bytes(cloudpickle.dumps(_modify_class(adaptor.TrainWorker)))
"""
    read = """
import pathlib, sys
import ray
from ray import cloudpickle
assert issubclass(cloudpickle.loads(pathlib.Path(sys.argv[1]).read_bytes()), object)
"""
    nothing = {"ray.train": True, "real": []}
    assert _in_a_process(write + _LOOK, str(pickled)) == nothing
    assert _in_a_process(read + _LOOK, str(pickled)) == nothing


def test_what_is_left_out_says_so_and_what_is_there_stays() -> None:
    absent = """
import json
from slipway_jobs.lean_ray_train import lean_ray_train
lean_ray_train()
import ray.data
from ray.data.context import DataContext
said = []
for make in (ray.data.Dataset, DataContext):
    try:
        make(1, name="x")
    except RuntimeError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    said = _in_a_process(absent)
    assert [words.partition(":")[0] for words in said] == ["ray.data.Dataset", "ray.data.context.DataContext"]
    assert all("without Ray Data" in words for words in said)
    there = """
import json, ray.data
from slipway_jobs.lean_ray_train import lean_ray_train
lean_ray_train()
import ray.train
print(json.dumps(bool(ray.data.__file__) and ray.data.range.__module__ == "ray.data.read_api"))
"""
    assert _in_a_process(there)
