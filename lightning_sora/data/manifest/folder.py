"""Folders without a manifest: videos and images at any depth, with the texts and tables beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lightning_sora.data.captions import TABLES, Note, read_sidecar, read_tables
from lightning_sora.data.endings import is_media
from lightning_sora.data.finding import Found, find_media
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle
from lightning_sora.data.records import SPLIT_NAMES
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

CAPTIONS = ("auto", "metadata", "sidecar", "none")


@MANIFESTS.register("folder")
class Folder(ManifestStyle):
    """Videos and images under a folder, or one of them, with captions beside them if there are any.

    **Captions**: ``metadata.csv``, ``.jsonl`` or ``.parquet`` (columns ``file_name`` and ``text``,
    ``caption`` or ``prompt``, a text or a list of texts of equal standing; several tables at several depths are fine),
    else ``clip.txt`` beside ``clip.mp4``, else none. **Splits**: the tables' column ``split``, else folders ``train``,
    ``val`` (or ``validation``), ``test`` right under the root.

    Args:
        captions: "auto" (tables, then texts), "metadata" (tables only, at least one), "sidecar" (texts), "none".

    Raises:
        SoraError: another value of ``captions``.
    """

    needs = "folder needs videos or images, at any depth; KEY.txt beside KEY.mp4 and metadata.csv may be there"

    def __init__(self, captions: str = "auto") -> None:
        if captions not in CAPTIONS:
            raise SoraError(f"captions={captions!r} must be one of {', '.join(CAPTIONS)}")
        self.captions = captions

    def matches(self, place: Location) -> bool:
        if is_remote(place):
            return False
        if os.path.isfile(place):
            return is_media(str(place))
        return any(is_media(name) for _, _, files in os.walk(place, followlinks=False) for name in files)

    def read(self, place: Location) -> list[ClipRow]:
        path = Path(place)
        return self.rows(_one(path) if os.path.isfile(path) and is_media(path) else find_media(path))

    def rows(self, found: Found) -> list[ClipRow]:
        """A row for every video and image of a folder, sorted by id.

        Raises:
            SoraError: there is none, or their captions cannot be read.
        """
        if not found.names:
            also = f"; {found.passed_over}" if found.passed_over else ""
            raise SoraError(
                f"no video or image of a known kind under {shown(str(found.root))}{also}; name the folder that holds "
                "them"
            )
        notes = self._notes(found)
        return [ClipRow(i, found.path(i), notes[i].captions, split=notes[i].split) for i in found.names]

    def _notes(self, found: Found) -> Mapping[str, Note]:
        """A note for every file."""
        if self.captions == "metadata" and not found.tables:
            place = shown(str(found.root))
            raise SoraError(f"captions='metadata', but there is no {' or '.join(TABLES)} under {place}; add one")
        tables = self.captions in ("auto", "metadata")
        listed = read_tables(found.root, found.tables, found.names) if tables else {}
        notes = {}
        for clip_id in found.names:
            note = listed.get(clip_id, Note(()))
            captions, split = note.captions, note.split
            if self.captions == "sidecar" or (self.captions == "auto" and clip_id not in listed):
                captions = read_sidecar(found.sidecars.get(clip_id))
            first, *rest = clip_id.split("/")
            notes[clip_id] = Note(captions, split or (SPLIT_NAMES.get(first.lower()) if rest else None))
        return notes


def _one(path: Path) -> Found:
    """A single file, as if its folder held nothing else."""
    text = path.with_suffix(".txt")
    name = shown(path.name)
    return Found(path.parent, {name: path.name}, [], {name: text} if os.path.isfile(text) else {}, {})
