"""From a decoded frame to the picture that is shown: turned, in square pixels, on white, in RGB."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from jaxtyping import UInt8

# Anti-aliased when shrinking. Without the last two flags swscale errs by up to 38 of 255 levels at edges.
SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns, counter-clockwise, from the stored picture to the shown one."""
    return round(frame.rotation / 90) % 4


def shown_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Height and width in square pixels, turned."""
    aspect = float(stream.sample_aspect_ratio or 1)
    # Ratios near one come from rounded sizes, absurd ones from broken headers.
    squeezed = 1 / 4 <= aspect <= 4 and abs(aspect - 1) > 0.02
    width = round(frame.width * aspect) if squeezed else frame.width
    return (width, frame.height) if quarter_turns(frame) % 2 else (frame.height, width)


class Picture:
    """Turns frames into pixels of one size, that of the first unless given."""

    def __init__(self, stream: VideoStream, size: tuple[int, int] | None) -> None:
        self.stream, self.size = stream, size

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
        if self.size is None:
            self.size = shown_size(frame, self.stream)
        turns = quarter_turns(frame)
        height, width = self.size[::-1] if turns % 2 else self.size
        transparent = any(component.is_alpha for component in frame.format.components)
        pixels: np.ndarray = frame.reformat(
            width=width, height=height, format="rgba" if transparent else "rgb24", interpolation=SCALER, threads=1
        ).to_ndarray()
        if transparent:
            alpha = pixels[..., 3:].astype(np.float32) / 255
            pixels = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
        return np.rot90(pixels, turns)
