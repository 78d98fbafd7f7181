"""VideoMAE: features that see motion more than I3D's do, as in CD-FVD (Ge et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    card_name,
    exact_float32,
    is_pinned,
    load_pretrained,
    normalised,
    resized,
)

GIANT = {"hidden_size": 1408, "num_hidden_layers": 40, "num_frames": 16, "tubelet_size": 2, "patch_size": 14}
"""VideoMAE-v2's ViT-g/14, which CD-FVD is defined with."""


def title_of(config: Any, normalise: bool) -> str:
    """ "CD-FVD" for ViT-g/14 on values in [0, 1] alone, else "VideoMAE-FD"."""
    giant = all(getattr(config, name) == value for name, value in GIANT.items())
    return "CD-FVD" if giant and not normalise else "VideoMAE-FD"


@EXTRACTORS.register("videomae")
class VideoMAEExtractor(Extractor):
    """A VideoMAE of transformers: the norm of the mean over its tokens.

    As in cd-fvd (``cdfvd/third_party/VideoMAEv2/utils.py``): the whole frame squashed to the model's size, bilinear
    without antialiasing. Its Fréchet distance needs more clips than the width (ViT-g: 1408) to have full rank.

    Args:
        weights: a local directory of transformers (VideoMAEModel or VideoMAEForVideoClassification), or a name on
            the hub.
        normalise: by ImageNet's mean and deviation, which the first VideoMAE was trained with; without it values are
            in [0, 1], as CD-FVD has it.
        sha256: digest that the weights must have; without it they count as not verified.

    Raises:
        SoraError: the model cannot be loaded, or has other weights than pinned.
    """

    def __init__(self, weights: str, normalise: bool = False, sha256: str | None = None) -> None:
        super().__init__()
        part = "the extractor videomae"
        # Only the class with a head has the norm of the mean; plain models have none, which is scale 1 and shift 0.
        whole = load_pretrained("VideoMAEForVideoClassification", weights, part, ("classifier.", "fc_norm."))
        self.network, self.norm = whole.videomae, whole.fc_norm
        if self.norm is None:
            # Trained to norm each token: the same norm, moved behind the mean.
            self.norm, self.network.layernorm = self.network.layernorm, None
        config = self.network.config
        self.model_id, self.normalise = weights, normalise
        self.title = title_of(config, normalise)
        self.width = int(config.hidden_size)
        self.frames = self.min_frames = int(config.num_frames)
        self.side = int(config.image_size)
        freeze(self)
        self.digest = weights_sha256(self)
        self.verified = is_pinned(self.digest, sha256, part)

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames side side"]:
        """Squashed to the model's size, then x/255."""
        values = resized(clip, (self.side, self.side), "bilinear", antialias=False)
        values = normalised(values, IMAGENET_MEAN, IMAGENET_STD) if self.normalise else values / 255
        return values.transpose(0, 1)

    def features(self, clips: Float[Tensor, "clips 3 frames side side"]) -> Float[Tensor, "clips dim"]:
        """norm(mean over tokens)."""
        with exact_float32(clips.device), torch.no_grad():
            tokens = self.network(pixel_values=clips.transpose(1, 2)).last_hidden_state
            return self.norm(tokens.mean(dim=1))

    def describe(self) -> dict[str, Any]:
        """The model, its weights, and the preprocessing in full."""
        return {
            "name": "videomae",
            "model": card_name(self.model_id),
            "weights": f"sha256:{self.digest}",
            "verified": self.verified,
            "resize": f"bilinear, half-pixel centres, to {self.side}x{self.side}",
            "antialias": False,
            "crop": "none, the whole frame",
            "range": "x/255, ImageNet mean and deviation" if self.normalise else "x/255, float32, not rounded",
            "pooling": "norm of the mean over tokens",
        }
