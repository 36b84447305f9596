"""What the Dockerfiles do, done in clean virtual environments: the wheel, its installation, the command.

There is no container engine here, so no image is built. The commands are read from the Dockerfiles, so that the two
cannot drift apart. The operator's environment is installed as the image's is. For jobs and serving (gigabytes) the
wheel goes in without its dependencies, onto the packages that are installed here from the same constraints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("operator", "jobs", "serving")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def dockerfile(image: str) -> str:
    """The text, with continued lines joined."""
    return (ROOT / f"images/{image}/Dockerfile").read_text().replace("\\\n", " ")


def command(image: str) -> list[str]:
    """What the image runs."""
    (found,) = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", dockerfile(image), re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def installation(image: str) -> list[str]:
    """The arguments of the pip install that puts our wheel in, up to the wheel, and its extra as the last."""
    (found,) = re.findall(r'^RUN pip (install .*) "\$\(ls dist/\*\.whl\)(.*)"$', dockerfile(image), re.MULTILINE)
    return [*found[0].replace("constraints.txt", str(ROOT / "constraints.txt")).split(), found[1]]


def run(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Anywhere but in the repository, whose folders Python would import from."""
    keep = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    return subprocess.run(
        [*map(str, arguments)],
        cwd="/",
        env={**keep, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def succeed(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what the Dockerfiles copy, by their command."""
    source = tmp_path_factory.mktemp("src")
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile("operator"), re.MULTILINE):
        *names, _ = line.split()
        for name in names:
            path = ROOT / name
            if path.is_dir():
                shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, source / name)
    (build,) = re.findall(r"^RUN pip (wheel .*) \.$", dockerfile("operator"), re.MULTILINE)
    succeed(sys.executable, "-m", "pip", *build.replace("dist", str(source / "dist")).split(), source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def environment(directory: Path) -> Path:
    """The python of a new virtual environment."""
    succeed(sys.executable, "-m", "venv", directory)
    return directory / "bin/python"


def test_every_image_is_pinned_unprivileged_and_built_like_the_others() -> None:
    builds = set()
    for image in IMAGES:
        text = dockerfile(image)
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
        assert re.search(r"^ARG BASE$", text, re.MULTILINE), "no default that nobody has looked at"
        assert "*@sha256:*" in text
        (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
        assert int(user) >= 1000
        builds.add(text[text.index("WORKDIR") : text.index("RUN python -m venv")])
        assert installation(image)[-1] == {"operator": "", "jobs": "[jobs]", "serving": "[serving]"}[image]
    assert len(builds) == 1, "one wheel for all"


@pytest.fixture(scope="module")
def operator_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of the operator's environment, installed as in its image."""
    python = environment(tmp_path_factory.mktemp("operator") / "venv")
    *install, extra = installation("operator")
    succeed(python, "-m", "pip", *install, f"{wheel}{extra}")
    return python


def test_the_operators_environment_runs_it_and_holds_neither_torch_nor_ray(operator_python: Path) -> None:
    python = operator_python
    program, *arguments = command("operator")
    assert program == "python"
    assert "--config" in succeed(python, *arguments, "--help")
    for module in ("torch", "ray", "transformers", "deepspeed"):
        assert run(python, "-c", f"import {module}").returncode != 0, f"{module} is in the operator's image"
    missing = run(python, *arguments, "--config", "/nowhere/operator.yaml")
    assert missing.returncode == 78
    assert "/nowhere/operator.yaml" in missing.stderr


def test_the_operators_environment_has_the_command_that_helm_test_runs(operator_python: Path, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {"token": "t"}}]
    kubeconfig.write_text(
        json.dumps({"current-context": "c", "clusters": [cluster], "contexts": [context], "users": users})
    )
    slipway = operator_python.with_name("slipway")
    for words in (
        ["apply", "-f", ROOT / "examples/trainjob.yaml"],
        ["wait", "tj/x", "--for=condition=Succeeded", "--timeout=1s"],
        ["get", "tj/x"],
        ["delete", "tj/x", "--ignore-not-found"],
    ):
        result = run(slipway, *words, environment={"KUBECONFIG": str(kubeconfig)})
        assert "the API server does not answer" in result.stderr, result.stderr


@pytest.mark.parametrize("image", ["jobs", "serving"])
def test_the_wheel_runs_the_images_command_on_the_pinned_packages(wheel: Path, tmp_path: Path, image: str) -> None:
    python = environment(tmp_path / "venv")
    # Plain path lines: the packages that are installed here become importable, but not this repository.
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    shared = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "pinned.pth").write_text("\n".join(shared) + "\n")
    *install, _ = installation(image)
    succeed(python, "-m", "pip", *install, "--no-deps", wheel)
    package = {"jobs": "slipway_jobs", "serving": "slipway_serving"}[image]
    assert str(site) in succeed(python, "-c", f"import {package}; print({package}.__file__)")
    program, *arguments = command(image)
    if image == "jobs":
        result = run(python, *arguments)
        assert result.returncode == 78
        assert "SLIPWAY_RUN" in result.stderr + result.stdout
        return
    assert "--prompt" in succeed(python.with_name(program), *arguments, "--help")
