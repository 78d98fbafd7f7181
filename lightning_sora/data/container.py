"""Opening files that may be anything: no wait for pipes, no playlists that lead elsewhere, no room for bombs."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from lightning_sora.data.sources.base import DecodeError, Media, MediaPath

#: Pixels of the largest picture that is decoded, 16384 x 8192: a few bytes can announce thousands of times more.
MAX_PIXELS = 1 << 27

# Only what holds its own frames. A playlist named .mp4 would have FFmpeg read other files, or the network.
DEMUXERS = (
    "mov,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,asf,flv,live_flv,ogg,ivf,nut,mxf,dv,rm,h261,h263,h264,hevc,vvc,"
    "m4v,obu,mjpeg,yuv4mpegpipe,swf,wtv,mp3,flac,wav,aac,ac3,aiff"
)


def placed(path: MediaPath) -> Path | Media:
    """Names of files become paths."""
    return Path(path) if isinstance(path, str) else path


def name_of(place: MediaPath) -> str:
    """What messages call it."""
    return str(place) if isinstance(place, str | Path) else place.name


def size_of(place: Path | Media) -> int:
    """Bytes.

    Raises:
        DecodeError: a pipe, a device or a folder, which would be waited for.
        OSError: nothing is there.
    """
    if not isinstance(place, Path):
        return place.size
    found = place.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError(f"{place}: {'it is a folder' if stat.S_ISDIR(found.st_mode) else 'it is no regular file'}")
    return found.st_size


@contextmanager
def opened(place: Path | Media) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file at its first video stream; FFmpeg's complaints inside become DecodeErrors.

    Raises:
        DecodeError: not there, not a regular file, empty, no video, a picture of more than ``MAX_PIXELS``.
    """
    name = name_of(place)
    try:
        if size_of(place) == 0:
            raise DecodeError(f"{name}: the file is empty")
        with ExitStack() as held:
            # "file:" keeps a colon in the name from being read as a protocol.
            target: Any = f"file:{place}" if isinstance(place, Path) else held.enter_context(place.open())
            limit = {"max_pixels": str(MAX_PIXELS)}
            options = limit | {"format_whitelist": DEMUXERS}
            container = held.enter_context(av.open(target, "r", metadata_errors="ignore", options=options))
            films = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
            stream = next(films, None)
            if stream is None:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
                raise DecodeError(f"{name}: it has no video, only {kinds}")
            if stream.codec_context is None:
                raise DecodeError(f"{name}: this FFmpeg has no decoder for its video")
            if not stream.width * stream.height:
                raise DecodeError(f"{name}: its pictures cannot be read, or are of more than {MAX_PIXELS:,} pixels")
            stream.thread_type = "NONE"
            stream.codec_context.options = limit
            yield container, stream
    except (av.FFmpegError, OSError) as problem:
        raise DecodeError(f"{name}: {words(problem)}") from problem


def words(problem: Exception) -> str:
    """What went wrong, for people."""
    if isinstance(problem, FileNotFoundError):
        return "no such file"
    if isinstance(problem, IsADirectoryError):
        return "it is a folder"
    # An invalid argument is FFmpeg's word for a kind of file that it was not to open, too.
    if isinstance(problem, av.error.InvalidDataError | av.error.ArgumentError | av.error.EOFError):
        return "its data is damaged, incomplete or no video"
    return str(getattr(problem, "strerror", None) or problem)


def refuse_cut_short(place: Path | Media, stream: VideoStream) -> None:
    """The index of an mp4 says where the last frame ends: beyond the file's end if that was cut."""
    needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    held = size_of(place)
    if needed > held:
        raise DecodeError(f"{name_of(place)}: cut short, it holds {held:,} of {needed:,} bytes")


def announced_rate(stream: VideoStream) -> float | None:
    """Frames per second by the file's own word, if it has one."""
    rate: Fraction | None = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None
