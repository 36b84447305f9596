"""TLS of the report endpoint: what is served, what follows a renewal, what is refused at start."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from slipway_api.references import FreshModel, TrainingModel
from slipway_api.run import ReportTarget, RunSpec
from slipway_api.trainjob import Checkpointing, Data, DataSource, Strategy, Training, Workers
from slipway_jobs.reporting import HttpTransport
from slipway_operator.config import ConfigError, ReportsTlsConfig
from slipway_operator.kube.health import HealthServer
from slipway_operator.serving_tls import ServingCertificate, read_ca


def write_pair(directory: Path, name: str) -> ReportsTlsConfig:
    """A self-signed certificate for 127.0.0.1, as NAME.crt and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    config = ReportsTlsConfig(cert_file=directory / f"{name}.crt", key_file=directory / f"{name}.key")
    config.cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    config.key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return config


def transport(url: str, ca_file: Path | None, directory: Path) -> HttpTransport:
    """What a run sends its reports with."""
    (directory / "token").write_text("token")
    target = ReportTarget(url=url, token_file=str(directory / "token"), ca_file=str(ca_file) if ca_file else None)
    run = RunSpec(
        namespace="team",
        name="job",
        uid="u",
        attempt=1,
        storage="/s",
        cache="/c",
        model=TrainingModel(fresh=FreshModel(hidden_size=8, layers=1, heads=1)),
        data=Data(sources=[DataSource(uri="python://stdlib")]),
        training=Training(steps=1),
        strategy=Strategy(),
        workers=Workers(),
        checkpoint=Checkpointing(),
        report=target,
    )
    return HttpTransport(target, run)


@pytest.fixture
def app() -> Iterator[web.Application]:
    async def accept(_: web.Request) -> web.Response:
        return web.json_response({"message": "accepted"})

    made = web.Application()
    made.router.add_post("/v1/runs/{tail:.*}", accept)
    yield made


async def test_a_run_reports_over_tls_to_the_ca_it_was_given_and_to_no_other(
    app: web.Application, tmp_path: Path
) -> None:
    config, other = write_pair(tmp_path, "ours"), write_pair(tmp_path, "other")
    server = HealthServer(app, tls=ServingCertificate(config).context)
    await server.start()
    try:
        assert server.url.startswith("https://")
        answers = [
            await asyncio.to_thread(transport(server.url, ca, tmp_path).post, b"{}")
            for ca in (config.cert_file, other.cert_file, None)
        ]
    finally:
        await server.stop()
    assert [answer.status for answer in answers] == [200, 0, 0]
    assert "certificate" in answers[1].message.lower()


async def test_a_renewed_certificate_is_served_without_a_restart(app: web.Application, tmp_path: Path) -> None:
    config = write_pair(tmp_path, "serving")
    certificate = ServingCertificate(config, period=0.02)
    server = HealthServer(app, tls=certificate.context)
    await server.start()
    follow = asyncio.create_task(certificate.follow())
    try:
        first = await served(server.url)
        config.cert_file.write_text("half a certifi")
        await asyncio.sleep(0.1)
        assert await served(server.url) == first, "a broken file leaves the old one"
        write_pair(tmp_path, "serving")
        async with asyncio.timeout(10):
            while await served(server.url) == first:
                pass
        assert not follow.done()
    finally:
        follow.cancel()
        await server.stop()


async def served(url: str) -> str:
    """The certificate that a new connection is shown."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


def test_what_cannot_be_served_is_refused_at_start(tmp_path: Path) -> None:
    one, two = write_pair(tmp_path, "one"), write_pair(tmp_path, "two")
    with pytest.raises(ConfigError, match="no usable pair"):
        ServingCertificate(ReportsTlsConfig(cert_file=one.cert_file, key_file=two.key_file))
    with pytest.raises(ConfigError, match="no usable pair"):
        ServingCertificate(ReportsTlsConfig(cert_file=tmp_path / "none", key_file=two.key_file))


def test_a_ca_file_without_a_certificate_is_refused_at_start(tmp_path: Path) -> None:
    assert read_ca(None) is None
    assert "BEGIN CERTIFICATE" in str(read_ca(write_pair(tmp_path, "ca").cert_file))
    (tmp_path / "empty").write_text("")
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"reports\.caFile"):
            read_ca(path)
