"""What a checkpoint says about itself: everything a resumed run needs that is not a tensor, and a digest of every file.

The manifest is the list of what exists; the commit marker, written after it, holds the manifest's own digest. So a
checkpoint is whole exactly when the marker, the manifest and all files agree, and any flipped, missing or exchanged
byte shows. Pure: no storage, no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import IO, Any

VERSION = 1
MANIFEST = "manifest.json"
MARKER = "COMMITTED"
_NAME = re.compile(r"step-(\d{8,})-a(\d+)")
_CHUNK = 1 << 20


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's directory: `step-00000100-a2` holds 100 optimizer steps and was written by attempt 2.

    The attempt is a fence: a writer of an older attempt that is not quite dead writes beside, never into, what a newer
    one writes.
    """

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}-a{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        """From a directory's name; None for any other name."""
        match = _NAME.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs besides the tensors. Data order and learning rate follow from `step`."""

    step: int = 0  # optimizer steps done
    loss: float | None = None  # training loss of the last step, nats per token
    step_seconds: float | None = None  # smoothed time of a step
    initial_eval_loss: float | None = None  # held-out loss before the first step
    eval_loss: float | None = None  # last held-out loss
    eval_step: int | None = None  # the step that it was measured after


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint, by its path in the checkpoint's directory."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's table of contents."""

    uid: str  # of the job that wrote it
    attempt: int
    strategy: str
    world_size: int
    state: TrainState
    files: tuple[FileRecord, ...]

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """From JSON. Raises ValueError for anything that `encode` would not write."""
        try:
            document: dict[str, Any] = json.loads(data)
            if document.pop("version") != VERSION:
                raise ValueError("unknown version")
            known = {field.name for field in fields(TrainState)}
            state = TrainState(**{key: value for key, value in document.pop("state").items() if key in known})
            files = tuple(FileRecord(**record) for record in document.pop("files"))
            return cls(state=state, files=files, **document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"malformed manifest: {error}") from error


def sha256_of(stream: IO[bytes]) -> tuple[int, str]:
    """Size and digest of what is left in a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()
