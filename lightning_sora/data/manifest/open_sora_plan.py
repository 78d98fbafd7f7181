"""Annotation lists: Open-Sora-Plan's JSON with cuts and crops, and FastVideo's of the same shape."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct
from lightning_sora.data.manifest.tables import located
from lightning_sora.data.records import (
    LARGEST,
    Record,
    captions_of,
    file_of,
    header_of,
    number,
    rate,
    records_of,
    require,
    text_of,
)
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.texts import brief

READ = ("path", "cap", "resolution", "num_frames", "fps", "cut", "crop")
NAMES = ("videos2caption.json", "data.txt")


@MANIFESTS.register("open_sora_plan")
class OpenSoraPlan(ManifestStyle):
    """A JSON list of ``{path, cap, resolution, num_frames, fps, cut, crop}``, or a ``data.txt`` of ``ROOT,LIST.json``.

    ``resolution`` is that of the file, ``crop`` a part of its picture.
    """

    needs = (
        "open_sora_plan needs a JSON list of objects with 'path' and 'cap' (a text or a list of texts); 'resolution' "
        "{height, width}, 'num_frames', 'fps', 'cut' [first, end] and 'crop' "
        "[left, right, top, bottom] may be there; or a data.txt with lines ROOT,LIST.json"
    )

    def matches(self, place: Location) -> bool:
        found = self._file(place)
        if found is None:
            return False
        if str(found).endswith(".txt"):
            return all(line.rpartition(",")[2].strip().endswith(".json") for line in _lines(found))
        return {"path", "cap"} <= set(header_of(found))

    def _file(self, place: Location) -> Location | None:
        if is_remote(place) or not os.path.isdir(place):
            return place if str(place).endswith((".json", "data.txt")) else None
        return next((Path(place) / name for name in NAMES if os.path.isfile(Path(place) / name)), None)

    def read(self, place: Location) -> list[ClipRow]:
        file = self._file(place)
        if file is None:
            raise SoraError(f"{place}: {self.needs}")
        here = str(file).rpartition("/")[0] or "."
        if not str(file).endswith(".txt"):
            return distinct(file, self._rows(file, here))
        rows: list[ClipRow] = []
        lines = _lines(file)
        for line in lines:
            root, comma, listed = line.rpartition(",")
            if not comma or not listed.strip().endswith(".json"):
                raise SoraError(f"{file}: the line {line!r} must be ROOT,LIST.json")
            _, annotations = located(here, listed.strip())
            self.reach.allow(annotations)
            found = self._rows(annotations, str(located(here, root.strip())[1]))
            # Files of several roots may have one name.
            rows += [replace(row, id=f"{root.strip()}/{row.id}") for row in found] if len(lines) > 1 else found
        return distinct(file, rows)

    def _rows(self, file: Location, root: str) -> list[ClipRow]:
        found = []
        for count, row in enumerate(records_of(file), start=1):
            require(f"{file}, entry {count}", list(row), [("path",), ("cap",)], self.needs)
            found.append(_annotated(root, row, f"{file}, entry {count}"))
        return found


def _annotated(root: str, row: Record, where: str) -> ClipRow:
    resolution: Any = row.get("resolution") or {}
    if not isinstance(resolution, Mapping):
        raise SoraError(f"{where}: 'resolution' is {brief(resolution)}; it must be {{height, width}}")
    first, frames = 0, number(row, "num_frames", where)
    cut = row.get("cut")
    if cut is not None:
        if not _numbers(cut, 2) or not 0 <= cut[0] < cut[1]:
            raise SoraError(f"{where}: 'cut' is {brief(cut)}; it must be [first frame, frame after the last]")
        first, frames = int(cut[0]), int(cut[1]) - int(cut[0])
    crop = row.get("crop")
    if crop is not None:
        if not _numbers(crop, 4) or not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3]):
            raise SoraError(f"{where}: 'crop' is {brief(crop)}; it must be [left, right, top, bottom] in pixels")
        crop = tuple(int(crop[i]) for i in (0, 2, 1, 3))
    name, place = located(root, file_of(row, ("path",), where))
    return ClipRow(
        id=shown(name if cut is None else f"{name}#{first}"),
        place=place,
        captions=captions_of(row, ("cap",), where),
        frames=frames,
        height=number(resolution, "height", where),
        width=number(resolution, "width", where),
        fps=rate(row, "fps", where, frames),
        start_frame=first,
        crop=crop,
        extra={name: value for name, value in row.items() if name not in READ},
    )


def _numbers(value: Any, count: int) -> bool:
    """Whether it is a list of so many numbers that can be places in a video."""
    many = value if isinstance(value, list) and len(value) == count else [None]
    return all(isinstance(one, int | float) and abs(one) <= LARGEST for one in many)


def _lines(file: Location) -> list[str]:
    return [line.strip() for line in text_of(file).splitlines() if line.strip()]
