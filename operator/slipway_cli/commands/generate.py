"""`slipway generate`: lets a trained model continue a text, in this process, to look at what was trained."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from slipway_cli import jobs, session
from slipway_cli.errors import CliError, ModelError, UsageError
from slipway_cli.options import choice_of
from slipway_cli.session import Session
from slipway_operator.kube.resource import Json


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Streams prompt and continuation to standard output."""
    if bool(arguments.what) == (arguments.model is not None):
        raise UsageError("name a TrainJob or a model directory", hint='slipway generate tj/NAME --prompt "def "')
    if arguments.model is not None:
        directory = Path(arguments.model)
    else:
        directory = session.run(choice_of(arguments), environment, lambda opened: _directory(opened, arguments.what))
    if not directory.is_dir():  # said before torch is imported
        raise ModelError(f"there is no directory {directory}", hint="slipway get tj -o wide   says where models are")
    if sys.stderr.isatty():
        print(f"loading {directory}", file=sys.stderr, flush=True)
    try:
        from slipway_serving import generate  # noqa: PLC0415 - torch and transformers: seconds
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("slipway_"):
            raise
        raise CliError(
            f"generating needs the package {error.name}, which is not installed", hint="pip install 'slipway[serving]'"
        ) from error
    try:
        options = generate.GenerationOptions(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            greedy=arguments.greedy,
        )
        pieces = generate.load(directory).stream(arguments.prompt, options)
        for index, piece in enumerate(pieces):
            sys.stdout.write(arguments.prompt + piece if index == 0 else piece)
            sys.stdout.flush()
    except generate.GenerateError as error:
        raise ModelError(error.message, hint=error.hint) from error
    sys.stdout.write("\n")
    return 0


async def _directory(opened: Session, words: list[str]) -> Path:
    """The local directory of the model that a TrainJob has trained."""
    kind, name = await opened.one(words)
    if kind.resource.kind != "TrainJob":
        raise UsageError(f"models are of TrainJobs, not of {kind.resource.kind}", hint="slipway generate tj/NAME")
    job = await opened.get(kind, name)
    model = jobs.status_of(job).get("model") or {}
    if not model.get("uri"):
        raise _not_trained(name, job)
    return fetch(str(model["uri"]), str(model.get("digest") or model["uri"]))


def _not_trained(name: str, job: Json) -> ModelError:
    progress = jobs.status_of(job).get("progress") or {}
    at = f" at step {progress['step']} of {progress['steps']}" if progress.get("steps") else ""
    if jobs.finished(job):
        return ModelError(f"tj/{name} has no model: {jobs.end_of(job)}", hint=f"slipway logs tj/{name}")
    return ModelError(
        f"tj/{name} has no model yet: it is {jobs.stage(job)}{at} ({jobs.why(job)})",
        hint=f"slipway wait tj/{name} --for=condition=Succeeded",
    )


def fetch(uri: str, digest: str) -> Path:
    """The model's directory on this machine: where it is, or a copy in the user's cache, made once per digest.

    Raises ModelError when the storage cannot be read from here.
    """
    from slipway_jobs.errors import JobError  # noqa: PLC0415
    from slipway_jobs.storage import Storage  # noqa: PLC0415

    try:
        storage = Storage(uri, field="status.model.uri")
        if storage.local_path is not None:
            return storage.local_path
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipway" / "models"
        target = cache / hashlib.sha256(f"{uri} {digest}".encode()).hexdigest()[:32]
        if not target.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            print(f"fetching {uri}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
                storage.download("", Path(scratch) / "model")
                (Path(scratch) / "model").rename(target)  # whole or not at all
    except (JobError, OSError) as error:
        raise ModelError(
            f"the model {uri} cannot be read from this machine: {error}",
            hint="run this where that storage is reachable, or copy the directory and use --model DIR",
        ) from error
    return target
