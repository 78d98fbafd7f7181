"""Folders of numbered images, each of which is one video: SkyTimelapse, Taichi-HD, FaceForensics and many others."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from lightning_sora.data.endings import is_image, is_media
from lightning_sora.data.finding import refuse_unlisted
from lightning_sora.data.places import DecodeError, Media
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)")


@dataclass(frozen=True)
class FrameFolder(Media):
    """A video whose frames are the images of a folder, in the order of their numbers.

    Attributes:
        folder: that of the images, all of which are named alike but for the number.
        fps: frames per second, which no image tells.
    """

    folder: Path
    fps: float

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def files(self) -> tuple[Path, ...]:
        """The images in order.

        Raises:
            DecodeError: there are none, two have one number, one is missing between others, or they are named by
                several patterns.
        """
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError as problem:
            raise DecodeError(f"{self.folder}: {problem.strerror}") from problem
        return _frames_of(self.folder, changed)

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def open(self) -> BinaryIO:
        """A reader of all files as if they were one, for fingerprints."""
        return io.BufferedReader(_Joined(self.files))


class _Joined(io.RawIOBase):
    """Files one after the other, as one."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.place = files, 0
        self.sizes = [file.stat().st_size for file in files]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: sum(self.sizes)}[whence]
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        begin = 0
        for file, size in zip(self.files, self.sizes, strict=True):
            if self.place < begin + size:
                with file.open("rb") as content:
                    content.seek(self.place - begin)
                    read = content.read(min(len(buffer), size - (self.place - begin)))
                buffer[: len(read)] = read
                self.place += len(read)
                return len(read)
            begin += size
        return 0


@lru_cache(maxsize=4096)
def _frames_of(folder: Path, changed: int) -> tuple[Path, ...]:
    try:
        names = [entry.name for entry in os.scandir(folder) if is_image(entry.name) and not entry.name.startswith(".")]
    except OSError as problem:
        raise DecodeError(f"{folder}: {problem.strerror}") from problem
    found: dict[int, str] = {}
    patterns = set()
    for name in sorted(names):
        match = NUMBERED.fullmatch(name)
        patterns.add(None if match is None else (match[1], match[3].lower()))
        if match is None or len(patterns) > 1:
            raise DecodeError(f"{folder}: {shown(name)} is not named as the other frames are; move it away")
        if int(match[2]) in found:
            raise DecodeError(f"{folder}: two frames have the number of {shown(name)}")
        found[int(match[2])] = name
    if not found:
        raise DecodeError(f"{folder}: there is no image in it")
    numbers = sorted(found)
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    gap = next((place for place, step in enumerate(steps) if step != min(steps)), None)
    if gap is not None:
        raise DecodeError(f"{folder}: frames are missing after {shown(found[numbers[gap]])}")
    return tuple(folder / found[number] for number in numbers)


def frame_folders(root: Path) -> list[str]:
    """The folders under a root that hold images, as paths from it with slashes, sorted; hidden ones are passed over.

    Raises:
        SoraError: there is no such folder, one in it cannot be listed, or a video lies beside images.
    """
    if not os.path.isdir(root):
        raise SoraError(f"{shown(str(root))} is not a folder; give the folder whose folders hold the frames")
    found = []
    for folder, inner, files in os.walk(root, followlinks=True, onerror=refuse_unlisted):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        media = [name for name in files if is_media(name) and not name.startswith(".")]
        if films := [name for name in media if not is_image(name)]:
            raise SoraError(
                f"{shown(os.path.join(folder, films[0]))} is a video, where folders of frames are asked for; move it "
                "away, or read the folder as it is (source 'folder')"
            )
        if media:
            found.append(Path(folder).relative_to(root).as_posix())
    return sorted(found)
