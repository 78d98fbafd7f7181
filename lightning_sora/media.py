"""Pictures and films for human eyes: MP4, GIF, contact sheets, and the reading of still images.

A file appears whole or not at all: everything is written beside its target and then moved there. MP4 and GIF carry the
digest of their bytes as a comment (:mod:`lightning_sora.sealing`), so that damage later on is seen.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from einops import rearrange, repeat
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_sora import lettering
from lightning_sora.errors import SoraError
from lightning_sora.sealing import BLANK, seal, write_whole
from lightning_sora.writing import whole

log = logging.getLogger(__name__)

Video = UInt8[Tensor, "frames height width 3"]
Pixels = UInt8[np.ndarray, "frames height width 3"]

ENCODERS = ("libx264", "libopenh264", "mpeg4")
GIF_MAX_FPS = 50  # viewers play shorter delays than 20 ms at a tenth of the speed
#: Rates that files can hold: the times of MP4 are fractions of small whole numbers.
FPS_LEAST, FPS_MOST = 0.01, 1000.0
BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def write_mp4(path: str | Path, video: Video, fps: float, *, scale: int = 1) -> None:
    """Writes H.264 in yuv420p, which browsers play.

    An odd height or width is padded by repeating the last row or column, as yuv420p needs even ones.

    Args:
        video: uint8 in [0, 255].
        fps: frames per second.
        scale: each pixel becomes ``scale`` x ``scale`` pixels, so that a tiny sample can be seen.

    Raises:
        SoraError: not such a video, or a rate or scale that is not positive.
    """
    frames = _enlarged(_pixels(video, "video"), scale)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    rate = _rate(fps)
    encoder, content = _encoder(), io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        container.metadata["comment"] = BLANK
        stream: VideoStream = container.add_stream(encoder, rate=rate)  # type: ignore[assignment]
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.thread_type = "NONE"
        if encoder == "libx264":
            # Without frames that refer to later ones: of small pictures, x264 decides on those by memory that it never
            # wrote (seen with AVX-512), so that one video would make several files.
            stream.options = {"crf": "16", "preset": "fast", "bf": "0"}
        else:
            stream.bit_rate = max(200_000, frames.shape[1] * frames.shape[2] * math.ceil(rate) // 4)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    write_whole(Path(path), seal(content.getvalue()))


def write_gif(path: str | Path, video: Video, fps: float, *, scale: int = 1) -> None:
    """Writes a looping GIF with one palette of 256 colours taken from the whole clip.

    Delays are whole hundredths of a second, spread so that the clip lasts as long as it should. Above
    50 frames per second, where viewers would slow down, frames are left out instead. Equal neighbours
    are stored once, with the longer delay.

    Raises:
        SoraError: not such a video, or a rate or scale that is not positive.
    """
    frames = _pixels(video, "video")
    rate = float(_rate(fps))
    if rate > GIF_MAX_FPS:
        kept = max(1, round(len(frames) * GIF_MAX_FPS / rate))
        frames = frames[(np.arange(kept) * len(frames)) // kept]
        rate = GIF_MAX_FPS
    ticks = np.round(np.arange(len(frames) + 1) * 100 / rate).astype(int)
    delays = [int(delay) * 10 for delay in np.diff(ticks)]
    palette = _palette(frames)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    if scale != 1:
        size = (frames.shape[2] * _scale(scale), frames.shape[1] * scale)
        pictures = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
    content = io.BytesIO()
    pictures[0].save(
        content, format="GIF", save_all=True, append_images=pictures[1:], duration=delays, loop=0, optimize=False,
        comment=BLANK,
    )  # fmt: skip
    write_whole(Path(path), seal(content.getvalue()))


def contact_sheet(
    path: str | Path,
    videos: Sequence[Video],
    captions: Sequence[str],
    columns_of_frames: int = 8,
    *,
    scale: int | None = None,
) -> None:
    """Writes a PNG with one row per video: its caption, then frames from first to last, evenly spaced.

    Args:
        videos: of any sizes and lengths.
        captions: one per video; "" for none.
        columns_of_frames: how many frames of each video at most.
        scale: integer enlargement; None enlarges small frames until they are about 96 pixels high.
            Frames beyond 256 pixels are shrunk.

    Raises:
        SoraError: no videos, or a number of captions other than that of the videos.
    """
    comparison_sheet(path, {"": videos}, captions, columns_of_frames, scale=scale)


def comparison_sheet(
    path: str | Path,
    versions: Mapping[str, Sequence[Video]],
    captions: Sequence[str],
    columns_of_frames: int = 8,
    *,
    scale: int | None = None,
) -> None:
    """Writes a PNG in which every clip has one row per version, for example real and reconstruction.

    Args:
        versions: label -> videos, the same number for each label.
        captions: one per clip.
        columns_of_frames, scale: as for :func:`contact_sheet`.

    Raises:
        SoraError: nothing to show, or unequal numbers of videos and captions.
    """
    if not versions or not captions:
        raise SoraError("a sheet of no videos was asked for; give at least one video and its caption")
    for label, videos in versions.items():
        if len(videos) != len(captions):
            raise SoraError(f"{len(videos)} videos {label!r} but {len(captions)} captions; give one caption per video")
    if columns_of_frames < 1:
        raise SoraError(f"columns_of_frames={columns_of_frames} must be at least 1")
    rows: list[tuple[str, str, Image.Image]] = []
    for clip, caption in enumerate(captions):
        for place, (label, videos) in enumerate(versions.items()):
            strip = _strip(_pixels(videos[clip], f"video {clip}"), columns_of_frames, scale)
            rows.append((caption if place == 0 else "", label, strip))
    with whole(path) as partial:
        _lay_out(rows).save(partial, format="PNG")


def write_image(path: str | Path, image: UInt8[Tensor, "height width 3"], *, scale: int = 1) -> None:
    """Writes one frame as PNG."""
    (pixels,) = _enlarged(_pixels(image[None], "image"), scale)
    with whole(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


class Openable(Protocol):
    """Something that is read like a file."""

    def open(self) -> BinaryIO: ...


def read_image(path: str | Path | Openable) -> UInt8[Tensor, "height width 3"]:
    """Reads a still image as it is meant to be seen: turned by its EXIF note, laid on white, 8 bits.

    Raises:
        SoraError: ``file: reason``.
    """
    with _image(path) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.clip(deep / 257 if deep.max() > 255 else deep, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return torch.from_numpy(np.array(image.convert("RGB")))


def image_size(path: str | Path | Openable) -> tuple[int, int]:
    """Height and width of a still image as shown, without reading its pixels.

    Raises:
        SoraError: ``file: reason``.
    """
    with _image(path) as opened:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


@contextmanager
def _image(path: str | Path | Openable) -> Iterator[Image.Image]:
    try:
        with Image.open(path if isinstance(path, str | Path) else path.open()) as opened:
            yield opened
    except FileNotFoundError:
        raise SoraError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SoraError(f"{path}: not an image in a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        # Pillow reports damaged files by all of these.
        raise SoraError(f"{path}: damaged, or too large an image ({problem})") from problem


def _pixels(video: Video, name: str) -> Pixels:
    shape, kind = tuple(video.shape), video.dtype
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape or str(kind).removeprefix("torch.") != "uint8":
        raise SoraError(f"{name} is {kind} of shape {shape}; it must be uint8 of shape [frames height width 3]")
    return video.detach().cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)


def _scale(scale: int) -> int:
    if not isinstance(scale, int) or scale < 1:
        raise SoraError(f"scale={scale} must be a whole number, at least 1")
    return scale


def check_rate(fps: float) -> None:
    """Raises SoraError for a rate at which no file can be written."""
    if not FPS_LEAST <= fps <= FPS_MOST:
        raise SoraError(f"fps={fps:g} must be positive, from {FPS_LEAST:g} to {FPS_MOST:g} frames per second")


def _rate(fps: float) -> Fraction:
    check_rate(fps)
    return Fraction(fps).limit_denominator(1001)


def _enlarged(frames: Pixels, scale: int) -> Pixels:
    if _scale(scale) == 1:
        return frames
    return repeat(frames, "f h w c -> f (h down) (w right) c", down=scale, right=scale)


@cache
def _encoder() -> str:
    for name in ENCODERS:
        if name in av.codecs_available:
            try:
                av.Codec(name, "w")
            except av.codec.codec.UnknownCodecError:
                continue
            if name == ENCODERS[-1]:
                log.warning("this FFmpeg has no H.264 encoder: MP4 files are written as MPEG-4 part 2")
            return name
    raise SoraError(f"this FFmpeg has none of the encoders {', '.join(ENCODERS)}; install PyAV from its own wheels")


def _palette(frames: Pixels) -> Image.Image:
    """An image whose palette holds the clip's colours: all of them if they are few."""
    red, green, blue = rearrange(frames.astype(np.uint32), "f h w c -> c (f h w)")
    colours = red << 16 | green << 8 | blue
    different = np.unique(colours)
    if len(different) > 256:
        different = np.random.default_rng(0).choice(colours, 30_000)
    sample = np.stack([different >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
    return Image.fromarray(sample[None]).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2)


def _strip(frames: Pixels, columns: int, scale: int | None) -> Image.Image:
    """Frames of one video side by side."""
    shown = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
    height, width = shown.shape[1:3]
    shown = _enlarged(shown, max(1, round(96 / height)) if scale is None else scale)
    shrink = max(1.0, *(side / 256 for side in (height, width)))
    pictures = [Image.fromarray(frame) for frame in shown]
    if shrink > 1 and scale is None:
        pictures = [
            p.resize((round(width / shrink), round(height / shrink)), Image.Resampling.LANCZOS) for p in pictures
        ]
    gap = 2
    step = pictures[0].width + gap
    strip = Image.new("RGB", (step * len(pictures) - gap, pictures[0].height), BACKGROUND)
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * step, 0))
    return strip


def _lay_out(rows: Sequence[tuple[str, str, Image.Image]], margin: int = 8, text_width: int = 240) -> Image.Image:
    has_text = any(caption or label for caption, label, _ in rows)
    left = margin + (text_width + margin if has_text else 0)
    texts = [
        [(line, INK) for line in lettering.lines(caption, text_width)]
        + [(line, FAINT) for line in lettering.lines(label, text_width)]
        for caption, label, _ in rows
    ]
    heights = [max(strip.height, lettering.LINE * len(lines)) for (_, _, strip), lines in zip(rows, texts, strict=True)]
    size = (left + max(strip.width for _, _, strip in rows) + margin, sum(heights) + margin * (len(rows) + 1))
    sheet = Image.new("RGB", size, BACKGROUND)
    top = margin
    for (_, _, strip), lines, height in zip(rows, texts, heights, strict=True):
        for place, (line, colour) in enumerate(lines):
            lettering.draw(sheet, line, margin, top + place * lettering.LINE, text_width, colour)
        sheet.paste(strip, (left, top))
        top += height + margin
    return sheet
