"""Files that tell whether they are whole: each carries the SHA-256 of its own bytes, and who reads it looks.

The digest stands inside the file, wherever its format has room for a word, as ``MARK`` and 64 hexadecimal digits; it
is of the file with zeros in place of those digits. So it stays with the file when that is moved, and any reader of the
format still reads it. torch's checkpoints carry a CRC-32 of every record instead (:func:`verify_archive`).
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.writing import whole

if TYPE_CHECKING:
    import pyarrow

MARK = "lightning-sora-sha256:"
#: What a writer puts once into a file, for :func:`seal` to fill in.
BLANK = MARK + "0" * 64
KEY = "_sha256"  # of it in a JSON object
FOLDER = 0x10  # MS-DOS's attribute of an archive's record
#: What a damaged archive makes zipfile raise.
UNZIPPING = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError, OverflowError,
    MemoryError, struct.error, lzma.LZMAError,
)  # fmt: skip


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, and its folder where that is missing.

    Raises:
        SoraError: the disk is full, or nothing can be written there.
    """
    with whole(path) as partial:
        partial.write_bytes(content)


def seal(content: bytes) -> bytes:
    """Fills in the digest of a file's content, at the last ``BLANK`` in it."""
    before, blank, after = content.rpartition(BLANK.encode())
    assert blank, "the writer of a format puts BLANK into it"
    return b"".join((before, MARK.encode(), hashlib.sha256(content).hexdigest().encode(), after))


def is_whole(content: bytes) -> bool | None:
    """Whether content is what was sealed; None if it carries no digest."""
    inside, sealed, start = memoryview(content), None, content.find(MARK.encode())
    while start >= 0:
        first = start + len(MARK)
        digest = hashlib.sha256(inside[:start])
        digest.update(BLANK.encode())
        digest.update(inside[first + 64 :])
        if digest.hexdigest().encode() == inside[first : first + 64]:
            return True
        sealed, start = False, content.find(MARK.encode(), first)
    return sealed


def verify(content: bytes, origin: object, remedy: str) -> bytes:
    """Returns content that is what was sealed, or that carries no digest: what others wrote is taken as it is.

    Args:
        origin: where it is from, for the message.
        remedy: what to do about damage.

    Raises:
        SoraError: it is damaged.
    """
    if is_whole(content) is False:
        raise SoraError(f"{origin} is damaged: its bytes are not those that were written (SHA-256); {remedy}")
    return content


def seal_json(value: Mapping[str, Any]) -> bytes:
    """A JSON object with its digest, as bytes of a file."""
    text = json.dumps({**value, KEY: BLANK}, indent=1, sort_keys=True, default=str)
    return seal(f"{text}\n".encode())


def read_json(content: bytes, origin: object, remedy: str) -> dict[str, Any]:
    """The object that :func:`seal_json` wrote, or one that carries no digest.

    Raises:
        SoraError: it is damaged, or no JSON object.
    """
    try:
        value = json.loads(verify(content, origin, remedy))
    except (ValueError, RecursionError) as problem:
        raise SoraError(f"{origin} is damaged: it is no JSON ({problem}); {remedy}") from problem
    if not isinstance(value, dict):
        raise SoraError(f"{origin} is damaged: it holds no JSON object; {remedy}")
    value.pop(KEY, None)
    return value


def parquet_bytes(table: pyarrow.Table) -> bytes:
    """A Parquet file with its digest among the file's own notes."""
    import pyarrow.parquet

    content = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(content, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: BLANK})
    return seal(content.getvalue())


def verify_archive(path: Path, remedy: str) -> None:
    """Compares every record of a checkpoint by ``torch.save`` with the CRC-32 beside it, which torch does not look at.

    A file that is no zip archive is left to its reader.

    Raises:
        SoraError: a record is damaged, or the archive is.
    """
    with path.open("rb") as file:
        begun = file.read(4) == b"PK\x03\x04"
        try:
            if not zipfile.is_zipfile(file):
                if not begun:
                    return
                raise zipfile.BadZipFile("its end is missing")
            archive = zipfile.ZipFile(file)
            damaged = None if begun else "at its beginning"
            for record in archive.infolist():
                # Of the two sizes zipfile believes the one, torch the other; torch alone reads nothing of a "folder".
                stored = record.compress_type == zipfile.ZIP_STORED
                if (stored and record.file_size != record.compress_size) or record.external_attr & FOLDER:
                    damaged = record.filename
            damaged = damaged or archive.testzip()
        except UNZIPPING as problem:
            raise SoraError(f"{path} is damaged or cut short ({' '.join(str(problem).split())}); {remedy}") from problem
    if damaged is not None:
        raise SoraError(f"{path} is damaged: its record {damaged} is not what was written (CRC-32); {remedy}")
