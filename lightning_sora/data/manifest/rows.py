"""What every manifest is read into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sora.data.frame_folder import FrameFolder
from lightning_sora.data.manifest.reach import Reach
from lightning_sora.data.storage import ArchiveMember, Location, RemoteFile
from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry


@dataclass(frozen=True)
class ClipRow:
    """One clip of a manifest.

    Attributes:
        id: unique in it.
        place: a path, a URL, a member of an archive, or a folder of frames; relative paths are resolved by the style.
        captions: all of equal standing.
        frames, height, width, fps: as shown; None where the manifest does not say. Frames count those of the cut.
        start_frame: of the file's frames, where a cut begins.
        crop: (left, top, right, bottom) of the part of the picture that is the clip, in pixels as shown; None for all.
            ``height`` and ``width`` are those of the file.
        split: "train", "val" or "test" where the manifest says.
        extra: further columns, such as scores.
    """

    id: str
    place: Location | RemoteFile | ArchiveMember | FrameFolder
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
        reach: what other files may be opened to read one; the rows are looked at afterwards.
    """

    needs: str
    reach: Reach = Reach()

    @abstractmethod
    def matches(self, place: Location) -> bool:
        """Whether a file or folder is one, judged by names and headers."""

    @abstractmethod
    def read(self, place: Location) -> list[ClipRow]:
        """Its rows.

        Raises:
            SoraError: wrong columns, lines that do not align, unreadable.
        """


MANIFESTS: Registry[ManifestStyle] = Registry("manifest style", name="manifest")


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
