"""The directory of one run: what its RayJob mounts, its launch script and its working directory.

`<state>/runs/<namespace>_<name>_<first 8 of the UID>`, for the owner only. It is made anew for each start, and removed
with the RayJob, because it holds secrets. The log is elsewhere and stays. A RayService has one in `<state>/services`,
which is kept up to date with its Secrets and ConfigMaps while it runs, as a kubelet does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from slipway_local.processes import ProcessRef, write_private
from slipway_local.ray_runner.translate import DRIVER_PID


class RunDirs:
    """The run directories of one state directory."""

    def __init__(self, state_dir: Path, folder: str = "runs") -> None:
        self._folder = state_dir / folder

    def path(self, namespace: str, name: str, uid: str) -> Path:
        """Where the run of this RayJob is."""
        return self._folder / f"{namespace}_{name}_{uid[:8]}"

    def create(self, path: Path, directories: Iterable[str], files: Mapping[str, bytes]) -> None:
        """Makes the directory with this content and nothing else. Directories are 0700, files 0600."""
        self.remove(path)
        for relative in ("", *directories):
            _make_private(path, path / relative)
        for relative, content in files.items():
            target = path / relative
            _make_private(path, target.parent)
            write_private(target, content)

    def refresh(self, path: Path, directories: Iterable[str], files: Mapping[str, bytes]) -> None:
        """Gives the directory this content while processes read it: each file is replaced as a whole, if it differs."""
        for relative in ("", *directories):
            _make_private(path, path / relative)
        for relative, content in files.items():
            target = path / relative
            _make_private(path, target.parent)
            if not target.is_file() or target.read_bytes() != content:
                write_private(target, content)
        wanted = {path / relative for relative in files}
        for found in [found for found in path.rglob("*") if found.is_file() and found not in wanted]:
            found.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Removes it with all that is in it, if it is there."""
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise OSError(f"{path} cannot be removed")

    def remove_strangers(self, known: Iterable[Path]) -> None:
        """Removes the directories of RayJobs that exist no longer."""
        if self._folder.is_dir():
            for path in set(self._folder.iterdir()) - set(known):
                self.remove(path)


def driver(path: Path) -> ProcessRef | None:
    """The driver that was started in a run directory: None when none was, a dead one when it has ended."""
    try:
        pid = int((path / DRIVER_PID).read_text())
    except (OSError, ValueError):
        return None
    # A driver that has ended has no start time any more; 0 matches no process.
    return ProcessRef.of(pid) or ProcessRef(pid, 0.0)


def was_started(path: Path) -> bool:
    """Whether a driver was ever started in this run directory."""
    return (path / DRIVER_PID).exists()


def _make_private(top: Path, directory: Path) -> None:
    top.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    missing = [directory, *directory.parents]
    for one in reversed(missing[: missing.index(top) + 1]):
        one.mkdir(mode=0o700, exist_ok=True)
        os.chmod(one, 0o700)  # noqa: PTH101 - whatever the umask is
