"""Stand-ins for metrics: extractors whose features are known without a network, and clips as metrics are given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sora.metrics.base import Evaluated, Score, VideoMetric
from lightning_sora.metrics.extractors.base import Clip, Extractor
from lightning_sora.metrics.outputs import spaced_frames


class Angle(Extractor):
    """A frame of grey level g, and a caption that is a number, point g degrees from the first axis."""

    title, width, text_per = "angle", 2, "frame"

    def prepare(self, clip: Clip) -> Tensor:
        return clip.permute(3, 0, 1, 2).float()

    def features(self, clips: Tensor) -> Tensor:
        return direction(clips[:, 0, 0, 0, 0].double())

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return 7 * direction(torch.tensor([float(text) for text in texts], dtype=torch.float64))

    def describe(self) -> dict[str, Any]:
        return {"name": "angle", "verified": False}


def direction(degrees: Tensor) -> Tensor:
    """Of unit length, [angles 2]."""
    angle = torch.deg2rad(degrees)
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def scored(
    metric: VideoMetric, clips: Sequence[Clip], network: Extractor | None = None, **told: Sequence[Any]
) -> Score:
    """What a metric says of generated clips, given at once.

    Args:
        network: whose features it is given.
        told: what else is told of each clip.
    """
    if network is not None:
        metric.bind(network)
    chosen = [spaced_frames(clip, metric.needs.frames) for clip in clips]
    outputs = [None] * len(clips) if network is None else network.outputs(chosen, per=metric.needs.per)
    known = [{name: values[i] for name, values in told.items()} for i in range(len(clips))]
    videos = [
        Evaluated(str(i), clip, features=output, **more)
        for i, (clip, output, more) in enumerate(zip(clips, outputs, known, strict=True))
    ]
    metric.add(videos, metric.of)
    found = metric.compute()
    assert found is not None
    return found
