"""Where a document stands among all documents: a hash of its content, evenly spread. Splits and samples cut there."""

from __future__ import annotations

import hashlib

RANGE = 1 << 64


def place(salt: str, content: str) -> int:
    """The place of the document with that SHA-256 (hexadecimal), from 0 to below RANGE. Each salt gives another one."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{content}".encode()).digest()[:8])


def content_of(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal. Lone surrogates, which JSON can bring, are hashed as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
