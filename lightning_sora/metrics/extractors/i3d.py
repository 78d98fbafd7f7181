"""The extractor of FVD: Kinetics-400 logits of I3D, with the resizing of a named protocol."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.i3d_network import CLASSES, MIN_FRAMES
from lightning_sora.metrics.extractors.i3d_weights import DOWNLOAD, Table, load_i3d

SIDE = 224
VARIABLE = "LIGHTNING_SORA_I3D"
Frames = Float[Tensor, "frames 3 height width"]


def legacy_bilinear(frames: Frames, side: int = SIDE) -> Float[Tensor, "frames 3 side side"]:
    """``resize_bilinear`` of TensorFlow 1: output pixel i samples at i * size / side, not at pixel centres."""
    for dim in (3, 2):
        size = frames.shape[dim]
        # In float32, as TensorFlow reckons: float64 may floor to another pixel.
        at = torch.arange(side, dtype=torch.float32, device=frames.device) * torch.tensor(size / side)
        low = at.long()
        high = (low + 1).clamp(max=size - 1)
        share = (at - low).reshape(-1, *[1] * (3 - dim))
        left = frames.index_select(dim, low)
        frames = left + (frames.index_select(dim, high) - left) * share
    return frames


def squash(frames: Frames) -> Float[Tensor, "frames 3 224 224"]:
    """Bilinear between pixel centres, of the whole frame, without antialiasing."""
    return F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def center_crop(frames: Frames) -> Float[Tensor, "frames 3 224 224"]:
    """The short side to 224, bilinear between pixel centres without antialiasing, then the middle."""
    height, width = frames.shape[2:]
    # Float arithmetic as in the reference: where it rounds up past an integer, so does theirs.
    scale = SIDE / min(height, width)
    size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    top, left = (frames.shape[2] - SIDE) // 2, (frames.shape[3] - SIDE) // 2
    return frames[:, :, top : top + SIDE, left : left + SIDE]


@dataclass(frozen=True)
class Preset:
    """How frames come to 224 by 224, and the words for it on a protocol card."""

    resize: Callable[[Tensor], Tensor]
    kernel: str
    crop: str = "none, the whole frame"


_HALF_PIXEL = "bilinear, half-pixel centres, to 224x224"
PRESETS = {
    "tf-original": Preset(legacy_bilinear, "bilinear, origin-aligned (TensorFlow 1), to 224x224"),
    "stylegan-v": Preset(squash, _HALF_PIXEL),
    "cd-fvd": Preset(squash, _HALF_PIXEL),
    "center-crop": Preset(center_crop, "bilinear, half-pixel centres, short side to 224", "centre 224x224"),
}
"""Of google-research's FVD, StyleGAN-V, cd-fvd and the videogpt part of common_metrics."""


@EXTRACTORS.register("i3d")
class I3DExtractor(Extractor):
    """DeepMind's I3D of Kinetics-400, trained from scratch: the only features whose Fréchet distance is FVD.

    Args:
        weights: path of the public weights; None reads the variable LIGHTNING_SORA_I3D.
        protocol: whose preprocessing: "tf-original", "stylegan-v", "cd-fvd" or "center-crop".
        table: checksums of other weights, which are then reported as not verified and not called FVD.

    Raises:
        SoraError: an unknown protocol, or weights that are absent or not the published ones.
    """

    title = "FVD"
    width = CLASSES
    min_frames = MIN_FRAMES

    def __init__(self, weights: str | None = None, protocol: str = "tf-original", table: Table | None = None) -> None:
        super().__init__()
        if protocol not in PRESETS:
            raise SoraError(f"unknown protocol {protocol!r} of the extractor i3d; known: {', '.join(sorted(PRESETS))}")
        path = weights or os.environ.get(VARIABLE)
        if not path:
            raise SoraError(
                f"the extractor i3d needs weights, and none are named: {DOWNLOAD}; then give the path of that file as "
                f"'i3d(weights=...)' or in the variable {VARIABLE}"
            )
        self.protocol, self.verified = protocol, table is None
        if not self.verified:
            self.title = "I3D distance, unpublished weights"
        network = load_i3d(path, table)
        # Before folding, so that one digest stands for the weights whatever file they came in.
        self.digest = weights_sha256(network)
        self.network = network.fold().to(memory_format=torch.channels_last_3d)
        freeze(self)

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames 224 224"]:
        """Resized by the protocol, then 2x/255 - 1, never rounded in between."""
        frames = PRESETS[self.protocol].resize(clip.permute(0, 3, 1, 2).float())
        return (2 * frames / 255 - 1).transpose(0, 1)

    def features(self, clips: Float[Tensor, "clips 3 frames 224 224"]) -> Float[Tensor, "clips 400"]:
        """Logits before the softmax, averaged over time."""
        cudnn = torch.backends.cudnn
        # Convolutions use TF32, which keeps 10 bits of each factor, unless they are told otherwise.
        with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
            return self.network(clips.contiguous(memory_format=torch.channels_last_3d))

    def describe(self) -> dict[str, Any]:
        """The weights as verified against the published checksums, and the preset in full."""
        preset = PRESETS[self.protocol]
        return {
            "name": "i3d",
            "weights": f"sha256:{self.digest}",
            "verified": self.verified,
            "preset": self.protocol,
            "resize": preset.kernel,
            "antialias": False,
            "crop": preset.crop,
            "range": "2x/255-1, float32, not rounded",
        }
