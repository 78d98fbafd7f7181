"""Manifests of one table: a row per clip, a column for the file, one for the caption."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from lightning_sora.data.captions import CAPTION_COLUMNS, FILE_COLUMNS, TABLES, identity
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct
from lightning_sora.data.records import (
    SPLIT_COLUMN,
    Record,
    captions_of,
    file_of,
    header_of,
    number,
    rate,
    records_of,
    require,
    split_of,
)
from lightning_sora.data.storage import Location, is_remote, join, local_name
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

SUFFIXES = (".csv", ".jsonl", ".parquet", ".json")
SIZES = ("num_frames", "height", "width", "fps")


class TableStyle(ManifestStyle):
    """A table whose columns have fixed names.

    Attributes:
        file: accepted names of the column with the file.
        caption: accepted names of the column with the caption or captions.
        required: columns that must be there too.
        sizes: of our names, those in the table.
    """

    file: ClassVar[tuple[str, ...]]
    caption: ClassVar[tuple[str, ...]]
    required: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[dict[str, str]] = {name: name for name in SIZES}
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    names: ClassVar[tuple[str, ...]] = ()  # of files that a folder of this style holds

    def table(self, place: Location) -> Location | None:
        """The table of a file or folder."""
        folder = not is_remote(place) and os.path.isdir(place)  # of whatever name
        if not folder and Path(str(place)).suffix.lower() in self.suffixes:
            return place
        if folder:
            return next((Path(place) / name for name in self.names if os.path.isfile(Path(place) / name)), None)
        return None

    def matches(self, place: Location) -> bool:
        table = self.table(place)
        if table is None:
            return False
        found = header_of(table)
        return all(any(name in found for name in group) for group in self._groups())

    def _groups(self) -> list[tuple[str, ...]]:
        return [self.file, self.caption, *((name,) for name in self.required)]

    def read(self, place: Location) -> list[ClipRow]:
        table = self.table(place)
        if table is None:
            raise SoraError(f"{place} is no table ({', '.join(self.suffixes)}); {self.needs}")
        rows = records_of(table)
        root = str(table).rpartition("/")[0] or "."
        found = []
        for count, row in enumerate(rows, start=1):
            where = f"{table}, row {count}"
            require(where, list(row), self._groups(), self.needs)
            found.append(self._row(root, row, where))
        return distinct(table, found)

    def _row(self, root: str, row: Record, where: str) -> ClipRow:
        name, place = located(root, file_of(row, self.file, where))
        known = {*self.file, *self.caption, *self.sizes.values(), SPLIT_COLUMN}
        sizes = {ours: number(row, theirs, where) for ours, theirs in self.sizes.items() if ours != "fps"}
        frames = sizes.get("num_frames")
        return ClipRow(
            id=self.identity(root, name),
            place=place,
            captions=captions_of(row, self.caption, where),
            frames=frames,
            height=sizes.get("height"),
            width=sizes.get("width"),
            fps=rate(row, self.sizes["fps"], where, frames),
            split=split_of(row, where),
            extra={name: value for name, value in row.items() if name not in known},
        )

    def identity(self, root: str, name: str) -> str:
        """The id of a file that a manifest in ``root`` names so."""
        return shown(name)


def located(root: str, file: str) -> tuple[str, Location]:
    """A file's name, with slashes, and where it lies: absolute, a URL, or relative to the manifest's folder."""
    if is_remote(file):
        return file, file
    name = file.replace("\\", "/") if is_remote(root) else local_name(Path(root), file)
    return name, name if Path(name).is_absolute() else join(root, name)


@MANIFESTS.register("videofolder")
class VideoFolder(TableStyle):
    """Hugging Face VideoFolder and ImageFolder: ``metadata.csv|jsonl|parquet`` beside the files."""

    needs = "videofolder needs 'file_name' and 'text' or 'caption' (or 'prompt'); 'split' and sizes may be there"
    file, caption = FILE_COLUMNS, CAPTION_COLUMNS
    names = TABLES

    def identity(self, root: str, name: str) -> str:
        """As of the source "folder", which reads the same tables."""
        inside = None if is_remote(root) or is_remote(name) else identity(Path(root), Path(root), name)
        return shown(name) if inside is None else inside


@MANIFESTS.register("open_sora")
class OpenSora(TableStyle):
    """Open-Sora's CSV or Parquet; ``num_frames`` 1 is an image."""

    needs = (
        "open_sora needs 'path' and 'text'; 'num_frames', 'height', 'width', 'fps' (and 'aspect_ratio', 'resolution', "
        "scores) may be there"
    )
    file, caption = ("path",), ("text",)
    suffixes = (".csv", ".parquet", ".jsonl")


@MANIFESTS.register("openvid")
class OpenVid(TableStyle):
    """OpenVid-1M's CSV, or one with underscores for spaces."""

    needs = "openvid needs 'video' and 'caption'; 'frame', 'fps', 'seconds' and scores may be there"
    file, caption = ("video",), ("caption",)
    sizes: ClassVar[dict[str, str]] = {"num_frames": "frame", "fps": "fps", "height": "height", "width": "width"}
    suffixes = (".csv", ".parquet")


@MANIFESTS.register("ltx")
class LTXTrainer(TableStyle):
    """LTX-Video-Trainer's ``dataset.json`` (or CSV, JSON Lines)."""

    needs = "ltx needs 'media_path' and 'caption'"
    file, caption = ("media_path",), ("caption",)
    names = ("dataset.json",)
