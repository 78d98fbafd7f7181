"""What single clips show over time, as metrics of an evaluation: flicker, smoothness, motion, agreement of frames.

The formulas are in :mod:`.temporal`; names and formulas are VBench's (Huang et al. 2024, arXiv:2311.17982) unless said
otherwise. VBench averages over frames on one process and over clips on several; here it is always clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import Evaluated, Needs, PerVideoMetric, register_metric
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.temporal import (
    NoValidPixel,
    dynamic_degree,
    flow_stride,
    frame_consistency,
    load_raft,
    motion_smoothness,
    raft_flow,
    temporal_cosine,
    temporal_flickering,
    warping_error,
)


@register_metric("temporal_flickering")
class TemporalFlickering(PerVideoMetric):
    """1 - mean |x_t - x_t+1| / 255, in [0, 1]; a clip that stands still has 1.

    VBench keeps only its still clips for this; here all that are given count.
    """

    needs = Needs(min_frames=2)
    higher_is_better = True
    automatic = "temporal_flickering"

    def score(self, video: Evaluated) -> float:
        return float(temporal_flickering(video.clip))

    def card(self) -> dict[str, Any]:
        return {"definition": "1 - mean |x_t - x_t+1| / 255"}


@register_metric("motion_smoothness")
class MotionSmoothness(PerVideoMetric):
    """1 - mean |x_t - (x_t-1 + x_t+1) / 2| / 255 over odd frames, in [0, 1]; a clip that stands still has 1.

    VBench's number is this with the network AMT for the mean of the neighbours: the two do not compare.
    """

    needs = Needs(min_frames=3)
    higher_is_better = True
    automatic = "motion_smoothness"

    def score(self, video: Evaluated) -> float:
        return float(motion_smoothness(video.clip))

    def card(self) -> dict[str, Any]:
        return {"definition": "1 - mean |x_t - (x_t-1 + x_t+1) / 2| / 255, odd t, not VBench's AMT"}


class _OfFrames(PerVideoMetric):
    """Of the features of single frames.

    Args:
        extractor: spec of the network.
    """

    higher_is_better = True

    def __init__(self, extractor: str) -> None:
        self.needs = Needs(features=extractor, per="frame", min_frames=2)


@register_metric("subject_consistency")
class SubjectConsistency(_OfFrames):
    """How alike each frame is to the first and to the one before, by the cosine of their features, in [0, 1].

    VBench's with DINO ViT-B/16.

    Args:
        extractor: spec of the network.
    """

    def __init__(self, extractor: str = "dino") -> None:
        super().__init__(extractor)

    def score(self, video: Evaluated) -> float:
        return float(frame_consistency(video.features))


@register_metric("background_consistency")
class BackgroundConsistency(_OfFrames):
    """How alike each frame is to the first and to the one before, in features that tell the background, in [0, 1].

    VBench's with CLIP ViT-B/32.

    Args:
        extractor: spec of the network.
    """

    def __init__(self, extractor: str = "clip(antialias=False)") -> None:
        super().__init__(extractor)

    def score(self, video: Evaluated) -> float:
        return float(frame_consistency(video.features))


@register_metric("clip_temporal_consistency")
class CLIPTemporalConsistency(_OfFrames):
    """The cosine of consecutive frames' CLIP embeddings, in [-1, 1], mean over pairs.

    Args:
        extractor: spec of the network.
    """

    def __init__(self, extractor: str = "clip") -> None:
        super().__init__(extractor)

    def score(self, video: Evaluated) -> float:
        return float(temporal_cosine(video.features))


class _OfFlow(PerVideoMetric):
    """Of the optical flow of a clip, by RAFT of torchvision.

    Args:
        weights: path of RAFT's weights.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    @cached_property
    def raft(self) -> nn.Module:
        return load_raft(self.weights)

    def load(self) -> None:
        _ = self.raft

    def flow_of(self, clip: Tensor) -> Tensor:
        """Flow from each frame to the next, [pairs 2 height width], in pixels."""
        return raft_flow(clip, self.raft)

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self.raft.to(device)

    def card(self) -> dict[str, Any]:
        return {**super().card(), "flow": f"RAFT of torchvision, sha256:{weights_sha256(self.raft)}"}


@register_metric("dynamic_degree")
class DynamicDegree(_OfFlow):
    """The share of clips that move, by the largest 5 % of their flow.

    Args:
        weights: path of RAFT's weights (torchvision's raft_large_C_T_SKHT_V2, or raft_small_C_T_V2).
        compat: "vbench" keeps its rule for two frames, by which any such clip is dynamic.
    """

    needs = Needs(fps=True, min_frames=2)

    def __init__(self, weights: str, compat: str | None = None) -> None:
        super().__init__(weights)
        self.compat = compat

    def score(self, video: Evaluated) -> float:
        assert video.fps is not None
        stride = flow_stride(video.fps)
        sampled = video.clip[::stride]
        if len(sampled) < 2:
            raise SoraError(
                f"a clip of {len(video.clip)} frames at {video.fps:g} fps has no two frames 1/8 second apart; give at "
                f"least {stride + 1} frames"
            )
        flow = self.flow_of(sampled)
        height, width = video.clip.shape[1:3]
        return float(dynamic_degree(flow, video.fps / stride, height, width, self.compat, video.fps))

    def card(self) -> dict[str, Any]:
        return {**super().card(), "threshold": "6 pixels of 256 at 8 fps, in proportion to the step below"}


@register_metric("warping_error")
class WarpingError(_OfFlow):
    """The squared error of each next frame, warped back by the flow; occlusions are found from flow both ways.

    Clips of which no pixel can be followed have no error; "scored" is the share of clips that have one.

    Args:
        weights: path of RAFT's weights (torchvision's raft_large_C_T_SKHT_V2, or raft_small_C_T_V2).
    """

    needs = Needs(min_frames=2)
    higher_is_better = False
    parts = ("scored",)

    def score(self, video: Evaluated) -> Mapping[str, float]:
        ahead, back = self.flow_of(video.clip), self.flow_of(video.clip.flip(0)).flip(0)
        try:
            return {"value": float(warping_error(video.clip.to(ahead.device), ahead, back)), "scored": 1.0}
        except NoValidPixel:
            return {"scored": 0.0}
