"""The world evaluator as an extractor: distances between sets of world clips, offline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sora.metrics.evaluator.reading import load_evaluator, prepare
from lightning_sora.metrics.evaluator.vocabulary import FPS, FRAMES, MIN_FRAMES, SIDE
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor


@EXTRACTORS.register("world")
class WorldExtractor(Extractor):
    """The clip embedding of the shipped evaluator, before it is normalised.

    Args:
        weights: path of another evaluator; None takes the one that is shipped.
        fps: frames per second of the clips that it is given.
    """

    title = "FVD (world)"

    def __init__(self, *, weights: str | None = None, fps: float = FPS) -> None:
        super().__init__()
        self.evaluator = load_evaluator(weights)
        self.network = self.evaluator.network
        self.width, self.fps = self.evaluator.width, fps
        self.min_frames = int(-(-(MIN_FRAMES - 1) * fps // FPS)) + 1

    def prepare(self, clip: Clip) -> Tensor:
        return prepare(clip, self.fps)

    def features(self, clips: Tensor) -> Tensor:
        return self.network(clips).features

    def describe(self) -> dict[str, Any]:
        return {
            "name": "world",
            "weights": f"sha256:{self.evaluator.digest}",
            "verified": True,
            "clip": f"first {FRAMES} frames at {FPS:g} fps, of clips at {self.fps:g} fps",
            "size": [SIDE, SIDE],
            "resize": "middle square, bilinear, antialiased",
            "range": "[0, 1]",
        }

    def to(self, *args: Any, **kwargs: Any) -> WorldExtractor:
        # The network is shared by whoever loaded it; in other precision it would be another evaluator.
        device, _, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        return super().to(device) if device is not None else self
