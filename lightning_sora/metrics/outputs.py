"""What networks make of the clips of one update of an evaluation, each made once and shared by all metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import Evaluated, Side, VideoMetric
from lightning_sora.metrics.extractors import Extractor
from lightning_sora.metrics.extractors.base import Clip


@dataclass
class Outputs:
    """What networks make of the clips of one update, each made once."""

    networks: Mapping[str, Extractor]
    videos: Mapping[Side, Sequence[Evaluated]]
    made: dict[tuple[Any, ...], dict[int, Any]] = field(default_factory=dict)

    def of(self, name: str, metric: VideoMetric, side: Side) -> Iterator[Evaluated]:
        """The clips of a side that a metric can be given, with what it needs."""
        needs, videos = metric.needs, self.videos[side]
        if missing := self.lacking(metric, side):
            raise SoraError(
                f"{name} needs {' and '.join(missing)} of the {side} clips, which are not told; give them, or "
                f"leave {name} "
                "out"
            )
        spec = needs.features
        if spec is None:
            yield from (replace(video, metric=metric) for video in videos if len(video.clip) >= needs.min_frames)
            return
        made = self._made(spec, needs.per, needs.frames if needs.per == "frame" else None, side)
        for i, video in enumerate(videos):
            if i in made and len(video.clip) >= needs.min_frames:
                yield replace(video, features=made[i], metric=metric)

    def lacking(self, metric: VideoMetric, side: Side) -> list[str]:
        """What a metric needs of the clips of a side that is not told."""
        needs, videos = metric.needs, self.videos[side]
        lacking = {
            "captions": needs.captions and any(video.caption is None for video in videos),
            "facts": needs.facts and any(video.facts is None for video in videos),
            "the frames per second": needs.fps and any(video.fps is None for video in videos),
            "the real clips of the same ids": needs.pairs and "real" not in self.videos,
        }
        return [what for what, is_missing in lacking.items() if is_missing]

    def _made(self, spec: str, per: str, frames: int | None, side: Side) -> dict[int, Any]:
        key = spec, per, frames, side
        if key not in self.made:
            network, videos = self.networks[spec], self.videos[side]
            taken = [
                i
                for i, video in enumerate(videos)
                if len(video.clip) >= (frames or 1) and network.takes_per(per, len(video.clip), video.fps)
            ]
            some = [videos[i] for i in taken]
            rates = [video.fps for video in some]
            known = None if any(rate is None for rate in rates) else [float(rate or 0) for rate in rates]
            clips = [spaced_frames(video.clip, frames) for video in some]
            outputs = network.outputs(clips, known, per) if some else []
            self.made[key] = dict(zip(taken, outputs, strict=True))
        return self.made[key]


def spaced_frames(clip: Clip, count: int | None) -> Clip:
    """``count`` frames of a clip, each the middle of an equal share of it; None takes all.

    Raises:
        SoraError: the clip has fewer.
    """
    if count is None:
        return clip
    if len(clip) < count:
        raise SoraError(f"frames={count} of a clip of {len(clip)} cannot be scored; ask for at most {len(clip)}")
    return clip[[(2 * i + 1) * len(clip) // (2 * count) for i in range(count)]]
