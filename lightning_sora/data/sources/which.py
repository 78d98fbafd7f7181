"""Which source reads a path: one answer for every command."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_sora.data import latents
from lightning_sora.data.manifest import detect, found_at
from lightning_sora.data.storage import Location, is_remote, open_file


def source_of(place: Location) -> str:
    """The source that reads a path, for every command that takes one: "folder" where files lie as they are, with tables
    or texts beside them; "latents" where `data cache` wrote; else "manifest", also for tars and URLs.

    Raises:
        SoraError: nothing there, or it cannot be read.
    """
    place = found_at(place)
    if _is_cache(place):
        return "latents"
    plain = not is_remote(place) and os.path.isdir(place) and detect(place) in (None, "videofolder")
    return "folder" if plain else "manifest"


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
