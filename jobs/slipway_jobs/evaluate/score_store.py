"""The scores of one model on one suite, where every evaluation of the namespace finds them.

    <results>/<model digest>/<suite digest>-<seed>/shards/0003.parquet    a part of the examples, complete
    <results>/<model digest>/<suite digest>-<seed>/results.json           all of them: the commit marker, written last

A benchmark, whose harness gives no part of its scores away, has scores.json and samples.parquet instead of shards.

The name says everything that decides the scores, so what is there is taken and never computed again. A shard appears by
a rename, so it is there as a whole or not at all, and a run that was killed continues with those that are. Two runs of
the same name write the same content, so whichever renames last changes nothing. A shard is believed only after a look:
its checksums, and that its examples are the ones that are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slipway_jobs.errors import InfrastructureError
from slipway_jobs.evaluate import score_table
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.storage import Storage

VERSION = 1
MARKER = "results.json"


@dataclass(frozen=True)
class ScoreKey:
    """What scores are named by. Digests in hexadecimal, with or without `sha256:`."""

    model: str
    suite: str
    seed: int

    @property
    def path(self) -> str:
        """Relative to the results prefix."""
        return f"{self.model.removeprefix('sha256:')[:16]}/{self.suite.removeprefix('sha256:')[:16]}-{self.seed}"


@dataclass(frozen=True)
class StoredFile:
    """A file as results.json lists it, by its path relative to the directory of the scores."""

    path: str
    size: int
    sha256: str


def shard_name(number: int) -> str:
    """Relative to the directory of the scores."""
    return f"shards/{number:04d}.parquet"


class ScoreStore:
    """The directory of one key below a results prefix."""

    def __init__(self, results: Storage, key: ScoreKey) -> None:
        self.key = key
        self.storage = results.join(key.path)

    # --- shards ---------------------------------------------------------------------------------------------------

    def write_shard(self, number: int, examples: Sequence[ScoredExample]) -> None:
        """Commit one shard."""
        self.storage.write_bytes_atomic(shard_name(number), score_table.encode(examples))

    def shard_is_there(self, number: int, ids: Sequence[str], first: int) -> bool:
        """Whether the shard is complete and holds exactly these examples, the first of them at that index."""
        try:
            found = score_table.decode(self.storage.read_bytes(shard_name(number)))
        except (FileNotFoundError, ValueError):
            return False  # not there, or not to be trusted: scored again and replaced
        return [(one.index, one.id) for one in found] == [
            (first + place, identity) for place, identity in enumerate(ids)
        ]

    # --- the whole ------------------------------------------------------------------------------------------------

    def write(self, path: str, content: bytes) -> None:
        """Put a file there that is no shard: the scores of a benchmark."""
        self.storage.write_bytes_atomic(path, content)

    def commit(self, paths: Sequence[str], *, examples: int, **about: Any) -> None:
        """Write the marker: these files are there and complete. `about` says for people what the name says for
        programs."""
        files = []
        for path in paths:
            content = self.storage.read_bytes(path)
            files.append(StoredFile(path, len(content), hashlib.sha256(content).hexdigest()))
        document = {
            "version": VERSION,
            "model": self.key.model,
            "suite": self.key.suite,
            "seed": self.key.seed,
            **about,
            "examples": examples,
            "files": [asdict(file) for file in files],
        }
        self.storage.write_bytes_atomic(MARKER, json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")

    def is_complete(self) -> bool:
        """Whether the marker is there and every file that it lists has its size."""
        try:
            return all(self.storage.info(file.path)["size"] == file.size for file in self._files())
        except FileNotFoundError:
            return False

    def read(self) -> list[ScoredExample]:
        """All examples in order. Raises as `contents` does."""
        return [example for content in self.contents() for example in score_table.decode(content)]

    def contents(self) -> list[bytes]:
        """The files in the order of the marker.

        Raises InfrastructureError ScoresDamaged where they are not what the marker says, after taking the marker away:
        the next attempt computes what is missing.
        """
        found = []
        try:
            for file in self._files():
                content = self.storage.read_bytes(file.path)
                if hashlib.sha256(content).hexdigest() != file.sha256:
                    raise ValueError(f"{file.path} has other content than its digest says")
                found.append(content)
        except (FileNotFoundError, ValueError) as error:
            self.storage.delete(MARKER)
            raise InfrastructureError(
                "ScoresDamaged", f"results: the scores in {self.storage.uri} are damaged ({error}); they are made anew"
            ) from error
        return found

    def _files(self) -> list[StoredFile]:
        """Raises FileNotFoundError where there is no marker that can be read."""
        try:
            document = json.loads(self.storage.read_bytes(MARKER))
            asked = (VERSION, self.key.model, self.key.suite, self.key.seed)
            if (document["version"], document["model"], document["suite"], document["seed"]) != asked:
                raise FileNotFoundError("the marker is of other scores")
            return [StoredFile(**file) for file in document["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise FileNotFoundError(f"{MARKER} is malformed: {error}") from error
