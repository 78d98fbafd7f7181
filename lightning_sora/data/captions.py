"""Captions and splits that lie beside video files: ``metadata.*`` tables and ``.txt`` sidecars."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError

FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("text", "caption")  # the first that is there is used
SPLIT_COLUMN = "split"
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Note:
    """What a table says of one file."""

    caption: str
    split: str | None


def read_tables(root: Path, tables: Sequence[Path], files: set[str]) -> dict[str, Note]:
    """Reads every ``metadata.*`` under a folder (the VideoFolder convention).

    Args:
        tables: their paths; the file names inside are relative to the table's own folder.
        files: the ids (paths relative to ``root``, with slashes) that exist.

    Returns:
        id -> note, for the files that are listed.

    Raises:
        SoraError: unreadable table; wrong columns; a file that is listed twice or does not exist;
            a caption that is no text; an unknown split.
    """
    notes: dict[str, Note] = {}
    for table in tables:
        for number, row in enumerate(_rows(table), start=1):
            where = f"{table}, row {number}"
            clip_id = _identity(root, table, _text(row, FILE_COLUMN, where))
            if clip_id not in files:
                raise SoraError(
                    f"{where}: {row[FILE_COLUMN]!r} is not among the videos and images under {root}; "
                    "add the file, correct its name, or remove the row"
                )
            if clip_id in notes:
                raise SoraError(f"{where}: {row[FILE_COLUMN]!r} is listed a second time; keep one row for each file")
            column = next(c for c in CAPTION_COLUMNS if c in row)
            notes[clip_id] = Note(_text(row, column, where), split_of(row, where))
    return notes


def read_sidecar(media: Path) -> str | None:
    """The text of ``clip.txt`` beside ``clip.mp4``, its white space made single spaces; None if there is none.

    Raises:
        SoraError: the text is not UTF-8.
    """
    path = media.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as problem:
        raise SoraError(f"{path}: not UTF-8 text ({problem.reason}); save it as UTF-8") from problem


def _identity(root: Path, table: Path, name: str) -> str:
    parts: list[str] = list(table.parent.relative_to(root).parts)
    for part in name.replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _rows(table: Path) -> Sequence[Mapping[str, Any]]:
    """The rows, each with the file column and a caption column for certain."""
    try:
        rows = _READERS[table.suffix](table)
    except UnicodeDecodeError as problem:
        raise SoraError(f"{table}: not UTF-8 text ({problem.reason}); save it as UTF-8") from problem
    for number, row in enumerate(rows, start=1):
        if FILE_COLUMN not in row or not any(column in row for column in CAPTION_COLUMNS):
            raise SoraError(
                f"{table}, row {number}: the columns are {', '.join(map(str, row)) or 'none'}; "
                f"needed are {FILE_COLUMN!r} and {' or '.join(map(repr, CAPTION_COLUMNS))}, "
                f"and {SPLIT_COLUMN!r} ({', '.join(SPLITS)}) may be there"
            )
    return rows


def _csv(table: Path) -> Sequence[Mapping[str, Any]]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        try:
            rows = list(csv.DictReader(lines, strict=True))
        except csv.Error as problem:
            raise SoraError(f"{table}: not a table of comma-separated values ({problem})") from problem
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise SoraError(
                f"{table}, row {number}: it has more or fewer cells than the header; put captions with commas in quotes"
            )
    return rows


def _jsonl(table: Path) -> Sequence[Mapping[str, Any]]:
    rows = []
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as problem:
                raise SoraError(f"{table}, line {number}: not JSON ({problem.msg})") from problem
            if not isinstance(row, dict):
                raise SoraError(f"{table}, line {number}: {line.strip()[:60]!r} must be an object in braces")
            rows.append(row)
    return rows


def _parquet(table: Path) -> Sequence[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(table).names
        wanted = [n for n in names if n in (FILE_COLUMN, *CAPTION_COLUMNS, SPLIT_COLUMN)]
        rows = pyarrow.parquet.read_table(table, columns=wanted).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise SoraError(f"{table}: not a Parquet file ({problem})") from problem
    # The message about missing columns names those that are there.
    return rows if {FILE_COLUMN} < set(wanted) else [dict.fromkeys(names)] * min(1, len(rows))


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row[column]
    if not isinstance(value, str) or (column == FILE_COLUMN and not value.strip()):
        raise SoraError(f"{where}: {column!r} is {value!r}; it must be text")
    return value.strip()


def split_of(row: Mapping[str, Any], where: str) -> str | None:
    """The split that a row names, if any.

    Raises:
        SoraError: an unknown one.
    """
    value = row.get(SPLIT_COLUMN)
    if value is None or value == "":
        return None
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise SoraError(f"{where}: {SPLIT_COLUMN!r} is {value!r}; it must be one of {', '.join(SPLITS)}")
    return split
