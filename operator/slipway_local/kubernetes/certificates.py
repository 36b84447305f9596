"""The certificates and keys of one control plane: made once, kept in its directory, renewed before they expire.

There are two authorities. One signs the API server's certificate and everybody who may talk to it; the other signs
etcd's and the API server's as etcd's only client, so that nobody who may use the API can go round it to the database.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from slipway_local.processes import write_private

_VALID = timedelta(days=3650)
_RENEW_BEFORE = timedelta(days=30)
_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The files of a certificate and its key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates with a key that stands in `directory` as `<name>.crt` and `<name>.key`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self.pair = KeyPair(directory / f"{name}.crt", directory / f"{name}.key")
        if not _fresh(self.pair):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"slipway {name}")])
            builder = (
                _builder(subject, subject, key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(sign=True), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            )
            _write(self.pair, builder.sign(key, hashes.SHA256()), key)
        self._certificate = x509.load_pem_x509_certificate(self.pair.certificate.read_bytes())
        loaded = serialization.load_pem_private_key(self.pair.key.read_bytes(), password=None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded

    def server(self, name: str) -> KeyPair:
        """A certificate for a server on loopback, which may also be a client of its peers (etcd asks for both)."""
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in ("localhost", *_SERVICE_NAMES)]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        return self._signed(
            name,
            name,
            (),
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            x509.SubjectAlternativeName(names),
        )

    def client(self, file_name: str, user: str, groups: tuple[str, ...] = ()) -> KeyPair:
        """A certificate that says who a client is: Kubernetes reads user and groups from its subject."""
        return self._signed(file_name, user, groups, [ExtendedKeyUsageOID.CLIENT_AUTH], None)

    def _signed(
        self,
        file_name: str,
        user: str,
        groups: tuple[str, ...],
        usages: list[x509.ObjectIdentifier],
        names: x509.SubjectAlternativeName | None,
    ) -> KeyPair:
        pair = KeyPair(self._directory / f"{file_name}.crt", self._directory / f"{file_name}.key")
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, user),
            ]
        )
        if _fresh(pair, self._certificate, subject):
            return pair
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        _write(pair, builder.sign(self._key, hashes.SHA256()), key)
        return pair


def signing_key(path: Path) -> Path:
    """The private key that signs service account tokens; made when it is not there."""
    if not path.exists():
        write_private(path, _pem(ec.generate_private_key(ec.SECP256R1())))
    return path


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _VALID)
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _fresh(pair: KeyPair, issuer: x509.Certificate | None = None, subject: x509.Name | None = None) -> bool:
    """Whether the files hold a certificate that is good for a while, from this issuer and for this subject."""
    try:
        found = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        if issuer is not None:
            found.verify_directly_issued_by(issuer)
    except (OSError, ValueError, TypeError, InvalidSignature):  # absent, damaged or of another authority: made anew
        return False
    same = subject is None or found.subject == subject
    return same and pair.key.exists() and found.not_valid_after_utc > datetime.now(UTC) + _RENEW_BEFORE


def _write(pair: KeyPair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    write_private(pair.key, _pem(key))
    write_private(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # Kubernetes reads a service account key in SEC 1 form only, not in PKCS 8.
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(encoding, form, serialization.NoEncryption())
