"""Finding the API server and proving who we are."""

from __future__ import annotations

import base64
import json
import os
import ssl
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_operator.kube.config import PluginAuth, StaticAuth, TokenFileAuth, load_config
from slipway_operator.kube.errors import ConfigError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x -keyout k.pem -out c.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


def write(path: Path, user: dict[str, Any], cluster: dict[str, Any] | None = None, name: str = "c") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": f"of-{name}"}}],
        "clusters": [{"name": name, "cluster": cluster or {"server": "http://127.0.0.1:1234/"}}],
        "users": [{"name": name, "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("user", "header"),
    [
        ({"token": "secret\n"}, "Bearer secret"),
        ({"token": "ignored", "tokenFile": "token"}, "Bearer from-file"),
        ({"username": "u", "password": "p"}, "Basic " + b64(b"u:p")),
        ({}, None),
    ],
)
async def test_plain_credentials(tmp_path: Path, user: dict[str, Any], header: str | None) -> None:
    (tmp_path / "token").write_text("from-file\n")
    config = await load_config(write(tmp_path / "config", user))
    assert (await config.auth.headers()).get("Authorization") == header
    assert (config.server, config.namespace, config.tls) == ("http://127.0.0.1:1234", "of-c", None)


async def test_certificates_from_data_and_from_files(tmp_path: Path, certificates: Path) -> None:
    certificate, key = (certificates / "c.pem").read_bytes(), (certificates / "k.pem").read_bytes()
    cluster = {"server": "https://h", "certificate-authority-data": b64(certificate), "tls-server-name": "x"}
    user = {"client-certificate-data": b64(certificate), "client-key-data": b64(key)}
    inline = await load_config(write(tmp_path / "inline", user, cluster))
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    cluster = {"server": "https://h", "certificate-authority": "c.pem"}
    user = {"client-certificate": "c.pem", "client-key": "k.pem"}
    files = await load_config(write(tmp_path / "files", user, cluster))
    for config in (inline, files):
        assert config.tls is not None
        assert config.tls.verify_mode == ssl.CERT_REQUIRED
        assert len(config.tls.get_ca_certs()) == 1
    assert inline.server_name == "x"
    insecure = {"server": "https://h", "insecure-skip-tls-verify": True}
    tls = (await load_config(write(tmp_path / "insecure", {}, insecure))).tls
    assert tls is not None
    assert tls.verify_mode == ssl.CERT_NONE


async def test_kubeconfig_files_are_merged_as_kubectl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "a", {"token": "a"}, name="one")
    second = write(tmp_path / "b", {"token": "b"}, name="two")
    monkeypatch.setenv("KUBECONFIG", f"{first}{os.pathsep}{second}{os.pathsep}{tmp_path / 'absent'}")
    assert (await load_config()).namespace == "of-one"
    assert (await (await load_config(context="two")).auth.headers())["Authorization"] == "Bearer b"
    assert (await load_config(second)).namespace == "of-two"
    monkeypatch.delenv("KUBECONFIG")
    write(tmp_path / "home" / ".kube" / "config", {}, name="home")
    assert (await load_config()).namespace == "of-home"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no kubeconfig at"),
        ("{]", "is not a kubeconfig"),
        ("[]", "is not a kubeconfig"),
        ("{}", "no current-context"),
        ("current-context: x", "context 'x' is not in"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: y}}]", "cluster 'y' is not in"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: y}}]\nclusters: [{name: y}]", "has no server"),
    ],
)
async def test_a_bad_kubeconfig_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        await load_config(str(path))
    assert str(path) in str(caught.value) or "kubeconfig" in str(caught.value)


async def test_bad_certificates_and_impersonation_are_refused(tmp_path: Path) -> None:
    https = {"server": "https://h"}
    for user, cluster in (
        ({}, https | {"certificate-authority-data": "!!"}),
        ({}, https | {"certificate-authority-data": ""}),
        ({}, https | {"certificate-authority": "absent.pem"}),
        ({"client-certificate-data": b64(b"junk")}, https),
    ):
        with pytest.raises(ConfigError, match="cannot be used"):
            await load_config(write(tmp_path / "config", user, cluster))
    with pytest.raises(ConfigError, match="impersonates"):
        await load_config(write(tmp_path / "config", {"as": "admin"}))


async def test_a_rotated_token_file_is_read_again(tmp_path: Path) -> None:
    now, path = 0.0, tmp_path / "token"
    path.write_text("one")
    auth = TokenFileAuth(path, clock=lambda: now)
    assert await auth.headers() == {"Authorization": "Bearer one"}
    path.write_text("two")
    assert await auth.headers() == {"Authorization": "Bearer one"}
    assert await auth.refresh()  # after a 401
    assert await auth.headers() == {"Authorization": "Bearer two"}
    assert not await auth.refresh()
    path.unlink()  # in the middle of a rotation
    now = 61.0
    assert await auth.headers() == {"Authorization": "Bearer two"}
    path.write_text("three")
    now = 122.0
    assert await auth.headers() == {"Authorization": "Bearer three"}
    with pytest.raises(ConfigError, match="token file"):
        await TokenFileAuth(tmp_path / "absent").headers()


async def test_withdrawn_credentials_are_no_storm_of_plugins() -> None:
    now, calls = 0.0, []

    async def renew(rejected: bool) -> str:
        calls.append(rejected)
        return f"Bearer {len(calls)}"

    auth = PluginAuth(renew, clock=lambda: now)
    for _ in range(5):
        assert await auth.headers() == {"Authorization": "Bearer 1"}
    for _ in range(100):
        await auth.refresh()
    assert calls == [False]
    now = 11.0
    assert await auth.refresh()
    assert not await auth.refresh()
    assert calls == [False, True]
    now = 75.0
    assert await auth.headers() == {"Authorization": "Bearer 3"}
    assert not await StaticAuth().refresh()


async def test_an_exec_plugin_is_run_and_run_again_after_a_401(tmp_path: Path) -> None:
    script = tmp_path / "plugin"
    script.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import json, pathlib
            count = pathlib.Path({str(tmp_path / "count")!r})
            number = int(count.read_text()) + 1 if count.exists() else 1
            count.write_text(str(number))
            print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                               "status": {{"token": f"t{{number}}", "expirationTimestamp": "2999-01-01T00:00:00Z"}}}}))
            """
        )
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}
    config = await load_config(write(tmp_path / "config", user))
    assert (await config.auth.headers())["Authorization"] == "Bearer t1"
    auth = config.auth
    assert isinstance(auth, PluginAuth)
    auth._floor = 0.0
    assert await auth.refresh()
    assert (await auth.headers())["Authorization"] == "Bearer t2"


async def test_an_exec_plugin_that_fails_is_an_error_at_once(tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "false"}}
    with pytest.raises(ConfigError, match="context 'c'"):
        await load_config(write(tmp_path / "config", user))


async def test_the_service_account_of_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Path
) -> None:
    from kubernetes.aio.config import incluster_config  # noqa: PLC0415

    (tmp_path / "token").write_text("pod-token")
    (tmp_path / "namespace").write_text("slipway-system")
    (tmp_path / "ca.crt").write_bytes((certificates / "c.pem").read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("slipway_operator.kube.config.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config.load_incluster_config, "__defaults__", (None, True))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    config = await load_config()
    assert (config.server, config.namespace) == ("https://[fd00::1]:443", "slipway-system")
    assert (await config.auth.headers())["Authorization"] == "Bearer pod-token"
    (tmp_path / "token").write_text("rotated")
    assert await config.auth.refresh()
    monkeypatch.setattr("slipway_operator.kube.config.SERVICE_ACCOUNT", tmp_path / "absent")
    with pytest.raises(ConfigError, match="service account"):
        await load_config()


def test_a_plain_kubeconfig_does_not_cost_the_kubernetes_package(tmp_path: Path) -> None:
    path = write(tmp_path / "config", {"token": "t"})
    program = f"""
import asyncio, json, sys
from slipway_operator.kube import client, config, controller, manager, reflector
asyncio.run(config.load_config({path!r}))
status = dict(line.split(":", 1) for line in open("/proc/self/status")) if sys.platform == "linux" else {{}}
print(json.dumps([sorted(m for m in sys.modules if m.split(".")[0] in ("kubernetes", "torch", "ray")),
                  int(status.get("VmRSS", "0").split()[0])]))
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    modules, resident_kib = json.loads(output.stdout)
    assert modules == []
    assert resident_kib < 80 * 1024
