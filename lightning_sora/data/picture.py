"""From a decoded frame to the picture that is shown: turned, in square pixels, on white, in RGB."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

# Anti-aliased when shrinking. Without the last two flags swscale errs by up to 38 of 255 levels at edges.
SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
COLOURS = ("exact", "fast")


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
    """Turns frames into pixels of one size, that of the first unless given.

    Args:
        colours: "exact" for swscale's most exact conversion, "fast" for its quickest, where frames are neither RGB nor
            scaled: it spares no time where they are scaled.
    """

    def __init__(self, stream: VideoStream, size: tuple[int, int] | None, colours: str = "exact") -> None:
        self.stream, self.size, self.colours = stream, size, colours
        self._reformatter = VideoReformatter()  # one for all frames, as it is set up at the first

    def shape(self, frame: av.VideoFrame) -> tuple[int, int, int]:
        """Of what :meth:`draw` writes: height, width, 3."""
        if self.size is None:
            self.size = shown_size(frame, self.stream)
        return *self.size, 3

    def draw(self, frame: av.VideoFrame, into: UInt8[np.ndarray, "height width 3"]) -> None:
        """Writes a frame as it is shown."""
        turns = quarter_turns(frame)
        upright = np.rot90(into, -turns)
        if any(component.is_alpha for component in frame.format.components):
            (pixels,) = self._planes(frame, "rgba", upright.shape)
            alpha = pixels[..., 3:].astype(np.float32) / 255
            upright[:] = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round()
        elif frame.format.is_rgb:
            (upright[:],) = self._planes(frame, "rgb24", upright.shape)
        elif self.colours == "fast" and (frame.height, frame.width) == upright.shape[:2]:
            (upright[:],) = self._planes(frame, "rgb24", upright.shape, Interpolation.BICUBIC)
        else:
            # Into planes swscale's most exact conversion is vectorized: the same pixels in a quarter of the time.
            for channel, plane in zip((1, 2, 0), self._planes(frame, "gbrp", upright.shape), strict=True):
                upright[..., channel] = plane[..., 0]

    def _planes(
        self, frame: av.VideoFrame, format: str, shape: tuple[int, ...], scaler: Interpolation = SCALER
    ) -> list[UInt8[np.ndarray, "height width channels"]]:
        """The pixels of a frame in another format, of a (height, width) before it is turned."""
        height, width = shape[:2]
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format=format, interpolation=scaler, threads=1
        )
        channels = len(scaled.format.components) // len(scaled.planes)
        rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(height, -1) for plane in scaled.planes]
        return [row[:, : width * channels].reshape(height, width, channels) for row in rows]
