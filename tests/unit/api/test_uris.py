"""Which URIs a manifest may name: data and models, never the machine's own secrets or a cloud's metadata service."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from slipway_cli.manifests import read_manifests
from slipway_cli.validation import check


def problems(directory: Path, uri: str, revision: str = "main") -> list[str]:
    """What the CRD's own rules say about a TrainJob that names this URI in each place that takes one."""
    job = {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "job"},
        "spec": {
            "model": {"uri": uri},
            "tokenizer": {"uri": uri},
            "data": {
                "sources": [{"uri": uri}],
                "evalSources": [{"uri": uri}],
            },
            "training": {"steps": 1},
        },
    }
    if revision != "main":
        job["spec"]["model"] = {"hub": {"repo": "a/b", "revision": revision}}  # type: ignore[index]
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return sorted({problem.field for problem in check(read_manifests([str(path)])) if problem.field})


EVERYWHERE = sorted(
    ["spec.model.uri", "spec.tokenizer.uri", "spec.data.sources[0].uri", "spec.data.evalSources[0].uri"]
)


@pytest.mark.parametrize(
    "uri",
    [
        "/data/corpus",
        "/data/process/run/devices",
        "/srv/run/secrets-of-cooking",
        "/data/.hidden/a..b/c...",
        "/dev/shm/corpus",
        "file:///mnt/shared/corpus",
        "file://localhost/mnt/shared",
        "s3://bucket/prefix/part-0001.jsonl",
        "s3://12345/prefix",
        "s3://metadata/prefix",
        "gs://bucket",
        "hf://datasets/owner/name@main/data.parquet",
        "https://example.com:8443/data/corpus.jsonl?version=1",
        "https://1password.com/corpus",
        "python://stdlib",
    ],
)
def test_data_and_models_may_be_named(tmp_path: Path, uri: str) -> None:
    assert problems(tmp_path, uri) == []


@pytest.mark.parametrize(
    "uri",
    [
        "../other",
        "/data/../../etc/passwd",
        "/data/..",
        "/data/./x",
        "s3://bucket/team-a/../team-b",
        "s3://bucket/%2e%2E/team-b",
        "file:///proc/self/environ",
        "FILE:///proc/self/environ",
        "file://localhost/proc/1/root",
        "//proc/self/environ",
        "/proc",
        "/sys/class",
        "/dev/fd/0",
        "/dev/shm/../fd/0",
        "local:///dev/stdin",
        "/run/secrets/kubernetes.io/serviceaccount/token",
        "/var/run/slipway/report-token",
        "/var//run//slipway/report-token",
        "simplecache::file:///proc/self/environ",
        "zip://a::file:///proc/self/environ",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials",
        "https://user@169.254.170.2/v2/credentials",
        "http://metadata.google.internal/computeMetadata/v1",
        "http://METADATA/computeMetadata",
        "http://100.100.100.200/latest",
        "http://[fd00:ec2::254]/latest",
        "http://[::1]:8265/api/jobs",
        "http://127.0.0.1:8265/api/jobs",
        "http://localhost.:8265/api/jobs",
        "http://0.0.0.0:8265/api/jobs",
        "http://2852039166/latest",
        "http://0xA9FEA9FE/latest",
        "a b",
        "s3://bucket/a\0b",
        "s3://bucket/" + "x" * 1024,
    ],
)
def test_secrets_metadata_and_paths_that_climb_are_refused_in_every_place(tmp_path: Path, uri: str) -> None:
    assert problems(tmp_path, uri) == EVERYWHERE


@pytest.mark.parametrize("revision", ["v1.2", "refs/pr/3", "0a1b2c", "feature-x/y_z"])
def test_a_revision_is_a_name_of_git(tmp_path: Path, revision: str) -> None:
    assert "spec.model.hub.revision" not in problems(tmp_path, "/data", revision)


@pytest.mark.parametrize("revision", ["../../other/repo", "a/../b", "/etc", "a//b", "a b", "."])
def test_a_revision_that_climbs_is_refused(tmp_path: Path, revision: str) -> None:
    assert "spec.model.hub.revision" in problems(tmp_path, "/data", revision)
