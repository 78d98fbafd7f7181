"""Video files to pixels, by timestamp.

Files lie: rates vary within a clip, containers announce frames that are not there, AVI has no
presentation times, phones store turned pictures, pixels need not be square. Everything here is
about *shown* pictures at *shown* times: rotation and pixel aspect are applied, time 0 is the first
picture. One thread per file, as FFmpeg's own threads were seen to lock up whole processes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lightning_sora import media
from lightning_sora.data.endings import FILMED_STILLS, is_image, suffix_of
from lightning_sora.data.frame_folder import FrameFolder
from lightning_sora.data.frames import STILL_FPS, DoubtfulError, MissedError, Unseen, announced_rate, timed_frames
from lightning_sora.data.picture import COLOURS, Picture, quarter_turns, shown_size
from lightning_sora.data.places import DecodeError, Media, MediaPath
from lightning_sora.errors import SoraError
from lightning_sora.names import shown


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as shown.

    Attributes:
        frames: 1 for a still image.
        height, width: in square pixels, after rotation.
        fps: average frames per second; ``STILL_FPS`` for a still image.
        rotation: degrees, counter-clockwise, that were applied to the stored pictures.
    """

    frames: int
    height: int
    width: int
    fps: float
    rotation: int = 0

    @property
    def duration(self) -> float:
        """Seconds, at the average rate."""
        return self.frames / self.fps


def probe(path: MediaPath) -> VideoInfo:
    """Describes a file at the cost of one decoded frame (and of reading it through, where it has no frame count).

    Raises:
        DecodeError: no readable video; cut short; no frame rate.
    """
    path = _place(path)
    if isinstance(path, FrameFolder):
        return replace(probe(path.files[0]), frames=len(path.files), fps=path.fps)
    if is_image(path):
        if suffix_of(path) in FILMED_STILLS:
            height, width = _filmed_still(path, None).shape[1:3]
        else:
            with _stills(path):
                height, width = media.image_size(path)
        return VideoInfo(1, height, width, STILL_FPS)
    with _opened(path) as (container, stream):
        _refuse_cut_short(path, stream)
        counted = 0
        first: av.VideoFrame | None = None
        times: list[int] = []
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if stream.frames and first is not None:
                break
            if packet.size and not packet.is_discard:
                counted += 1
                times.extend(t for t in (packet.pts if packet.pts is not None else packet.dts,) if t is not None)
        if first is None:
            raise DecodeError(f"{path}: not one frame can be decoded")
        height, width = shown_size(first, stream)
        rate = announced_rate(stream)
        frames = stream.frames or counted
        if stream.frames and rate and stream.duration:
            # An edit list may leave out frames that the count still includes.
            frames = max(1, min(frames, round(stream.duration * float(stream.time_base or 0) * rate)))
        if not stream.frames and len(times) > 1 and max(times) > min(times):
            measured = (len(times) - 1) / ((max(times) - min(times)) * float(stream.time_base or 1))
            # An announced rate is the exact one of a constant rate, and a guess otherwise.
            rate = rate if rate and abs(rate / measured - 1) < 0.02 else measured
        if not rate and frames > 1:
            raise DecodeError(f"{path}: it tells neither a frame rate nor frame times; convert it to mp4 first")
        return VideoInfo(frames, height, width, rate or STILL_FPS, quarter_turns(first) * 90)


def read_clip(
    path: MediaPath,
    start_seconds: float,
    frames: int,
    fps: float | None = None,
    *,
    size: tuple[int, int] | None = None,
    colours: str = "exact",
) -> UInt8[Tensor, "frames height width 3"]:
    """Reads the pictures shown at ``start_seconds + k / fps`` for k = 0 .. frames - 1.

    The picture of a time is the last one due by then, where "due" is lenient by just under half an average
    frame: of a constant rate that is the nearest frame, whatever the rounding of the stored times.
    A rate above the file's own repeats pictures, one below leaves some out.

    Args:
        start_seconds: 0 is the first picture.
        fps: None for the file's average rate.
        size: (height, width) to scale to, anti-aliased, aspect not kept; None for the shown size.
        colours: how YUV becomes RGB where pictures are not scaled. "exact": as swscale computes it most exactly.
            "fast": as it does by default, without interpolating chroma: a window of 17 frames of H.264 at 854 x 480
            takes 0.7 of the time at 1.6 Mbit/s (less is spared where decoding costs more), and pixels differ by 3.3 of
            255 levels in the mean and by up to 85, at edges of colour. Scaled pictures are exact under both.

    Returns:
        uint8 in [0, 255]. Transparent parts are laid on white. High dynamic range is not tone-mapped.

    Raises:
        DecodeError: no readable video, damage within the window, or the file ends before the window does.
    """
    path = _place(path)
    if frames < 1 or start_seconds < 0 or (fps is not None and fps <= 0):
        raise SoraError(
            f"cannot read {frames} frames from {start_seconds} s at {fps} frames per second: "
            "the number and the rate must be positive, the start not negative"
        )
    if colours not in COLOURS:
        raise SoraError(f"colours={colours!r} must be one of {', '.join(COLOURS)}")
    if isinstance(path, FrameFolder):
        return _read_frames(path, [start_seconds + k / (fps or path.fps) for k in range(frames)], size)
    if is_image(path):
        return _read_still(path, frames, size)

    def window(seek_to: float, *, seen_only: bool) -> UInt8[Tensor, "frames height width 3"]:
        with _opened(path) as (container, stream):
            native = announced_rate(stream) or STILL_FPS
            lenience = 0.49 / native
            times = [start_seconds + k / (fps or native) for k in range(frames)]
            unseen = Unseen([time + lenience for time in times]) if seen_only else None
            timed = timed_frames(container, stream, seek_to, unseen)
            picture = Picture(stream, size, colours)
            return torch.from_numpy(_pick(path, timed, times, lenience, picture, sought=seek_to > 0))

    for seek_to in dict.fromkeys((start_seconds, 0.0)):
        try:
            try:
                return window(seek_to, seen_only=True)
            except DoubtfulError:
                return window(seek_to, seen_only=False)
        except MissedError:
            continue
    raise AssertionError("reading from the start cannot miss")


def check(path: MediaPath) -> str | None:
    """Decodes a whole file.

    Returns:
        The reason why it is unfit, in words, or None.
    """
    path = _place(path)
    try:
        if isinstance(path, FrameFolder):
            _check_frames(path)
        elif is_image(path):
            _read_still(path, 1, None)
        else:
            _decode_through(path)
    except DecodeError as problem:
        return str(problem).removeprefix(shown(f"{path}: "))
    return None


def _check_frames(folder: FrameFolder) -> None:
    """Reads the images one at a time, so that a long video is never in memory whole."""
    first, *others = folder.files
    shape = _read_still(first, 1, None).shape
    for file in others:
        if _read_still(file, 1, None).shape != shape:
            raise DecodeError(f"{folder}: {file.name} has another size than {first.name}")


def _decode_through(path: Path | Media) -> None:
    probe(path)
    decoded, left_out, end = 0, 0, 0.0
    with _opened(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                left_out += packet.is_discard
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise DecodeError(f"{path}: frame {decoded} is damaged")
                    decoded += 1
                    end = max(end, frame.time or 0.0)
        except av.FFmpegError as problem:
            raise DecodeError(
                f"{path}: decoding fails after frame {decoded} of {stream.frames or 'an unknown number'} "
                f"({_words(problem)})"
            ) from problem
        announced = stream.frames - left_out
        # Decoders may drop a leading picture or two that refer to what came before the file's first.
        if decoded < announced - 2:
            raise DecodeError(f"{path}: only {decoded} of {announced} frames are there; it was cut short")
        alone = len(container.streams) == 1 and container.duration is not None
        if not stream.frames and alone and end < (promised := (container.duration or 0) / av.time_base) * 0.95 - 0.5:
            raise DecodeError(f"{path}: ends at {end:.2f} s of {promised:.2f} s; it was cut short")


def _place(path: MediaPath) -> Path | Media:
    return Path(path) if isinstance(path, str) else path


def _size(path: Path | Media) -> int:
    """Bytes.

    Raises:
        DecodeError: a pipe, a device or a folder, which would be waited for.
    """
    if not isinstance(path, Path):
        return path.size
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError(f"{path}: {'it is a folder' if stat.S_ISDIR(found.st_mode) else 'it is no regular file'}")
    return found.st_size


@contextmanager
def _stills(path: Path | Media) -> Iterator[None]:
    try:
        _size(path)
        yield
    except DecodeError:
        raise
    except SoraError as problem:
        raise DecodeError(str(problem)) from problem
    except OSError as problem:
        raise DecodeError(f"{path}: {_words(problem)}") from problem


def _read_still(path: Path | Media, frames: int, size: tuple[int, int] | None) -> UInt8[Tensor, "1 height width 3"]:
    if frames != 1:
        raise DecodeError(f"{path}: a still image has 1 frame, {frames} were asked for")
    if suffix_of(path) in FILMED_STILLS:
        return _filmed_still(path, size)
    with _stills(path):
        image = media.read_image(path)
    if size is not None and size != tuple(image.shape[:2]):
        scaled = Image.fromarray(image.numpy()).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(scaled))
    return image[None]


def _read_frames(
    folder: FrameFolder, times: list[float], size: tuple[int, int] | None
) -> UInt8[Tensor, "frames height width 3"]:
    """The images shown at rising times, as of a video of a constant rate."""
    files, pictures = folder.files, dict[int, Tensor]()
    due = [int(time * folder.fps + 0.49) for time in times]
    if due[-1] >= len(files):
        end = len(files) / folder.fps
        raise DecodeError(f"{folder}: ends at {end:.2f} s, but frames up to {times[-1]:.2f} s were asked for")
    for number in due:
        if number not in pictures:
            pictures[number] = _read_still(files[number], 1, size)
            if pictures[number].shape != pictures[due[0]].shape:
                raise DecodeError(f"{folder}: {files[number].name} has another size than {files[due[0]].name}")
    return torch.cat([pictures[number] for number in due])


def _filmed_still(path: Path | Media, size: tuple[int, int] | None) -> UInt8[Tensor, "1 height width 3"]:
    """A picture that is a frame of a video codec; a container of such may hold tiles and thumbnails beside it."""
    with _opened(path) as (container, _):
        stream = next((s for s in container.streams.video if s.disposition & Disposition.default), None)
        if stream is None and len(container.streams.video) > 1:
            tiles = len(container.streams.video)
            raise DecodeError(f"{path}: its picture is made of {tiles} tiles; convert it to JPEG or PNG")
        stream = stream or container.streams.video[0]
        stream.thread_type = "NONE"
        frame = next(container.decode(stream), None)
        if frame is None:
            raise DecodeError(f"{path}: no picture can be decoded")
        picture = Picture(stream, size)
        pixels = np.empty((1, *picture.shape(frame)), dtype=np.uint8)
        picture.draw(frame, pixels[0])
        return torch.from_numpy(pixels)


@contextmanager
def _opened(path: Path | Media) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file at its first video stream; FFmpeg's complaints inside become DecodeErrors."""
    try:
        if _size(path) == 0:
            raise DecodeError(f"{path}: the file is empty")
        # "file:" keeps a colon in the name from being read as a protocol.
        target: Any = f"file:{path}" if isinstance(path, Path) else path.open()
        with av.open(target, "r", metadata_errors="ignore") as container:
            films = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
            stream = next(films, None)
            if stream is None:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
                raise DecodeError(f"{path}: it has no video, only {kinds}")
            stream.thread_type = "NONE"
            yield container, stream
    except (av.FFmpegError, OSError) as problem:
        raise DecodeError(f"{path}: {_words(problem)}") from problem


def _words(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "no such file"
    if isinstance(problem, IsADirectoryError):
        return "it is a folder"
    if isinstance(problem, av.error.InvalidDataError):
        return "its data is damaged, incomplete or no video"
    return str(getattr(problem, "strerror", None) or problem)


def _refuse_cut_short(path: Path | Media, stream: VideoStream) -> None:
    """The index of an mp4 says where the last frame ends: beyond the file's end if that was cut."""
    needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    held = _size(path)
    if needed > held:
        raise DecodeError(f"{path}: cut short, it holds {held:,} of {needed:,} bytes")


def _pick(
    path: Path | Media,
    timed: Iterator[tuple[float, av.VideoFrame]],
    times: list[float],
    lenience: float,
    picture: Picture,
    *,
    sought: bool,
) -> UInt8[np.ndarray, "frames height width 3"]:
    """For each of the rising ``times`` the last frame due by then."""
    pictures = np.empty((len(times), 0, 0, 3), dtype=np.uint8)
    done = 0
    held: av.VideoFrame | None = None
    held_since = 0.0

    def show_until(moment: float) -> None:
        nonlocal pictures, done
        due = sum(time + lenience < moment for time in times[done:])
        if held is not None and due:
            if not done:
                pictures = np.empty((len(times), *picture.shape(held)), dtype=np.uint8)
            picture.draw(held, pictures[done])
            pictures[done + 1 : done + due] = pictures[done]
            done += due

    damage: av.FFmpegError | None = None
    try:
        for time, frame in timed:
            if held is None and sought and time > times[0] + lenience:
                raise MissedError
            if held is not None:
                if time <= held_since:
                    continue
                show_until(time)
                if done == len(times):
                    return pictures
            held, held_since = frame, time
    except av.error.InvalidDataError as problem:
        # Harmless if it only hits what comes after the window.
        damage = problem
    hold = lenience
    if held is not None and damage is None:
        hold = max(2 * lenience, float((held.duration or 0) * (held.time_base or 0)))
    if held is None and sought:
        raise MissedError
    if damage is not None and (held is None or times[-1] > held_since + hold):
        raise DecodeError(f"{path}: its data is damaged after {held_since:.2f} s") from damage
    if held is None:
        raise DecodeError(f"{path}: not one frame can be decoded")
    if times[-1] > held_since + hold:
        end = held_since + hold
        raise DecodeError(f"{path}: ends at {end:.2f} s, but frames up to {times[-1]:.2f} s were asked for")
    show_until(float("inf"))
    return pictures
