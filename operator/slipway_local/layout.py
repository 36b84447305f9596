"""Where the local control plane keeps what: one place that says it, so that nobody guesses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


def default_state_dir(environment: Mapping[str, str] | None = None) -> Path:
    """$SLIPWAY_HOME, else ~/.slipway; absolute."""
    named = (os.environ if environment is None else environment).get("SLIPWAY_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".slipway"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one state directory."""

    state_dir: Path

    @property
    def api_server(self) -> Path:
        """The API server's own directory."""
        return self.state_dir / "apiserver"

    @property
    def kubernetes(self) -> Path:
        """The directory of the real control plane, where that was asked for."""
        return self.state_dir / "kubernetes"

    @property
    def kubeconfig(self) -> Path:
        """Written by the API server, whichever of the two it is."""
        return self.api_server / "kubeconfig"

    @property
    def control_plane(self) -> Path:
        """Which API server runs, or ran last: a word of `parts.ControlPlaneKind`."""
        return self.state_dir / "control-plane"

    @property
    def storage(self) -> Path:
        """Where runs keep what they make."""
        return self.state_dir / "storage"

    @property
    def logs(self) -> Path:
        """`<part>.log`, and `<namespace>/<rayjob>.log`."""
        return self.state_dir / "logs"

    def log(self, part: str) -> Path:
        """The log of one part of the control plane."""
        return self.logs / f"{part}.log"

    @property
    def operator_config(self) -> Path:
        """The operator's configuration, written by the supervisor."""
        return self.state_dir / "operator.yaml"

    @property
    def report_key(self) -> Path:
        """The key that runs' report tokens are derived from."""
        return self.state_dir / "report-key"

    @property
    def ports(self) -> Path:
        """The operator's ports, kept because running jobs report to one of them."""
        return self.state_dir / "ports.json"

    @property
    def lock(self) -> Path:
        """Held by the living supervisor."""
        return self.state_dir / "supervisor.lock"

    @property
    def supervisor(self) -> Path:
        """Who the supervisor is."""
        return self.state_dir / "supervisor.json"

    @property
    def children(self) -> Path:
        """Who its children are."""
        return self.state_dir / "children.json"
