"""The layout's promises: a top folder named `operator` must never shadow the standard library's module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["operator", "jobs", "serving"])
def test_no_package_marker_in_a_top_folder(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_system_interpreter_at_the_root_still_has_its_operator_module() -> None:
    # The base interpreter, without our environment: an editable install would import the right module first and
    # hide the fault from us, not from users.
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    code = "import collections, operator; print(operator.__file__)"
    result = subprocess.run([base, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert str(ROOT) not in result.stdout


def test_the_operator_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, slipway_operator.__main__; "
        "print([m for m in ('torch', 'ray', 'transformers', 'kubernetes') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
