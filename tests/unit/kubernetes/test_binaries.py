"""Where the programs of a control plane are taken from, and in which releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.binaries import COMMANDS, KUBERNETES_MINOR, MissingBinaryError, find
from slipway_local.kubernetes.build import pinned


def program(folder: Path, name: str, says: str) -> Path:
    """A program that says its release."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing built, nothing on PATH."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path / "path")}


def test_nothing_is_found_where_nothing_is(environment: dict[str, str]) -> None:
    assert set(binaries.missing(environment)) == set(COMMANDS)
    with pytest.raises(MissingBinaryError, match=r"no etcd in KUBEBUILDER_ASSETS \(not set\).*make control-plane"):
        find("etcd", environment)


def test_assets_come_first_then_what_was_built_then_path(tmp_path: Path, environment: dict[str, str]) -> None:
    on_path = program(tmp_path / "path", "kube-apiserver", "Kubernetes v1.37.9")
    assert find("kube-apiserver", environment) == on_path
    folder = binaries.cache_folder(environment)
    assert folder is not None
    built = program(folder / "bin", "kube-apiserver", "built")
    assert find("kube-apiserver", environment) == built
    environment["KUBEBUILDER_ASSETS"] = str(tmp_path / "assets")
    assert find("kube-apiserver", environment) == built
    asset = program(tmp_path / "assets", "kube-apiserver", "Kubernetes v1.37.0-rc.1")
    assert find("kube-apiserver", environment) == asset


@pytest.mark.parametrize(
    ("name", "says", "complaint"),
    [
        ("kube-apiserver", "Kubernetes v1.36.4", "is 1.36.4, and Kubernetes 1.37 is needed"),
        ("kubectl", "Client Version: v1.32.3", "is 1.32.3, and Kubernetes 1.37 is needed"),
        ("etcd", "etcd Version: 3.5.21", "is 3.5.21, and etcd >= 3.6 is needed"),
        ("helm", "v3.19.0+g1234567", "is 3.19.0, and Helm 4 is needed"),
        ("helm3", "v4.1.0+g1234567", "is 4.1.0, and Helm 3 is needed"),
        ("kube-controller-manager", "no idea", "does not say its release"),
    ],
)
def test_other_releases_are_refused_by_name(
    tmp_path: Path, environment: dict[str, str], name: str, says: str, complaint: str
) -> None:
    program(tmp_path / "path", name, says)
    with pytest.raises(MissingBinaryError) as caught:
        find(name, environment)
    assert complaint in str(caught.value)


def test_kuberay_is_never_taken_from_path(tmp_path: Path, environment: dict[str, str]) -> None:
    program(tmp_path / "path", "kuberay-operator", "v1.6.2")
    with pytest.raises(MissingBinaryError):
        find("kuberay-operator", environment)


def test_the_cache_folder_follows_the_pins(tmp_path: Path, environment: dict[str, str]) -> None:
    pins = tmp_path / "pins" / "kubernetes"
    pins.mkdir(parents=True)
    (pins / "go.mod").write_text("module a\n")
    first = binaries.cache_folder(environment, pins.parent)
    assert first == binaries.cache_folder(environment, pins.parent)
    (pins / "go.sum").write_text("")
    assert binaries.cache_folder(environment, pins.parent) != first
    assert binaries.cache_folder(environment, tmp_path / "no-pins") is None


def test_the_release_that_is_accepted_is_the_one_that_is_pinned() -> None:
    major, minor = KUBERNETES_MINOR
    assert pinned("k8s.io/kubernetes").startswith(f"v{major}.{minor}.")
