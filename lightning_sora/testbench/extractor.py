"""The world evaluator as an extractor: distances between sets of world clips, offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor
from lightning_sora.testbench.evaluator.reading import Reading, frames_at, load_evaluator, prepare
from lightning_sora.testbench.evaluator.vocabulary import FPS, FRAMES, MIN_FRAMES, SIDE


@EXTRACTORS.register("world")
class WorldExtractor(Extractor):
    """The clip embedding of the shipped evaluator, before it is normalised.

    It looks at a moment every 1/8 second, so it must be told the rate of each clip.

    Args:
        weights: path of another evaluator; None takes the one that is shipped.
    """

    title = "FVD (world)"
    min_frames = MIN_FRAMES
    by_seconds = True
    text_per = "reading"

    def __init__(self, *, weights: str | None = None) -> None:
        super().__init__()
        self.evaluator = load_evaluator(weights)
        self.network = self.evaluator.network
        self.width = self.evaluator.width

    def at_rate(self, clip: Clip, fps: float | None) -> Clip:
        """The frames nearest to every 1/8 second, of the first 2 seconds."""
        return clip[frames_at(len(clip), self._told(fps))]

    def least_frames(self, fps: float | None) -> int:
        """Of one second.

        Raises:
            SoraError: the rate is not told.
        """
        return math.ceil((MIN_FRAMES - 1) * self._told(fps) / FPS - 1e-6) + 1

    def _told(self, fps: float | None) -> float:
        if fps is None or not fps > 0:
            raise SoraError(f"{self.title} goes by seconds: tell the frames per second of each clip, not fps={fps}")
        return fps

    def prepare(self, clip: Clip) -> Tensor:
        return prepare(clip, FPS)

    def features(self, clips: Tensor) -> Tensor:
        return self.network(clips).features

    def outputs(self, clips: Sequence[Clip], fps: Sequence[float] | None = None, per: str = "clip") -> list[Any]:
        """Also, with ``per="reading"``, what the evaluator reads: a :class:`Reading` of each clip."""
        if per != "reading":
            return super().outputs(clips, fps, per)
        rates = [self._told(rate) for rate in (fps if fps is not None else [None] * len(clips))]
        return list(self.evaluator.read(clips, rates))

    def text_rows(self, output: Reading) -> Tensor:
        """The one embedding of a clip, of unit length."""
        return output.embedding[None]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self.evaluator.embed_texts(texts)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "world",
            "weights": f"sha256:{self.evaluator.digest}",
            "verified": True,
            "clip": f"first {FRAMES} moments at {FPS:g} per second, the nearest frame of each",
            "size": [SIDE, SIDE],
            "resize": "middle square, bilinear, antialiased",
            "range": "[0, 1]",
        }

    def to(self, *args: Any, **kwargs: Any) -> WorldExtractor:
        # The network is shared by whoever loaded it; in other precision it would be another evaluator.
        device, _, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        return super().to(device) if device is not None else self
