"""Where the API server is and how to prove who we are.

Two ways lead to a `ConnectionConfig`. A plain kubeconfig (tokens, token files, client certificates, passwords) is
read here, without the kubernetes package, because that package costs 95 MiB and 0.7 s. Exec and auth-provider plugins
and the service account of a pod go through `kubernetes.aio.config`, which is imported only then. This file never
talks to the API server, and never writes a kubeconfig.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from slipway_operator.kube.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Auth(Protocol):
    """Supplies the headers that identify us; asked before every request, so it must be cheap."""

    async def headers(self) -> Mapping[str, str]:
        """The headers to send now."""

    async def refresh(self) -> bool:
        """Called after a 401; returns whether trying again with `headers()` could go better."""


@dataclass(frozen=True)
class ConnectionConfig:
    """All that a client needs to know about one API server."""

    server: str
    """Base URL, without a slash at its end."""
    auth: Auth
    tls: ssl.SSLContext | None = None
    """None for plain http."""
    namespace: str = "default"
    """The namespace that is meant when a person names none."""
    server_name: str | None = None
    """The name to expect in the server's certificate, where it is not the URL's."""
    proxy: str | None = None


class StaticAuth:
    """Headers that never change (none at all, a token, a password)."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self._headers = dict(headers or {})

    async def headers(self) -> Mapping[str, str]:
        """The same headers every time."""
        return self._headers

    async def refresh(self) -> bool:
        """Nothing to renew."""
        return False


class TokenFileAuth:
    """A bearer token in a file that somebody rotates (the kubelet does); read again once a minute and after a 401."""

    def __init__(self, path: Path, *, period: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._period = period
        self._clock = clock
        self._read_at = float("-inf")
        self._headers: dict[str, str] = {}

    async def headers(self) -> Mapping[str, str]:
        """The token as it last stood in the file; a file that cannot be read now keeps the last good token."""
        if self._clock() - self._read_at >= self._period:
            self._read()
        return self._headers

    async def refresh(self) -> bool:
        """Reads the file at once; True when it holds another token."""
        before = self._headers
        self._read()
        return self._headers != before

    def _read(self) -> None:
        try:
            token = self._path.read_text().strip()
        except OSError as error:
            if not self._headers:
                raise ConfigError(f"cannot read the token file {self._path}: {error.strerror}") from error
            token = ""
        self._read_at = self._clock()
        if token:
            self._headers = {"Authorization": f"Bearer {token}"}


class PluginAuth:
    """Credentials that `kubernetes.aio.config` obtains: exec plugins, auth providers."""

    def __init__(
        self,
        renew: Callable[[bool], Awaitable[str | None]],
        *,
        period: float = 60.0,
        floor: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`renew(rejected)` gives the Authorization header's value, or None; `rejected` tells that the last one failed.

        It runs once per `period` seconds, and after a 401 at most once per `floor` seconds: credentials that were
        withdrawn must not become a storm of plugin processes.
        """
        self._renew = renew
        self._period = period
        self._floor = floor
        self._clock = clock
        self._renewed_at = float("-inf")
        self._headers: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def headers(self) -> Mapping[str, str]:
        """The headers of the last renewal, after renewing them when they are due."""
        if self._clock() - self._renewed_at >= self._period:
            await self._renew_if_older_than(self._period, rejected=False)
        return self._headers

    async def refresh(self) -> bool:
        """Renews unless that was done a moment ago."""
        before = self._headers
        await self._renew_if_older_than(self._floor, rejected=True)
        return self._headers != before

    async def _renew_if_older_than(self, age: float, *, rejected: bool) -> None:
        async with self._lock:
            if self._clock() - self._renewed_at < age:
                return
            self._renewed_at = self._clock()
            value = await self._renew(rejected)
            self._headers = {"Authorization": value.strip()} if value else {}


async def load_config(kubeconfig: str | None = None, context: str | None = None) -> ConnectionConfig:
    """Finds the API server: the named kubeconfig, $KUBECONFIG, the pod's service account, else ~/.kube/config.

    Raises ConfigError when none of them can be used.
    """
    named = kubeconfig or os.environ.get("KUBECONFIG")
    if not named and context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return await _in_cluster()
    named = named or str(Path.home() / ".kube" / "config")
    files = [Path(part).expanduser() for part in named.split(os.pathsep) if part]
    merged = _Kubeconfig.read(files)
    chosen = merged.choose(context)
    if "exec" in chosen.user or "auth-provider" in chosen.user:
        return await _from_plugin(files, chosen)
    return ConnectionConfig(
        server=chosen.server,
        auth=_plain_auth(chosen),
        tls=_tls(chosen) if chosen.server.startswith("https:") else None,
        namespace=chosen.namespace,
        server_name=chosen.cluster.get("tls-server-name"),
        proxy=chosen.cluster.get("proxy-url"),
    )


@dataclass(frozen=True)
class _Choice:
    """One context with the cluster and the user that it names, and the folders that their relative paths start from."""

    context_name: str
    cluster: dict[str, Any]
    cluster_folder: Path
    user: dict[str, Any]
    user_folder: Path
    namespace: str

    @property
    def server(self) -> str:
        return str(self.cluster["server"]).rstrip("/")


@dataclass(frozen=True)
class _Kubeconfig:
    """Several kubeconfig files as one; as in kubectl, the first file that says something wins."""

    current_context: str | None
    sections: dict[str, dict[str, tuple[dict[str, Any], Path]]]
    files: tuple[Path, ...]

    @classmethod
    def read(cls, files: list[Path]) -> _Kubeconfig:
        current: str | None = None
        sections: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
        found = [file for file in files if file.is_file()]
        if not found:
            names = ", ".join(map(str, files))
            raise ConfigError(f"no kubeconfig at {names}: name one with --kubeconfig or in $KUBECONFIG")
        for file in found:
            try:
                document = yaml.safe_load(file.read_text())
                document = {} if document is None else document
                current = current or document.get("current-context")
                for section, entries in sections.items():
                    for entry in document.get(section) or ():
                        content = entry.get(section[:-1]) or {}
                        entries.setdefault(entry["name"], (content, file.parent))
            except (OSError, yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
                raise ConfigError(f"{file} is not a kubeconfig: {error}") from error
        return cls(current, sections, tuple(found))

    def choose(self, context: str | None) -> _Choice:
        name = context or self.current_context
        if not name:
            raise ConfigError("the kubeconfig has no current-context: name one with --context")
        chosen, _ = self._entry("contexts", name)
        cluster, cluster_folder = self._entry("clusters", str(chosen.get("cluster")))
        user: dict[str, Any] = {}
        user_folder = cluster_folder
        if chosen.get("user"):
            user, user_folder = self._entry("users", str(chosen["user"]))
        if "server" not in cluster:
            raise ConfigError(f"cluster {chosen.get('cluster')!r} of the kubeconfig has no server")
        if "as" in user:
            raise ConfigError(f"user {chosen['user']!r} of the kubeconfig impersonates, which is not supported")
        return _Choice(name, cluster, cluster_folder, user, user_folder, str(chosen.get("namespace") or "default"))

    def _entry(self, section: str, name: str) -> tuple[dict[str, Any], Path]:
        try:
            return self.sections[section][name]
        except KeyError:
            known = ", ".join(sorted(self.sections[section])) or "none"
            files = ", ".join(map(str, self.files))
            raise ConfigError(f"{section[:-1]} {name!r} is not in {files} (there: {known})") from None


def _plain_auth(choice: _Choice) -> Auth:
    user = choice.user
    if "tokenFile" in user:
        return TokenFileAuth(choice.user_folder / user["tokenFile"])
    if "token" in user:
        return StaticAuth({"Authorization": f"Bearer {str(user['token']).strip()}"})
    if "username" in user:
        pair = f"{user['username']}:{user.get('password', '')}".encode()
        return StaticAuth({"Authorization": "Basic " + base64.b64encode(pair).decode()})
    return StaticAuth()


def _tls(choice: _Choice) -> ssl.SSLContext:
    cluster, user = choice.cluster, choice.user
    try:
        if "certificate-authority-data" in cluster:
            authority = _decoded(cluster["certificate-authority-data"]).decode()
            tls = ssl.create_default_context(cadata=authority)
        elif "certificate-authority" in cluster:
            tls = ssl.create_default_context(cafile=choice.cluster_folder / cluster["certificate-authority"])
        else:
            tls = ssl.create_default_context()
        _relax(tls, verify=not cluster.get("insecure-skip-tls-verify"))
        _load_client_certificate(tls, user, choice.user_folder)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError, binascii.Error a ValueError
        raise ConfigError(f"certificates of context {choice.context_name!r} cannot be used: {error}") from error
    return tls


def _decoded(data: str) -> bytes:
    """Strict and never empty: for the ssl module an empty authority means "trust the whole world's"."""
    content = base64.b64decode("".join(data.split()), validate=True)
    if not content:
        raise ValueError("empty certificate data")
    return content


def _relax(tls: ssl.SSLContext, *, verify: bool) -> None:
    # Python 3.13 began to refuse authorities without a key identifier, which many clusters have and Go accepts.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE


def _load_client_certificate(tls: ssl.SSLContext, user: dict[str, Any], folder: Path) -> None:
    if not ("client-certificate" in user or "client-certificate-data" in user):
        return
    # The ssl module reads certificates from files only; these live for the length of one call, for our eyes only.
    with tempfile.TemporaryDirectory(prefix="slipway-") as scratch:
        paths: list[Path] = []
        for name in ("client-certificate", "client-key"):
            if f"{name}-data" in user:
                path = Path(scratch) / name
                path.touch(mode=0o600)
                path.write_bytes(_decoded(user[f"{name}-data"]))
            elif name in user:
                path = folder / user[name]
            else:
                raise ValueError(f"{name} is missing")
            paths.append(path)
        tls.load_cert_chain(paths[0], paths[1])


async def _from_plugin(files: list[Path], choice: _Choice) -> ConnectionConfig:
    from kubernetes.aio import client, config  # noqa: PLC0415 - 95 MiB that a plain kubeconfig must not cost

    settings = client.Configuration()
    try:
        loader = await config.load_kube_config(
            config_file=os.pathsep.join(map(str, files)),
            context=choice.context_name,
            client_configuration=settings,
            persist_config=False,
        )
    except (config.ConfigException, OSError, ValueError) as error:
        raise ConfigError(f"credentials of context {choice.context_name!r} cannot be obtained: {error}") from error
    if not (getattr(loader, "token", None) or getattr(loader, "cert_file", None)):
        raise ConfigError(
            f"the credential plugin of context {choice.context_name!r} gave neither token nor certificate"
        )

    tls = _plugin_tls(settings) if choice.server.startswith("https:") else None

    async def renew(rejected: bool) -> str | None:
        try:
            if "exec" not in choice.user:
                await loader._load_authentication()
            elif rejected:
                # The loader believes in the expiry that the plugin named; the server knows better.
                vars(loader).pop("exec_plugin_expiry", None)
                await loader.load_from_exec_plugin()
            elif hasattr(loader, "exec_plugin_expiry"):
                await loader.load_from_exec_plugin()  # runs the plugin only when what it gave is about to expire
        except (config.ConfigException, OSError, ValueError) as error:
            raise ConfigError(f"credentials of context {choice.context_name!r} cannot be renewed: {error}") from error
        certificate = getattr(loader, "cert_file", None)
        if tls is not None and certificate:
            tls.load_cert_chain(certificate, loader.key_file)  # holds for connections from now on
        return getattr(loader, "token", None)

    return ConnectionConfig(
        server=choice.server,
        auth=PluginAuth(renew),
        tls=tls,
        namespace=choice.namespace,
        server_name=choice.cluster.get("tls-server-name"),
        proxy=choice.cluster.get("proxy-url"),
    )


def _plugin_tls(settings: Any) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    _relax(tls, verify=settings.verify_ssl)
    if settings.cert_file:
        tls.load_cert_chain(settings.cert_file, settings.key_file)
    return tls


async def _in_cluster() -> ConnectionConfig:
    from kubernetes.aio import client, config  # noqa: PLC0415 - see _from_plugin

    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except (config.ConfigException, OSError) as error:
        raise ConfigError(f"the pod's service account cannot be used: {error}") from error
    return ConnectionConfig(
        server=settings.host,
        auth=TokenFileAuth(SERVICE_ACCOUNT / "token"),
        tls=_plugin_tls(settings),
        namespace=namespace or "default",
    )
