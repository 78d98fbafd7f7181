"""Manifests as the field writes them, read into one kind of row."""

from __future__ import annotations

import os

from lightning_sora.data.manifest import lists, open_sora_plan, tables, webdataset  # noqa: F401  (they register themselves)
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle
from lightning_sora.data.manifest.tables import SUFFIXES
from lightning_sora.data.records import header_of
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError

__all__ = ["MANIFESTS", "ClipRow", "ManifestStyle", "detect", "is_plain_folder", "read_manifest"]

#: Where several styles fit, the one that says more stands first.
ORDER = ("webdataset", "cogvideox", "sat", "open_sora_plan", "ltx", "videofolder", "open_sora", "openvid")


def detect(place: Location) -> str | None:
    """The style of a manifest, or None."""
    names = [*ORDER, *(name for name in MANIFESTS.list() if name not in ORDER)]
    return next((name for name in names if MANIFESTS.create(name).matches(place)), None)


def read_manifest(place: Location, style: str = "auto") -> tuple[str, list[ClipRow]]:
    """The style of a manifest and its rows.

    Raises:
        SoraError: nothing there, no known style, or not what the style asks for.
    """
    if not is_remote(place) and "{" not in str(place) and not os.path.exists(place):
        raise SoraError(f"no manifest or folder at {place}; give a folder of videos, or a table, list or tar of them")
    found = detect(place) if style == "auto" else style
    if found is None:
        known = "; ".join(MANIFESTS.create(name).needs for name in MANIFESTS.list())
        columns = header_of(place) if str(place).lower().endswith(SUFFIXES) else []
        told = f" (its columns are {', '.join(map(str, columns))})" if columns else ""
        raise SoraError(f"{place} is a manifest of no known style{told}: {known}")
    return found, MANIFESTS.create(found).read(place)


def is_plain_folder(place: str) -> bool:
    """Whether the source "folder" reads this: a folder of files, with tables or texts beside them."""
    return not is_remote(place) and os.path.isdir(place) and detect(place) in (None, "videofolder")
