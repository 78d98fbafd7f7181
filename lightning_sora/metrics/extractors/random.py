"""A network that nobody trained: the pipeline of a distance without any weights to download."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.pretrained import exact_float32, resized


@EXTRACTORS.register("random")
class RandomExtractor(Extractor):
    """Three convolutions over space and time, drawn from a seed, averaged: for tests, never for a claim.

    Args:
        width: of the features.
        seed: of the weights, which are the same on every machine.
        side: that frames are squashed to.

    Raises:
        SoraError: an option is out of range.
    """

    title = "random-FD (not FVD)"

    def __init__(self, width: int = 64, seed: int = 0, side: int = 32) -> None:
        super().__init__()
        if width < 1 or side < 8 or seed < 0:
            raise SoraError(
                f"width={width}, seed={seed}, side={side} of the extractor random must be at least 1, 0 and 8"
            )
        self.width, self.seed, self.side = width, seed, side
        self.network = nn.Sequential(
            nn.Conv3d(3, 16, 3, (1, 2, 2), 1), nn.GELU(), nn.Conv3d(16, 32, 3, 2, 1), nn.GELU(), nn.Conv3d(32, width, 1)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.network.parameters():
                fan = parameter[0].numel() if parameter.ndim > 1 else 1
                parameter.normal_(std=(2 / fan) ** 0.5, generator=generator)
        freeze(self)
        self.digest = weights_sha256(self.network)

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames side side"]:
        """Squashed to ``side``, then 2x/255 - 1."""
        return (2 * resized(clip, (self.side, self.side), "bilinear", antialias=True) / 255 - 1).transpose(0, 1)

    def features(self, clips: Float[Tensor, "clips 3 frames side side"]) -> Float[Tensor, "clips dim"]:
        """Averaged over space and time."""
        with exact_float32(clips.device):
            return self.network(clips).mean(dim=(2, 3, 4))

    def describe(self) -> dict[str, Any]:
        """The seed, and the preprocessing in full."""
        return {
            "name": "random",
            "weights": f"sha256:{self.digest}",
            "seed": self.seed,
            "verified": False,
            "resize": f"bilinear, half-pixel centres, to {self.side}x{self.side}",
            "antialias": True,
            "crop": "none, the whole frame",
            "range": "2x/255-1, float32, not rounded",
        }
