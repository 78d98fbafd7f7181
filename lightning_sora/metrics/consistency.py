"""Consistency and motion of clips as torchmetrics: means over clips of the scores in :mod:`.temporal`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_means import ClipMeans, EncodedClips, FrameEncoder
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.temporal import (
    Interpolator,
    NoValidPixel,
    dynamic_degree,
    flow_stride,
    frame_consistency,
    mean_of_neighbours,
    motion_smoothness,
    temporal_cosine,
    temporal_flickering,
    warping_error,
)

FlowOf = Callable[[Tensor], Tensor]
"""A clip, uint8 [frames height width 3], to flow [pairs 2 height width]: ``partial(raft_flow, network=...)``."""


class FeatureConsistency(EncodedClips):
    """VBench's consistency of each frame with the first and the one before, on the features of an encoder.

    VBench averages over frames on one process and over clips on several; here it is always clips, which differs
    where they differ in length.

    Args:
        encoder: embeds frames.
        name: of the score.
    """

    higher_is_better = True

    def __init__(self, encoder: FrameEncoder, name: str) -> None:
        super().__init__([name], encoder)

    def update(self, clips: Sequence[Clip]) -> None:
        """Adds clips of two frames or more."""
        self.add({self.names[0]: _stacked([frame_consistency(self.encoder.embed_images(clip)) for clip in clips])})


class SubjectConsistency(FeatureConsistency):
    """Consistency of the subject; VBench's with DINO ViT-B/16 (``DINOExtractor``)."""

    def __init__(self, encoder: FrameEncoder) -> None:
        super().__init__(encoder, "subject_consistency")


class BackgroundConsistency(FeatureConsistency):
    """Consistency of the background; VBench's with CLIP ViT-B/32 (``CLIPEncoder(antialias=False)``)."""

    def __init__(self, encoder: FrameEncoder) -> None:
        super().__init__(encoder, "background_consistency")


class CLIPTemporalConsistency(EncodedClips):
    """The cosine of consecutive frames' CLIP embeddings, mean over pairs and then clips; in [-1, 1]."""

    higher_is_better = True

    def __init__(self, encoder: FrameEncoder) -> None:
        super().__init__(["clip_temporal_consistency"], encoder)

    def update(self, clips: Sequence[Clip]) -> None:
        """Adds clips of two frames or more."""
        self.add({self.names[0]: _stacked([temporal_cosine(self.encoder.embed_images(clip)) for clip in clips])})


class TemporalFlickering(ClipMeans):
    """1 - the change between frames. VBench keeps only its still clips for this; here all that are given count."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(["temporal_flickering"])

    def update(self, clips: Sequence[Clip]) -> None:
        """Adds clips of two frames or more."""
        self.add({self.names[0]: _stacked([temporal_flickering(clip) for clip in clips])})


class MotionSmoothness(ClipMeans):
    """How well odd frames follow from their neighbours.

    Args:
        interpolate: see :func:`motion_smoothness`, whose default is not VBench's network.
    """

    higher_is_better = True

    def __init__(self, interpolate: Interpolator = mean_of_neighbours) -> None:
        super().__init__(["motion_smoothness"])
        self.interpolate = interpolate

    def update(self, clips: Sequence[Clip]) -> None:
        """Adds clips of three frames or more."""
        self.add({self.names[0]: _stacked([motion_smoothness(clip, self.interpolate) for clip in clips])})


class DynamicDegree(ClipMeans):
    """The fraction of clips that move.

    Args:
        flow_of: estimates flow.
        compat: see :func:`dynamic_degree`.
    """

    def __init__(self, flow_of: FlowOf, compat: str | None = None) -> None:
        super().__init__(["dynamic_degree"])
        self.flow_of, self.compat = flow_of, compat

    def update(self, clips: Sequence[Clip], fps: Sequence[float]) -> None:
        """Adds clips, each with its frames per second; about 8 frames of each second are looked at.

        Raises:
            SoraError: not one frame rate per clip, or a clip too short to have two such frames.
        """
        if len(clips) != len(fps):
            raise SoraError(f"{len(clips)} clips have {len(fps)} frame rates; give one for each")
        scores = []
        for clip, rate in zip(clips, fps, strict=True):
            stride = flow_stride(rate)
            sampled = clip[::stride]
            if len(sampled) < 2:
                raise SoraError(
                    f"a clip of {len(clip)} frames at {rate:g} fps has no two frames 1/8 second apart; give at least "
                    f"{stride + 1} frames"
                )
            flow = self.flow_of(sampled)
            scores.append(dynamic_degree(flow, rate / stride, clip.shape[1], clip.shape[2], self.compat))
        self.add({self.names[0]: _stacked(scores)})


class WarpingError(ClipMeans):
    """The warping error, with occlusions found from flow in both directions.

    Clips of which no pixel can be followed have no error; ``warping_error_scored`` is the fraction that have one.

    Args:
        flow_of: estimates flow.
    """

    higher_is_better = False

    def __init__(self, flow_of: FlowOf) -> None:
        super().__init__(["warping_error", "warping_error_scored"])
        self.flow_of = flow_of

    def update(self, clips: Sequence[Clip]) -> None:
        """Adds clips of two frames or more."""
        scores = []
        for clip in clips:
            ahead, back = self.flow_of(clip), self.flow_of(clip.flip(0)).flip(0)
            try:
                scores.append(warping_error(clip.to(ahead.device), ahead, back))
            except NoValidPixel:
                continue
        scored = torch.zeros(len(clips), dtype=torch.float64)
        scored[: len(scores)] = 1
        self.add({"warping_error": _stacked(scores)})
        self.add({"warping_error_scored": scored})


def _stacked(scores: list[Tensor]) -> Tensor:
    return torch.stack(scores) if scores else torch.zeros(0, dtype=torch.float64)
