"""The certificate of the report endpoint, and its renewal without a restart.

Whoever issues certificates (cert-manager, a person) replaces the files while the operator runs. New connections get the
new certificate; those that are open keep what they began with. A pair that does not load is logged and the old one
serves on. Nothing here makes a certificate.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from slipway_operator.config import ConfigError, ReportsTlsConfig

log = logging.getLogger(__name__)


class ServingCertificate:
    """A TLS server context that follows its two files."""

    def __init__(self, config: ReportsTlsConfig, *, period: float = 30.0) -> None:
        """Loads the pair. `period`: seconds between two looks at the files. Raises ConfigError."""
        self._cert, self._key = config.cert_file, config.key_file
        self._period = period
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded = b""
        try:
            self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"reports.tls: {self._cert} and {self._key} are no usable pair: {error}") from error

    async def follow(self) -> None:
        """Looks at the files again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            try:
                if self._load():
                    log.info("the report endpoint serves with a new certificate (%s)", self._cert)
            except (OSError, ssl.SSLError) as error:  # half-written: the next look finds the rest
                log.warning("reports.tls: %s is not usable, the old certificate stays: %s", self._cert, error)

    def _load(self) -> bool:
        content = self._cert.read_bytes() + self._key.read_bytes()
        if content == self._loaded:
            return False
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        probe.load_cert_chain(self._cert, self._key)  # a pair that does not match must not touch the one in use
        self.context.load_cert_chain(self._cert, self._key)
        self._loaded = content
        return True


def read_ca(path: Path | None) -> str | None:
    """The CA bundle that runs get. Raises ConfigError when the file holds none."""
    if path is None:
        return None
    try:
        text = path.read_text()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"reports.caFile: {path} holds no CA certificate: {error}") from error
    return text
