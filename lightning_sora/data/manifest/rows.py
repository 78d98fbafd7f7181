"""What every manifest is read into."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_sora.data.storage import ArchiveMember, Location, open_file
from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry
from lightning_sora.sealing import verify


@dataclass(frozen=True)
class ClipRow:
    """One clip of a manifest.

    Attributes:
        id: unique in it.
        place: a path, a URL, or a member of an archive; relative paths are resolved by the style.
        captions: all of equal standing.
        frames, height, width, fps: as shown; None where the manifest does not say. Frames count those of the cut.
        start_frame: of the file's frames, where a cut begins.
        crop: (left, top, right, bottom) of the part of the picture that is the clip, in pixels as shown; None for all.
            ``height`` and ``width`` are those of the file.
        split: "train", "val" or "test" where the manifest says.
        extra: further columns, such as scores.
    """

    id: str
    place: Location | ArchiveMember
    captions: tuple[str, ...] = ()
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    start_frame: int = 0
    crop: tuple[int, int, int, int] | None = None
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class ManifestStyle(ABC):
    """A way in which manifests are written.

    Attributes:
        needs: what a manifest of this style is, in words, with its columns.
    """

    needs: str

    @abstractmethod
    def matches(self, place: Location) -> bool:
        """Whether a file or folder is one, judged by names and headers."""

    @abstractmethod
    def read(self, place: Location) -> list[ClipRow]:
        """Its rows.

        Raises:
            SoraError: wrong columns, lines that do not align, unreadable.
        """


MANIFESTS: Registry[ManifestStyle] = Registry("manifest style")

Record = Mapping[str, Any]


def content_of(place: Location) -> bytes:
    """All bytes of a file, which may be a URL.

    Raises:
        SoraError: there is none.
    """
    parent, _, name = str(place).rpartition("/")
    try:
        with open_file(parent or ("/" if str(place).startswith("/") else "."), name) as file:
            return file.read()
    except OSError as problem:
        raise SoraError(f"{place}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from problem


def text_of(place: Location) -> str:
    """A text file.

    Raises:
        SoraError: there is none, or it is not UTF-8.
    """
    try:
        return content_of(place).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise SoraError(f"{place}: not UTF-8 text ({problem.reason}); save it as UTF-8") from problem


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
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as problem:
            raise SoraError(f"{place}: not a table of comma-separated values ({problem})") from problem
        for count, row in enumerate(rows, start=1):
            if None in row or None in row.values():
                raise SoraError(
                    f"{place}, row {count}: it has more or fewer cells than the header; put captions with commas in "
                    "quotes"
                )
        return list(rows)
    line = 0
    try:
        if suffix == ".jsonl":
            objects = []
            for line, content in enumerate(text.split("\n"), start=1):  # texts may hold other breaks
                if content.strip():
                    objects.append(_object(place, line, json.loads(content)))
            return objects
        found: Any = json.loads(text)
    except json.JSONDecodeError as problem:
        raise SoraError(f"{place}, line {line or problem.lineno}: not JSON ({problem.msg})") from problem
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
        first = text_of(place).splitlines()[:1]
        return next(csv.reader(first), [])
    rows = records_of(place)
    return list(rows[0]) if rows else []


def _object(place: Location, count: int, row: Any) -> Record:
    if not isinstance(row, Mapping):
        raise SoraError(f"{place}, entry {count}: {str(row)[:60]!r} must be an object in braces")
    return row


def _parquet(place: Location) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    content = verify(content_of(place), place, "write or copy it again")
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise SoraError(f"{place}: not a Parquet file ({problem})") from problem


def texts(value: Any, where: str) -> tuple[str, ...]:
    """One caption or a list of them, in single spaces, empty ones left out.

    Raises:
        SoraError: anything else.
    """
    many = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str) for one in many):
        raise SoraError(f"{where}: the caption is {value!r}; it must be text, or a list of texts")
    return tuple(text for text in (" ".join(one.split()) for one in many) if text)


def number(row: Record, column: str, where: str, kind: type = int) -> Any:
    """A positive number of a column; None where there is none.

    Raises:
        SoraError: no such number.
    """
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = 0.0
    if found != found:  # what pandas writes where there is nothing
        return None
    if not 0 < found < float("inf"):
        raise SoraError(f"{where}: {column!r} is {value!r}; it must be a positive number")
    return kind(found) if kind is float else round(found)


def rate(row: Record, column: str, where: str, frames: int | None) -> float | None:
    """Frames per second of a column; None where there is none, and for a still, of which tables tell 0 or infinity.

    Raises:
        SoraError: no such number.
    """
    return None if frames == 1 else number(row, column, where, float)


def distinct(place: Location, rows: Iterable[ClipRow]) -> list[ClipRow]:
    """The rows, if there are any and no two share an id.

    Raises:
        SoraError: none, or a clip that is listed twice.
    """
    found: dict[str, ClipRow] = {}
    for row in rows:
        if row.id in found:
            raise SoraError(f"{place}: {row.id!r} is listed a second time; keep one row for each clip")
        found[row.id] = row
    if not found:
        raise SoraError(f"{place}: it lists no clip")
    return list(found.values())


def require(place: Location, found: Sequence[str], groups: Sequence[Sequence[str]], accepted: str) -> None:
    """Raises SoraError unless there is a column of each group."""
    if not all(any(name in found for name in group) for group in groups):
        raise SoraError(f"{place}: the columns are {', '.join(map(str, found)) or 'none'}; {accepted}")
