"""Token shards: one flat stream of token ids per split, in files of bounded size that are memory-mapped.

Documents follow each other in source order, each ended by the tokenizer's end-of-text id. There is no padding and no
sequence length in the files, so jobs that differ only in sequence length share them. Ids are little-endian uint16
where the vocabulary allows it, else uint32.

Encoding runs in the tokenizers library's own threads, without the interpreter lock, while this process reads the next
documents and writes the last ids. At most two batches are under way, which bounds memory to about 0.3 GB.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway_jobs.data.cache import Entry
from slipway_jobs.data.documents import Piece
from slipway_jobs.errors import UserError

KIND = "tokens"
FORMAT = 1
SHARD_TOKENS = 64 << 20
_BATCH_BYTES = 1 << 20  # characters handed to the encoder at once: enough for all cores, small enough to overlap
_BATCH_PIECES = 4096
_PROGRESS_SECONDS = 2.0

Ids = npt.NDArray[np.int64]


# --- writing ------------------------------------------------------------------------------------------------------


def write_shards(
    pieces: Iterable[Piece],
    backend: Any,
    *,
    eos_id: int,
    vocab_size: int,
    directory: Path,
    progress: Callable[[str], None],
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Encode every document into `directory` and return the meta of the cache entry."""
    dtype = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
    writer = _ShardWriter(directory, dtype, shard_tokens)
    text_bytes = count = 0
    started = said = time.monotonic()
    for ids, size, ended in _encoded(pieces, backend, eos_id):
        writer.write(ids)
        text_bytes += size
        count += ended
        now = time.monotonic()
        if now - said >= _PROGRESS_SECONDS:
            said = now
            rate = text_bytes / (now - started) / 1e6
            progress(f"tokenized {text_bytes / 1e6:,.0f} MB of text, {writer.tokens:,} tokens ({rate:.1f} MB/s)")
    writer.close()
    return {
        "dtype": dtype.name,
        "tokens": writer.tokens,
        "documents": count,
        "textBytes": text_bytes,
        "shardTokens": writer.sizes,
        "eosId": eos_id,
    }


class _ShardWriter:
    """Appends ids to tokens-00000.bin and so on, each of exactly `shard_tokens` ids but the last."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._directory = directory
        self._dtype = dtype
        self._limit = shard_tokens
        self._stream: Any = None
        self.sizes: list[int] = []

    @property
    def tokens(self) -> int:
        return sum(self.sizes)

    def write(self, ids: list[int]) -> None:
        array = np.array(ids, dtype=self._dtype)
        while len(array):
            if self._stream is None or self.sizes[-1] == self._limit:
                self.close()
                self._stream = (self._directory / shard_name(len(self.sizes))).open("wb")
                self.sizes.append(0)
            part = array[: self._limit - self.sizes[-1]]
            self._stream.write(part.data)
            self.sizes[-1] += len(part)
            array = array[len(part) :]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def shard_name(number: int) -> str:
    """File name of the shard with that number, from 0."""
    return f"tokens-{number:05d}.bin"


def _encoded(pieces: Iterable[Piece], backend: Any, eos_id: int) -> Iterator[tuple[list[int], int, int]]:
    """(ids with end marks, bytes of text, documents ended) per batch, in order, encoding ahead by two batches."""
    pending: deque[tuple[Future[list[Any]], list[Piece]]] = deque()

    def finish() -> tuple[list[int], int, int]:
        future, batch = pending.popleft()
        ids: list[int] = []
        for encoding, piece in zip(future.result(), batch, strict=True):
            ids += encoding.ids
            if piece.ends:
                ids.append(eos_id)
        size = sum(len(piece.text.encode()) for piece in batch)
        return ids, size, sum(piece.ends for piece in batch)

    with ThreadPoolExecutor(2, thread_name_prefix="encode") as pool:
        for batch in _batches(pieces):
            texts = [piece.text for piece in batch]
            pending.append((pool.submit(backend.encode_batch_fast, texts, add_special_tokens=False), batch))
            if len(pending) > 2:
                yield finish()
        while pending:
            yield finish()


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenDataset:
    """A stream of tokens on disk, read as sequences. Cheap to make and to pickle: files are mapped at first use."""

    directory: Path
    dtype: str
    shard_tokens: tuple[int, ...]
    documents: int
    text_bytes: int
    digest: str
    pad_id: int
    field: str = "data.sources"  # what errors name

    @classmethod
    def of(cls, entry: Entry, *, pad_id: int, field: str) -> TokenDataset:
        """From its cache entry."""
        meta = entry.meta
        return cls(
            directory=entry.path,
            dtype=str(meta["dtype"]),
            shard_tokens=tuple(int(size) for size in meta["shardTokens"]),
            documents=int(meta["documents"]),
            text_bytes=int(meta["textBytes"]),
            digest=entry.digest,
            pad_id=pad_id,
            field=field,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memmap is a copy of the whole file.
        return {name: value for name, value in self.__dict__.items() if name not in ("_maps", "_starts")}

    def __len__(self) -> int:
        """Tokens in the stream."""
        return sum(self.shard_tokens)

    @cached_property
    def _maps(self) -> list[np.memmap[Any, Any]]:
        return [
            np.memmap(
                self.directory / shard_name(number),
                dtype=np.dtype(self.dtype).newbyteorder("<"),
                mode="r",
                shape=(size,),
            )
            for number, size in enumerate(self.shard_tokens)
        ]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.cumsum((0, *self.shard_tokens), dtype=np.int64)

    def tokens(self, start: int, stop: int) -> Ids:
        """A copy of the ids [start, stop) of the stream, int64. Raises IndexError outside of it."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens [{start}, {stop}) of {len(self)}")
        out = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            shard = int(np.searchsorted(self._starts, position, side="right")) - 1
            offset = position - int(self._starts[shard])
            part = self._maps[shard][offset : offset + stop - position]
            out[position - start : position - start + len(part)] = part
            position += len(part)
        return out

    def n_sequences(self, sequence_length: int) -> int:
        """Training sequences of that many tokens: consecutive blocks, the short rest at the end left out.

        Raises UserError DataTooShort where there is not even one.
        """
        count = len(self) // sequence_length
        if count == 0:
            raise UserError(
                "DataTooShort",
                f"{self.field}: the documents have {len(self)} tokens together, less than one sequence of "
                f"data.sequenceLength {sequence_length}; add documents, or set data.sequenceLength to at most "
                f"{len(self)}",
            )
        return count

    def sequence(self, index: int, sequence_length: int) -> Ids:
        """Sequence `index`, [sequence_length] int64. The label shift happens inside it: it predicts sequence_length -
        1 tokens."""
        return self.tokens(index * sequence_length, (index + 1) * sequence_length)

    def sequences(self, indices: Iterable[int] | Ids, sequence_length: int) -> Ids:
        """A batch of sequences, [len(indices), sequence_length] int64."""
        rows = [self.sequence(int(index), sequence_length) for index in indices]
        return np.stack(rows) if rows else np.empty((0, sequence_length), dtype=np.int64)
