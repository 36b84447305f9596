"""A small HTTP/1.1 client for measurements: connections that stay open, and no more work for a response than it takes.

A client library costs as much as the server that is measured. This one reads what Slipway, uvicorn and HAProxy send.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Response:
    """Status, headers with small letters, and the body; seconds to its first byte of text and to its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    first: float
    whole: float

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection to the server of a URL, opened when it is first used and again after the server has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def request(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The bytes of a request, for `send`."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{'GET' if body is None else 'POST'} {self._path}{path} HTTP/1.1\r\nHost: {self._host}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return head.encode() + b"\r\n" + content

    async def send(self, request: bytes, limit: float = 120) -> Response:
        """The response. Raises OSError, TimeoutError, EOFError."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(limit):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                writer.write(request)
                status, headers = await _head(reader)
                body, first = bytearray(), 0.0
                async for piece in _body(reader, headers):
                    first = first or time.perf_counter() - started
                    body += piece
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return Response(status, headers, bytes(body), first, time.perf_counter() - started)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(lines[0].split()[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") != "chunked":
        if length := int(headers.get("content-length", 0)):
            yield await reader.readexactly(length)
        return
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
