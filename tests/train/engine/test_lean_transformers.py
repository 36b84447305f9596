"""A rank must not pay for packages that only evaluation and compression use."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, sys
from slipway_api.references import FreshModel, TrainingModel
from slipway_jobs.train.model import build
fresh = FreshModel(hidden_size=32, layers=1, heads=2)
build(TrainingModel(fresh=fresh), vocab_size=300, seed=0, eos_id=0, pad_id=0)
loaded = [name for name in ("sklearn", "scipy", "torchao", "pandas") if name in sys.modules]
import scipy.optimize, sklearn.metrics, torchao
print(json.dumps(loaded))
"""


def test_building_a_model_imports_no_optional_package_and_hides_none() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(ended.stdout.splitlines()[-1]) == []
