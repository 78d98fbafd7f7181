"""What lies under a folder: videos and images, the tables and texts beside them, and what is neither."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lightning_sora.data.captions import TABLES
from lightning_sora.data.endings import COMPANIONS, is_media, suffix_of
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

SHOWN = 4  # endings
METADATA = "metadata"  # what people call a table that is to be read, of whatever ending


@dataclass(frozen=True)
class Found:
    """The files under a folder.

    Attributes:
        names: id of every video and image, sorted -> its path from the root, with slashes; the two differ where that
            is no text (:func:`~lightning_sora.names.shown`).
        tables: of metadata.
        sidecars: id -> the text of the same name beside it, whatever the case of its ending.
        others: as names, of the files of unknown kinds.
    """

    root: Path
    names: Mapping[str, str]
    tables: Sequence[Path]
    sidecars: Mapping[str, Path]
    others: Mapping[str, str]

    def path(self, clip_id: str) -> Path:
        """Where a video or image lies."""
        return self.root / self.names[clip_id]

    @property
    def passed_over(self) -> str:
        """The files of unknown kinds in words; empty if there are none."""
        if not self.others:
            return ""
        endings = Counter(Path(name).suffix or "no ending" for name in self.others)
        told = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(SHOWN))
        more = " ..." if len(endings) > SHOWN else ""
        return f"{len(self.others)} of other kinds: {told}{more}, such as {next(iter(self.others))}"


def refuse_unlisted(problem: OSError) -> NoReturn:
    """Raises SoraError for a folder that cannot be listed."""
    place = shown(str(problem.filename))
    raise SoraError(f"{place} cannot be listed ({problem.strerror}); make it readable or move it away") from problem


def find_media(root: Path) -> Found:
    """Walks a folder. Hidden files and folders are passed over; links are followed.

    Raises:
        SoraError: there is no such folder, or one in it cannot be listed.
    """
    if not os.path.isdir(root):
        also = ", or the source 'manifest', which reads tables, lists and tars" if os.path.isfile(root) else ""
        raise SoraError(f"{shown(str(root))} is not a folder; give the folder that holds the videos{also}")
    names: dict[str, str] = {}
    tables: list[Path] = []
    sidecars: dict[str, Path] = {}
    others: dict[str, str] = {}
    visited: set[str] = set()

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse_unlisted):
        here = os.path.realpath(folder)
        if here in visited:
            # A link back up would go round for ever.
            subfolders.clear()
            continue
        visited.add(here)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files = sorted(name for name in files if not name.startswith("."))
        texts = _texts(files)
        inside = "" if Path(folder) == root else f"{Path(folder).relative_to(root).as_posix()}/"
        lower = {name.lower(): name for name in reversed(files)}
        # No pipes, which would be waited for.
        here_too = [lower[name] for name in TABLES if name in lower and os.path.isfile(Path(folder) / lower[name])]
        tables.extend(Path(folder) / name for name in here_too)
        for name in files:
            stem = os.path.splitext(name)[0]
            clip_id = shown(inside + name)
            if is_media(name):
                if clip_id in names:
                    raise SoraError(f"two files under {root} would both be called {clip_id!r}; rename one of them")
                names[clip_id] = inside + name
                text = texts.get(stem) or texts.get(stem.lower())
                if text is not None:
                    sidecars[clip_id] = Path(folder) / text
            elif suffix_of(name) not in COMPANIONS or (stem.lower() == METADATA and name not in here_too):
                others[clip_id] = inside + name
    return Found(root, dict(sorted(names.items())), tables, sidecars, dict(sorted(others.items())))


def _texts(files: Sequence[str]) -> dict[str, str]:
    """stem -> text; also by stems in lower case, for files of which not even that is alike."""
    found: dict[str, str] = {}
    # In this order a.txt stands before A.TXT and a.TXT.
    for name in sorted(files, key=lambda name: (not name.endswith(".txt"), name)):
        stem, ending = os.path.splitext(name)
        if ending.lower() == ".txt":
            found.setdefault(stem, name)
            found.setdefault(stem.lower(), name)
    return found
