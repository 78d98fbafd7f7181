"""What a path is: one answer for every command, and for notebooks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lightning_sora.data import latents
from lightning_sora.data.manifest import ClipRow, detect, found_at, read_manifest
from lightning_sora.data.storage import Location, is_remote, open_file


@dataclass(frozen=True)
class Collection:
    """Clips that lie at one place.

    Attributes:
        place: a path or URL.
        source: what reads it in training: "folder" where files lie as they are, with tables or texts beside them;
            "latents" where `data cache` wrote; else "manifest", also for tars, URLs and single files.
        style: of the manifest, as found; None where none fits, and of a cache.

    Example:
        >>> import tempfile, torch, lightning_sora as ls
        >>> folder = tempfile.mkdtemp()
        >>> video = ls.save_video(f"{folder}/grey.mp4", torch.full((5, 32, 32, 3), 128, dtype=torch.uint8))
        >>> clips = ls.open_collection(folder)
        >>> clips.source, [row.id for row in clips.rows]
        ('folder', ['grey.mp4'])
    """

    place: Location
    source: Literal["folder", "manifest", "latents"]
    style: str | None = None

    @cached_property
    def rows(self) -> Sequence[ClipRow]:
        """What is told of each clip, without looking at its file.

        Raises:
            SoraError: no known style, or not what the style asks for.
        """
        return read_manifest(self.place, self.style or "auto")[1]


def open_collection(place: Location, style: str = "auto") -> Collection:
    """Finds out what a path is: a folder of files, a file, a manifest of any style, tars by a pattern, a URL or a cache
    of latents.

    Args:
        style: of a manifest, which may also be one of :data:`MANIFESTS` with options; "auto" finds out.

    Raises:
        SoraError: nothing there, or it cannot be read.
    """
    found = found_at(place)
    if style != "auto":
        return Collection(found, "manifest", style)
    if _is_cache(found):
        return Collection(found, "latents")
    told = detect(found)
    plain = not is_remote(found) and os.path.isdir(found) and told in (None, "folder", "videofolder")
    return Collection(found, "folder", "folder") if plain else Collection(found, "manifest", told)


def _is_cache(place: Location) -> bool:
    if not is_remote(place):
        return os.path.isfile(os.path.join(place, latents.HEADER))
    if "{" in str(place) or Path(str(place)).suffix:
        return False
    try:
        with open_file(place, latents.HEADER):
            return True
    except OSError:
        return False
