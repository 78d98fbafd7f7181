"""Videos that are no video files: folders of numbered images, and arrays."""

from __future__ import annotations

import hashlib
import os
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_sora.data import decode
from lightning_sora.data.endings import is_image
from lightning_sora.data.finding import Found
from lightning_sora.data.places import DecodeError
from lightning_sora.names import shown

ARRAY = ".npy"
#: What NumPy raises of a header that is damaged: it is Python, and sizes are taken as they stand.
UNREADABLE = (
    ValueError, OSError, EOFError, RecursionError, MemoryError, OverflowError, SyntaxError, TypeError, LookupError,
    tokenize.TokenError,
)  # fmt: skip
NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)")
WANTED = "uint8 [frames height width 3], or [clips frames height width 3] for several, values 0 to 255"


class Stack(Protocol):
    """Pictures one after the other, which tell no frame rate."""

    @property
    def id(self) -> str:
        """Its path in the folder that was searched."""

    def size(self) -> tuple[int, int, int]:
        """Frames, height and width.

        Raises:
            DecodeError: it cannot be read.
        """

    def read(self, start: int, frames: int) -> UInt8[Tensor, "frames height width 3"]:
        """Some of the pictures.

        Raises:
            DecodeError: they cannot be read.
        """


@dataclass(frozen=True)
class NumberedImages:
    """A folder of images that are numbered as the frames of one video, in the order of their numbers."""

    id: str
    files: tuple[Path, ...]
    numbers: tuple[int, ...]

    def size(self) -> tuple[int, int, int]:
        steps = [after - before for before, after in zip(self.numbers, self.numbers[1:], strict=False)]
        if 0 in steps:
            raise DecodeError(f"{self.id}: two frames have the number of {self.files[steps.index(0)].name}")
        gap = next((place for place, step in enumerate(steps) if step != min(steps)), None)
        if gap is not None:
            raise DecodeError(f"{self.id}: frames are missing after {self.files[gap].name}")
        sizes = dict.fromkeys((info.height, info.width) for info in map(decode.probe, self.files))
        if len(sizes) > 1:
            told = ", ".join(f"{height}x{width}" for height, width in list(sizes)[:3])
            raise DecodeError(f"{self.id}: its frames differ in size (height x width: {told})")
        return len(self.files), *next(iter(sizes))

    def read(self, start: int, frames: int) -> UInt8[Tensor, "frames height width 3"]:
        return torch.cat([decode.read_clip(file, 0.0, 1) for file in self.files[start : start + frames]])


@dataclass(frozen=True)
class ArrayClip:
    """A NumPy file, or one of the clips in it."""

    id: str
    path: Path
    clip: int | None = None

    def size(self) -> tuple[int, int, int]:
        frames, height, width = self._array().shape[:3]
        return frames, height, width

    def read(self, start: int, frames: int) -> UInt8[Tensor, "frames height width 3"]:
        return torch.from_numpy(np.array(self._array()[start : start + frames]))

    def _array(self) -> UInt8[np.ndarray, "frames height width 3"]:
        array = _array_of(self.path)
        return array if self.clip is None else array[self.clip]


def stacks_in(found: Found) -> list[Stack]:
    """The folders of numbered images and the arrays under a folder.

    Raises:
        DecodeError: an array cannot be read.
    """
    return [*_numbered(found), *_arrays(found)]


def digest_of(stack: Stack) -> str:
    """SHA-256 of its pictures.

    Raises:
        DecodeError: they cannot be read.
    """
    digest = hashlib.sha256()
    frames, height, width = stack.size()
    digest.update(f"{frames} {height} {width}".encode())
    for start in range(frames):
        digest.update(stack.read(start, 1).numpy().tobytes())
    return digest.hexdigest()


def _numbered(found: Found) -> Iterator[NumberedImages]:
    folders: dict[str, list[str]] = {}
    filmed = set()
    for clip_id in found.names:
        folder = str(PurePosixPath(clip_id).parent)
        if is_image(clip_id):
            folders.setdefault(folder, []).append(clip_id)
        else:
            filmed.add(folder)
    for folder, ids in folders.items():
        parsed = {clip_id: NUMBERED.fullmatch(PurePosixPath(clip_id).name) for clip_id in ids}
        kinds = {None if match is None else (match[1], match[3].lower()) for match in parsed.values()}
        # Stills beside videos are thumbnails, and those of several kinds of name are no frames.
        if folder in filmed or len(ids) < 2 or len(kinds) > 1 or None in kinds:
            continue
        name = shown(found.root.resolve().name) if folder == "." else folder
        numbered = sorted((int(match[2]), clip_id) for clip_id, match in parsed.items() if match is not None)
        yield NumberedImages(
            name, tuple(found.path(clip_id) for _, clip_id in numbered), tuple(number for number, _ in numbered)
        )


def _arrays(found: Found) -> Iterator[ArrayClip]:
    for clip_id, name in found.others.items():
        if clip_id.lower().endswith(ARRAY):
            path = found.root / name
            array = _array_of(path)
            if array.ndim == 4:
                yield ArrayClip(clip_id, path)
            else:
                yield from (ArrayClip(f"{clip_id}#{clip}", path, clip) for clip in range(len(array)))


def _array_of(path: Path) -> np.ndarray:
    """An array, of which only what is looked at is read.

    Raises:
        DecodeError: it cannot be read.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        raise DecodeError(f"{path}: {'it is no regular file' if os.path.exists(path) else 'no such file'}")
    return _opened(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=64)
def _opened(path: Path, changed: int) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except UNREADABLE as problem:
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise DecodeError(f"{path}: no array that can be read ({reason})") from problem
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (4, 5) or array.shape[-1] != 3:
        raise DecodeError(f"{path}: it is {array.dtype} {list(array.shape)}; it must be {WANTED}")
    if 0 in array.shape:
        raise DecodeError(f"{path}: it is empty, of shape {list(array.shape)}")
    return array
