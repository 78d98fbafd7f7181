"""Frames of an open file in the order shown, with their times, less those that nobody sees."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

STILL_FPS = 1.0  # a still has no rate; this one keeps arithmetic defined

# Containers that store decoding times only.
WITHOUT_SHOWN_TIMES = frozenset({"avi"})

# Decoders that can leave out frames to which no other refers without a change to the others: by the standard no picture
# of H.264 refers to one whose nal_ref_idc is 0 (Rec. ITU-T H.264, 7.4.1).
SKIPPING_DECODERS = frozenset({"h264"})


class MissedError(Exception):
    """A seek landed after the wanted time, or cannot tell where it landed."""


class DoubtfulError(Exception):
    """Frames were left out of a stream that is damaged or tells no times: what is shown may depend on them."""


class Unseen:
    """Knows which frames are seen when only those due at certain moments are looked at.

    Args:
        moments: rising times in seconds; at each, the last frame due by then is seen.
    """

    def __init__(self, moments: Sequence[float]) -> None:
        self.moments = moments
        self._latest: dict[int, float] = {}

    def hidden(self, time: float) -> bool:
        """Whether the frame of ``time`` is surely unseen: one earlier in the file is shown later, before any moment.

        To be asked once for each frame, in the order of the file.
        """
        passed = bisect_left(self.moments, time)  # moments before the frame is due
        latest = self._latest.get(passed, time)
        self._latest[passed] = max(latest, time)
        return time < latest

    def over(self, time: float) -> bool:
        """Whether the last moment is before ``time``."""
        return time > self.moments[-1]


def announced_rate(stream: VideoStream) -> float | None:
    """Frames per second as the file tells them."""
    rate: Fraction | None = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def timed_frames(
    container: InputContainer, stream: VideoStream, start: float, unseen: Unseen | None
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames in the order shown with their times in seconds, from a keyframe not after ``start``.

    Args:
        unseen: what may be left out; None for every frame. Where it ends the reading before the file does, the last
            frame comes again at an infinite time.

    Raises:
        MissedError: frames carry no times, so that after a seek nobody knows where it landed.
        DoubtfulError: the same, or damage, where frames may be left out.
    """
    tick = float(stream.time_base or 1)
    origin = stream.start_time or 0
    rate = announced_rate(stream) or STILL_FPS
    if start > 0:
        try:
            container.seek(origin + int(start / tick), stream=stream)
        except av.FFmpegError as problem:
            raise MissedError from problem
    ordered = container.format.name in WITHOUT_SHOWN_TIMES
    decoder = stream.codec_context
    if ordered or decoder.name not in SKIPPING_DECODERS:
        unseen = None
    decoding_times: deque[int] = deque()
    shown, over = 0, False
    frame: av.VideoFrame | None = None
    for packet in container.demux(stream):
        if packet.size and packet.dts is not None:
            decoding_times.append(packet.dts)
        if unseen is not None:
            hidden = False
            if packet.pts is not None and packet.dts is not None and not packet.is_discard:
                # No frame is shown before it is decoded: all that follow are shown after the last moment.
                over = unseen.over((packet.dts - origin) * tick)
                hidden = unseen.hidden((packet.pts - origin) * tick)
            decoder.skip_frame = "NONREF" if hidden else "DEFAULT"
        try:
            frames = decoder.decode(None if over else packet)
        except av.error.InvalidDataError:
            if unseen is not None:
                raise DoubtfulError from None
            raise
        for frame in frames:
            if unseen is not None and (frame.pts is None or frame.is_corrupt):
                raise DoubtfulError
            due = decoding_times.popleft() if decoding_times else None
            # Frames come out in the order shown, so the n-th takes the n-th decoding time.
            stamp = due if ordered else frame.pts
            if stamp is None and start > 0:
                raise MissedError
            yield ((stamp - origin) * tick if stamp is not None else shown / rate), frame
            shown += 1
        if over:
            if frame is None:
                raise DoubtfulError
            yield math.inf, frame
            return
