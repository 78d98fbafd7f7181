"""Manifests as the field writes them, read into one kind of row."""

from __future__ import annotations

import os
from dataclasses import replace

from lightning_sora.data.manifest import (  # noqa: F401  (they register themselves)
    configured,
    field_sets,
    folder,
    lists,
    open_sora_plan,
    tables,
    trainers,
    webdataset,
)
from lightning_sora.data.manifest.reach import Reach
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle
from lightning_sora.data.manifest.tables import SUFFIXES
from lightning_sora.data.records import columns_in_words, header_of
from lightning_sora.data.storage import Location, is_remote, located
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

__all__ = ["MANIFESTS", "ClipRow", "ManifestStyle", "detect", "found_at", "read_manifest"]

#: Where several styles fit, the one that says more stands first; last, after those of plugins, a folder without any.
ORDER = (
    "msrvtt", "kinetics", "webdataset", "cogvideox", "sat", "open_sora_plan", "ltx", "videofolder", "open_sora",
    "openvid", "diffsynth", "videox_fun", "musubi", "diffusion_pipe", "ucf101",
)  # fmt: skip
LAST = "folder"


def detect(place: Location) -> str | None:
    """The style of a manifest, or None."""
    names = [*ORDER, *(name for name in MANIFESTS.list() if name not in (*ORDER, LAST)), LAST]
    return next((name for name in names if MANIFESTS.create(name).matches(place)), None)


def read_manifest(place: Location, style: str = "auto", confined: bool | None = None) -> tuple[str, list[ClipRow]]:
    """The style of a manifest and its rows.

    Args:
        confined: refuse rows that reach out of the manifest's folder, but for public addresses; None: where the
            manifest is from elsewhere, which is a URL.

    Raises:
        SoraError: nothing there, no known style, not what the style asks for, or rows that are out of reach.
    """
    place = found_at(place)
    found = detect(place) if style == "auto" else style
    if found is None:
        known = "; ".join(MANIFESTS.create(name).needs for name in MANIFESTS.list())
        plain = not is_remote(place) and os.path.isdir(place)
        columns = header_of(place) if str(place).lower().endswith(SUFFIXES) and not plain else []
        told = f" (its columns are {columns_in_words(columns)})" if columns else ""
        raise SoraError(f"{shown(str(place))} is a manifest of no known style{told}: {known}")
    reader = MANIFESTS.create(found)
    reader.reach = reach = Reach.of(place, confined)
    rows = reader.read(place)
    return found, rows if reach.root is None else [replace(row, place=reach.allow(row.place)) for row in rows]


def found_at(place: Location) -> Location:
    """Where it lies that a user names.

    Raises:
        SoraError: there is nothing.
    """
    found = located(place)
    if not is_remote(found) and "{" not in str(found) and not os.path.exists(found):
        raise SoraError(
            f"no manifest or folder at {shown(str(place))}; give a folder of videos, or a table, list or tar of them"
        )
    return found
