"""Still images as clips of one frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lightning_sora import media
from lightning_sora.data import container
from lightning_sora.data.sources.base import DecodeError, Media
from lightning_sora.errors import SoraError

# Whatever the name says, these are what is inside; other kinds may start programs of their own (PostScript).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def still_size(place: Path | Media) -> tuple[int, int]:
    """Height and width as shown, at the cost of the header.

    Raises:
        DecodeError: no readable still image.
    """
    with _opened(place) as still:
        return media.image_size(still)


def read_still(place: Path | Media, size: tuple[int, int] | None) -> UInt8[Tensor, "height width 3"]:
    """Reads an image as shown: turned by its EXIF note, laid on white.

    Args:
        size: (height, width) to scale to, anti-aliased; None for its own.

    Raises:
        DecodeError: no readable still image.
    """
    with _opened(place) as still:
        image = media.read_image(still)
    if size is not None and size != tuple(image.shape[:2]):
        scaled = Image.fromarray(image.numpy()).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(scaled))
    return image


@dataclass(frozen=True)
class _Still:
    """An open image, to be read from its beginning any number of times."""

    name: str
    content: BinaryIO

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        self.content.seek(0)
        return self.content


@contextmanager
def _opened(place: Path | Media) -> Iterator[_Still]:
    name = container.name_of(place)
    try:
        container.size_of(place)
        with place.open("rb") if isinstance(place, Path) else place.open() as content:
            still = _Still(name, content)
            _refuse_unfit(still)
            yield still
    except DecodeError:
        raise
    except SoraError as problem:
        raise DecodeError(str(problem)) from problem
    except UnidentifiedImageError:
        raise DecodeError(f"{name}: not an image in a known format") from None
    except Image.DecompressionBombError as problem:
        raise DecodeError(f"{name}: too large an image ({problem})") from problem
    except (SyntaxError, ValueError, struct.error, EOFError) as problem:
        # Pillow reports damaged headers by all of these.
        raise DecodeError(f"{name}: damaged ({problem})") from problem
    except OSError as problem:
        raise DecodeError(f"{name}: {container.words(problem)}") from problem


def _refuse_unfit(still: _Still) -> None:
    with Image.open(still.open(), formats=FORMATS) as image:
        if image.width * image.height > container.MAX_PIXELS:
            raise DecodeError(
                f"{still}: too large an image, {image.width} x {image.height} is more than "
                f"{container.MAX_PIXELS:,} pixels"
            )
        # The further pictures of an MPO, which cameras write, are views of the first.
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise DecodeError(
                f"{still}: an animation of {frames} frames under the name of a still; make it a gif or mp4"
            )
