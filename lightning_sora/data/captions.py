"""Captions and splits that lie beside video files: ``metadata.*`` tables and ``.txt`` sidecars."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_sora.data.records import (
    SPLIT_COLUMN,
    SPLITS,
    captions_of,
    file_of,
    records_of,
    require,
    single_spaced,
    split_of,
)
from lightning_sora.data.storage import local_name
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.texts import read_text

FILE_COLUMNS = ("file_name",)
CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first that is there is used
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NEEDS = (
    f"needed are {FILE_COLUMNS[0]!r} and {' or '.join(map(repr, CAPTION_COLUMNS))}, and {SPLIT_COLUMN!r} "
    f"({', '.join(SPLITS)}) may be there"
)


@dataclass(frozen=True)
class Note:
    """What lies beside one file.

    Attributes:
        captions: all of equal standing; none where nothing is said.
    """

    captions: tuple[str, ...]
    split: str | None = None


def read_tables(root: Path, tables: Sequence[Path], files: Iterable[str]) -> dict[str, Note]:
    """Reads every ``metadata.*`` under a folder (the VideoFolder convention).

    Args:
        tables: their paths; the file names inside are relative to the table's own folder.
        files: the ids (paths relative to ``root``, with slashes) that exist.

    Returns:
        id -> note, for the files that are listed.

    Raises:
        SoraError: unreadable table; wrong columns; a file that is listed twice, does not exist or lies elsewhere;
            a caption that is no text; an unknown split.
    """
    notes: dict[str, Note] = {}
    known = set(files)
    for table in tables:
        for number, row in enumerate(records_of(table), start=1):
            where = f"{table}, row {number}"
            require(where, list(row), [FILE_COLUMNS, CAPTION_COLUMNS], NEEDS)
            name = file_of(row, FILE_COLUMNS, where)
            clip_id = identity(root, table.parent, name)
            if clip_id is None:
                raise SoraError(
                    f"{where}: {shown(name)!r} lies outside of {root}, which is all that the source 'folder' reads; "
                    f"move the file there, remove the row, or take the table itself: data.source=manifest"
                )
            if clip_id not in known:
                raise SoraError(
                    f"{where}: {shown(name)!r} is not among the videos and images under {root}; "
                    "add the file, correct its name, or remove the row"
                )
            if clip_id in notes:
                raise SoraError(f"{where}: {shown(name)!r} is listed a second time; keep one row for each file")
            notes[clip_id] = Note(captions_of(row, CAPTION_COLUMNS, where), split_of(row, where))
    return notes


def identity(root: Path, folder: Path, name: str) -> str | None:
    """The id of a file that a table in ``folder`` names: its path from ``root``; None if it lies elsewhere."""
    path = os.path.abspath(folder / local_name(folder, name))
    for seen in (os.path.abspath, os.path.realpath):  # the second for a path that names the folder by another way
        base = seen(root).rstrip("/") + "/"
        if seen(path).startswith(base):
            return shown(seen(path).removeprefix(base))
    return None


def read_sidecar(path: Path | None) -> tuple[str, ...]:
    """The text that lies beside a file, on one line; none if there is none, or nothing in it.

    Raises:
        SoraError: it cannot be read, or is no text.
    """
    text = "" if path is None else single_spaced(read_text(path))
    return (text,) if text else ()
