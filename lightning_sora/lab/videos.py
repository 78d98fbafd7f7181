"""Videos in files."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.media import Video, write_gif, write_image, write_mp4

WRITERS = {".mp4": write_mp4, ".gif": write_gif}


def read_video(
    path: str | Path, frames: int | None = None, fps: float | None = None, *, start: float = 0.0
) -> tuple[Video, float]:
    """Reads a video, a GIF or a still image as it is meant to be seen, with its frame rate.

    Args:
        frames: how many; None for all from ``start`` on. A still has one.
        fps: frames per second to take, the nearest in time; None for the file's own.
        start: in seconds.

    Returns:
        uint8 [frames height width 3], values 0 to 255, and frames per second.

    Raises:
        SoraError: no such file, damaged, or a start, rate or number of frames that it does not have.

    Example:
        >>> import tempfile, torch, lightning_sora as ls
        >>> file = ls.save_video(f"{tempfile.mkdtemp()}/grey.mp4", torch.full((5, 32, 32, 3), 128, dtype=torch.uint8))
        >>> video, fps = ls.read_video(file)
        >>> tuple(video.shape), fps
        ((5, 32, 32, 3), 8.0)
    """
    from lightning_sora.data.decode import is_image, probe, read_clip

    path = Path(path).expanduser()
    if not os.path.isfile(path):
        raise SoraError(f"no file at {path}; give the path of a video or an image")
    if start < 0 or (frames is not None and frames < 1) or (fps is not None and not fps > 0):
        raise SoraError(f"start={start} must be at least 0, frames={frames} at least 1 and fps={fps} above 0")
    info = probe(path)
    rate = fps or info.fps
    # The picture of a time is the nearest one: the last is due half a frame before its own time.
    there = max(0, int((info.frames - 0.5) / info.fps * rate - start * rate) + 1) if not is_image(path) else 1
    wanted = there if frames is None else frames
    if not 1 <= wanted <= there:
        raise SoraError(
            f"{path} has {there} frames at {rate:g} per second from {start:g} s on, and {max(wanted, 1)} are asked "
            "for; ask for fewer, or for an earlier start"
        )
    return read_clip(path, start, wanted, fps), rate


def save_video(path: str | Path, video: Video, fps: float = 8.0, *, scale: int = 1) -> Path:
    """Writes a video as MP4 (H.264), GIF or, if it is one frame, PNG, by the ending of ``path``.

    Args:
        video: uint8 [frames height width 3], values 0 to 255.
        fps: frames per second.
        scale: each pixel becomes ``scale`` x ``scale`` pixels, so that a small sample can be seen.

    Returns:
        The path. Missing folders are made.

    Raises:
        SoraError: another ending, or a video, rate or scale that cannot be written.

    Example:
        >>> import tempfile, torch, lightning_sora as ls
        >>> video = torch.zeros(9, 32, 32, 3, dtype=torch.uint8)
        >>> ls.save_video(f"{tempfile.mkdtemp()}/black.gif", video, fps=8, scale=4).name
        'black.gif'
    """
    path = Path(path).expanduser()
    ending = path.suffix.lower()
    if ending == ".png" and len(video) == 1:
        write_image(path, video[0], scale=scale)
    elif ending in WRITERS:
        WRITERS[ending](path, video, fps, scale=scale)
    else:
        raise SoraError(f"{path} must end in {', '.join(WRITERS)}, or in .png for one frame; rename it")
    return path
