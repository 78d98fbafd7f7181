"""Tables of clips, whoever reads them: rows of CSV, JSON, JSON Lines and Parquet, and what their cells say."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sora.data.storage import Location, open_file
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.sealing import verify
from lightning_sora.texts import brief, decoded, parsed_json

SPLIT_COLUMN = "split"
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

Record = Mapping[str, Any]
LARGEST = 1 << 40  # number of frames or pixels
SHOWN = 12  # columns
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def content_of(place: Location) -> bytes:
    """All bytes of a file, which may be a URL.

    Raises:
        SoraError: there is none.
    """
    parent, _, name = str(place).rpartition("/")
    folder = parent or ("/" if str(place).startswith("/") else ".")
    try:
        with open_file(folder, name) as file:
            return file.read()
    except SoraError:
        raise
    except (OSError, ValueError) as problem:  # the second for a name that no file can have
        raise SoraError(f"{place}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from problem


def text_of(place: Location) -> str:
    """A text file, without byte-order marks.

    Raises:
        SoraError: there is none, or it is no text.
    """
    return decoded(content_of(place), place)


def records_of(place: Location) -> list[Record]:
    """The rows of a CSV, JSON Lines, JSON (a list of objects) or Parquet file.

    Raises:
        SoraError: none of these, or broken; the line is named.
    """
    suffix = Path(str(place)).suffix.lower()
    if suffix == ".parquet":
        return _parquet(place)
    text = text_of(place)
    if suffix == ".csv":
        return list(_csv(text, place))
    if suffix == ".jsonl":  # by line feeds alone: texts may hold other breaks
        lines = enumerate(text.split("\n"), start=1)
        return [_object(place, n, parsed_json(line, place, n)) for n, line in lines if line.strip()]
    found = parsed_json(text, place)
    if isinstance(found, Mapping) and isinstance(found.get("data"), list):
        found = found["data"]
    if not isinstance(found, list):
        raise SoraError(f"{place}: it must be a list of objects, not {type(found).__name__}")
    return [_object(place, count, row) for count, row in enumerate(found, start=1)]


def header_of(place: Location) -> list[str]:
    """The names of columns, from the first row; empty where there is none.

    Raises:
        SoraError: see :func:`records_of`.
    """
    if Path(str(place)).suffix.lower() == ".csv":
        try:
            return list(_table(text_of(place)).fieldnames or [])
        except csv.Error as problem:
            raise SoraError(f"{place}: not a table of comma-separated values ({problem})") from problem
    rows = records_of(place)
    return list(rows[0]) if rows else []


def _table(text: str) -> csv.DictReader[str]:
    return csv.DictReader(io.StringIO(text.lstrip("\r\n"), newline=""), strict=True)


def _csv(text: str, place: Location) -> Iterator[Record]:
    try:
        rows = list(_table(text))
    except csv.Error as problem:
        raise SoraError(f"{place}: not a table of comma-separated values ({problem})") from problem
    for count, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise SoraError(
                f"{place}, row {count}: it has more or fewer cells than the header; put captions with commas in quotes"
            )
        yield row


def _object(place: Location, count: int, row: Any) -> Record:
    if not isinstance(row, Mapping):
        raise SoraError(f"{place}, entry {count}: {brief(row)} must be an object in braces")
    return row


def _parquet(place: Location) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    content = verify(content_of(place), place, "write or copy it again")
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise SoraError(f"{place}: not a Parquet file ({problem})") from problem


def absent(value: Any) -> bool:
    """Whether a cell says nothing: null, empty, or the NaN that pandas writes where there is nothing."""
    return value is None or value == "" or value != value


def file_of(row: Record, columns: Sequence[str], where: str) -> str:
    """The file that a row names, by the first of the columns that says one, else by the first that is there.

    Raises:
        SoraError: it is no path.
    """
    there = [name for name in columns if name in row]
    value = row[next((name for name in there if not absent(row[name])), there[0])]
    if not isinstance(value, str) or not value.strip():
        raise SoraError(f"{where}: the file is {brief(value)}; it must be a path")
    return value.strip()


def captions_of(row: Record, columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The captions of a row, by the first of the columns that is there; none where the cell says nothing.

    Raises:
        SoraError: neither text nor a list of texts.
    """
    column = next(name for name in columns if name in row)
    return texts(row[column], where, column)


def texts(value: Any, where: str, column: str = "caption") -> tuple[str, ...]:
    """One caption or a list of them, in single spaces, empty ones left out.

    Raises:
        SoraError: anything else.
    """
    many = [one for one in (value if isinstance(value, list | tuple) else [value]) if not absent(one)]
    if not all(isinstance(one, str) for one in many):
        raise SoraError(f"{where}: {column!r} is {brief(value)}; it must be text, or a list of texts")
    found = tuple(text for text in (single_spaced(one) for one in many) if text)
    for text in found:
        if shown(text) != text:
            raise SoraError(f"{where}: {column!r} is {shown(text)!r}, with half a character in it; write it as UTF-8")
    return found


def single_spaced(text: str) -> str:
    """A text on one line, without byte-order marks."""
    return " ".join(text.replace("\ufeff", "").split())


def number(row: Record, column: str, where: str, kind: type = int) -> Any:
    """A positive number of a column; None where there is none.

    Raises:
        SoraError: no such number.
    """
    value: Any = row.get(column)
    if absent(value):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = 0.0
    if found != found:
        return None
    counts = kind is not float
    if not 0 < found < float("inf") or (counts and not 1 <= round(found) <= LARGEST):
        wanted = f"a positive number{f' from 1 to {LARGEST:,}' if found > 0 and counts else ''}"
        raise SoraError(f"{where}: {column!r} is {brief(value)}; it must be {wanted}")
    return round(found) if counts else kind(found)


def rate(row: Record, column: str, where: str, frames: int | None) -> float | None:
    """Frames per second of a column; None where there is none, and for a still, of which tables tell 0 or infinity.

    Raises:
        SoraError: no such number.
    """
    return None if frames == 1 else number(row, column, where, float)


def split_of(row: Record, where: str) -> str | None:
    """The split that a row names, if any.

    Raises:
        SoraError: an unknown one.
    """
    value = row.get(SPLIT_COLUMN)
    if absent(value):
        return None
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise SoraError(f"{where}: {SPLIT_COLUMN!r} is {brief(value)}; it must be one of {', '.join(SPLITS)}")
    return split


def require(place: Location, found: Sequence[str], groups: Sequence[Sequence[str]], accepted: str) -> None:
    """Raises SoraError unless there is a column of each group."""
    if not all(any(name in found for name in group) for group in groups):
        raise SoraError(f"{place}: the columns are {columns_in_words(found)}; {accepted}")


def columns_in_words(found: Sequence[object]) -> str:
    """The names of columns for a message, the first of many; and what else than commas seems to stand between them."""
    names = [brief(str(name))[1:-1] for name in found[:SHOWN]]
    more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    sign = next((sign for sign in SEPARATORS if len(found) == 1 and sign in str(found[0])), None)
    told = f", with {SEPARATORS[sign]} between them where commas must stand" if sign is not None else ""
    return f"{', '.join(names) or 'none'}{more}{told}"
