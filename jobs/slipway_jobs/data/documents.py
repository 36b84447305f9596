"""From files to documents, in bounded memory, with the file and the line in every complaint.

Formats
- text: a file is a document. Bytes that are not UTF-8 become U+FFFD, because a single bad byte must not end a run
  over a large corpus; a file with a NUL byte in its first 8 KiB is binary (or UTF-16) and is refused. A byte order
  mark is dropped.
- jsonl: a line is a document. JSON has to be UTF-8, so there a bad byte is an error. Blank lines are left out.
- parquet: a row is a document, read row group by row group.
A name that ends in .gz is decompressed on the way (text and jsonl).

Of a source that is a part of a split (split.py), or a sample (sample.py), only the documents of that part come.

`rows` reads the same files as rows of fields, for evaluations: a prompt needs more than one field of a row.

A text file above 16 MiB comes in pieces of about 8 MiB that are cut at the start of a line: byte-level tokenizers
start a new token there anyway. It is still one document.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

import orjson

from slipway_jobs.data.sources import Source, SourceFile
from slipway_jobs.errors import InfrastructureError, JobError, UserError

WHOLE_BELOW = 16 << 20  # bytes of text that are one piece
_READ = 8 << 20
_MAX_LINE = 256 << 20  # bytes: a longer "line" is not JSON lines
_PARQUET_ROWS = 256


class Row(NamedTuple):
    """One row of a source: its fields, and how errors name it. A text file is a row with the fields text and file."""

    fields: dict[str, Any]
    where: str  # file:line, file row 3, or the file


class Piece(NamedTuple):
    """Some text of a document, and whether the document ends here."""

    text: str
    ends: bool


def documents(sources: Iterable[Source]) -> Iterator[Piece]:
    """Every document of the sources, in order.

    Raises UserError DataUnreadable, DataBinary, DataMalformed, DataFieldMissing; InfrastructureError DataReadFailed,
    DataChanged.
    """
    for source in sources:
        for file in source.files:
            with _reading(source, file):
                yield from _READERS[source.format](source, file)
            file.check_unchanged()


def rows(sources: Iterable[Source]) -> Iterator[Row]:
    """Every row of the sources, in order, with all of its fields; `file` is the row's file where no field is named so.

    Raises UserError DataUnreadable, DataBinary, DataMalformed; InfrastructureError DataReadFailed, DataChanged.
    """
    for source in sources:
        for file in source.files:
            with _reading(source, file):
                yield from _ROW_READERS[source.format](source, file)
            file.check_unchanged()


@contextmanager
def _reading(source: Source, file: SourceFile) -> Iterator[None]:
    """Chains what decompressors, pyarrow and storage plugins throw to an error that names the file."""
    try:
        yield
    except JobError:
        raise
    except FileNotFoundError as error:
        raise InfrastructureError(
            "DataChanged", f"{source.field}.uri: {file.where} disappeared while the job read it"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            "DataUnreadable",
            f"{source.field}.uri: {file.where} cannot be decompressed ({error}); it is cut short or not gzip: "
            "write it anew",
        ) from error
    except Exception as error:
        raise InfrastructureError(
            "DataReadFailed", f"{source.field}.uri: reading {file.where} failed: {type(error).__name__}: {error}"
        ) from error


def _open(file: SourceFile) -> IO[bytes]:
    stream = file.open()
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream, mode="rb")) if file.relative.endswith(".gz") else stream


# --- text ---------------------------------------------------------------------------------------------------------


def _text(source: Source, file: SourceFile) -> Iterator[Piece]:
    with _open(file) as stream:
        head = stream.read(WHOLE_BELOW + 1)
        if b"\x00" in head[:8192]:
            raise UserError(
                "DataBinary",
                f"{source.field}.format: {file.where} is not UTF-8 text (it holds NUL bytes); leave it out with "
                "exclude, set the right format, or convert it",
            )
        if len(head) <= WHOLE_BELOW:
            if head:  # an empty .gz has a size above zero
                yield Piece(head.decode("utf-8-sig", errors="replace"), ends=True)
            return
        yield from _pieces(head, stream)


def _text_rows(source: Source, file: SourceFile) -> Iterator[Row]:
    text = "".join(piece.text for piece in _text(source, file))
    if text:
        yield Row({"text": text, "file": file.relative}, file.where)


def _pieces(head: bytes, stream: IO[bytes]) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    held = decoder.decode(head)
    while chunk := stream.read(_READ):
        cut = _cut(held)
        yield Piece(held[:cut], ends=False)
        held = held[cut:] + decoder.decode(chunk)
    yield Piece(held + decoder.decode(b"", final=True), ends=True)


def _cut(text: str) -> int:
    """Where to cut: between two lines, else between two words, else at the end.

    One lone newline or space stands there, with ink on both sides: the usual pre-tokenizers treat a run of white
    space at the end of a text otherwise than one before a word, so inside a run the pieces could give other tokens
    than the whole.
    """
    for separator, keep in (("\n", 1), (" ", 0)):
        position = len(text) - 1
        while (position := text.rfind(separator, 1, position)) > 0:
            if not text[position + 1].isspace() and not text[position - 1].isspace():
                return position + keep
    return len(text)


# --- jsonl --------------------------------------------------------------------------------------------------------


def _jsonl(source: Source, file: SourceFile) -> Iterator[Piece]:
    field = source.text_field
    for row, number in _json_objects(source, file):
        text = row.get(field)
        if type(text) is not str or not text:
            raise _field_missing(source, f"{file.where}:{number}", row, field)
        if source.takes_text(text):
            yield Piece(text, ends=True)


def _jsonl_rows(source: Source, file: SourceFile) -> Iterator[Row]:
    for row, number in _json_objects(source, file):
        if source.takes_row(row):
            yield Row({"file": file.relative, **row}, f"{file.where}:{number}")


def _json_objects(source: Source, file: SourceFile) -> Iterator[tuple[dict[str, Any], int]]:
    """Every object with the number of its line."""
    number = 0
    with _open(file) as stream:
        while line := stream.readline(_MAX_LINE + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > _MAX_LINE:
                raise _malformed(source, file, number, f"the line is longer than {_MAX_LINE >> 20} MiB")
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if not line.strip():
                    continue
                raise _malformed(source, file, number, f"not JSON ({error.msg}, column {error.colno})") from error
            if type(row) is not dict:
                raise _malformed(source, file, number, f"a JSON {_json_type(row)} where an object should be")
            yield row, number


def _malformed(source: Source, file: SourceFile, line: int, problem: str) -> UserError:
    return UserError(
        "DataMalformed",
        f"{source.field}.format: {file.where}:{line}: {problem}; each line of a jsonl file must be one JSON object "
        "(leave other files out with include or exclude)",
    )


def _field_missing(source: Source, where: str, row: dict[str, Any], field: str) -> UserError:
    if field not in row:
        names = ", ".join(sorted(map(repr, row))[:20]) or "none"
        problem = f"has no field {field!r} (its fields: {names}); set textField, or repair the row"
    elif row[field] == "":
        problem = f"has an empty field {field!r}; remove the row"
    else:
        problem = (
            f"has a {_json_type(row[field])} in field {field!r} where text should be; set textField, or repair the row"
        )
    return UserError("DataFieldMissing", f"{source.field}.textField: {where} {problem}")


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


# --- parquet ------------------------------------------------------------------------------------------------------


def _parquet(source: Source, file: SourceFile) -> Iterator[Piece]:
    import pyarrow as pa  # noqa: PLC0415 - 0.2 s that other formats need not pay

    field = source.text_field
    with _parquet_file(source, file) as table:
        schema = table.schema_arrow
        if field not in schema.names:
            raise UserError(
                "DataFieldMissing",
                f"{source.field}.textField: {file.where} has no column {field!r}; its columns: "
                f"{', '.join(map(repr, schema.names[:50]))}",
            )
        kind = schema.field(field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(
                "DataFieldMissing",
                f"{source.field}.textField: column {field!r} of {file.where} holds {kind}, not strings; "
                "name another column",
            )
        for row, number in _parquet_rows(source, file, table, [field]):
            text = row[field]
            if not text:
                raise _field_missing(source, f"{file.where} row {number}", row, field)
            if source.takes_text(text):
                yield Piece(text, ends=True)


def _parquet_as_rows(source: Source, file: SourceFile) -> Iterator[Row]:
    with _parquet_file(source, file) as table:
        for row, number in _parquet_rows(source, file, table, None):
            if source.takes_row(row):
                yield Row({"file": file.relative, **row}, f"{file.where} row {number}")


@contextmanager
def _parquet_file(source: Source, file: SourceFile) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    with file.open() as stream:
        try:
            table = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise UserError(
                "DataMalformed",
                f"{source.field}.format: {file.where} is not a parquet file, or is cut short ({error}); leave it out "
                "with include or exclude, or write it anew",
            ) from error
        yield table


def _parquet_rows(
    source: Source, file: SourceFile, table: Any, columns: list[str] | None
) -> Iterator[tuple[dict[str, Any], int]]:
    """Every row with its number, from 1."""
    import pyarrow as pa  # noqa: PLC0415

    number = 0
    try:
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield row, number
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(
            "DataMalformed", f"{source.field}.uri: {file.where} is damaged after row {number} ({error}); write it anew"
        ) from error


_READERS = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}
_ROW_READERS = {"text": _text_rows, "jsonl": _jsonl_rows, "parquet": _parquet_as_rows}
