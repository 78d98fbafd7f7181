"""A perceptual distance over the features of a pretrained image network, per frame."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sora.errors import SoraError
from lightning_sora.sealing import verify_archive

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of VGG-16's 3x3 convolutions, each followed by a ReLU; max pooling halves the size between blocks."""

DOWNLOAD = "https://download.pytorch.org/models/vgg16-397923af.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualDistance(nn.Module):
    """The feature distance of LPIPS (Zhang et al. 2018, eq. 1) on VGG-16, channels weighing the same.

    Without the paper's learned channel weights it is their unweighted baseline: at each of the five block ends,
    features are scaled to unit length over channels, and squared differences are summed over channels and
    averaged over positions.

    Args:
        weights: path of a state dict of torchvision's ``vgg16`` (its ``features.*`` entries; others are ignored).

    Raises:
        SoraError: no such file, or it holds no such weights.
    """

    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        path = Path(weights).expanduser()
        if not os.path.isfile(path):
            raise SoraError(
                f"perceptual weights {str(weights)!r} are not a file; download {DOWNLOAD} "
                "(torchvision's vgg16, state dict) and give its path, or set the perceptual weight to 0"
            )
        verify_archive(path, f"download {DOWNLOAD} again")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise SoraError(f"{path} holds a {type(state).__name__}, not a state dict; download {DOWNLOAD}")
        for block, names in enumerate(_layer_names()):
            for layer, (name, shape) in enumerate(names):
                for part, expected in (("weight", shape), ("bias", shape[:1])):
                    key = f"{name}.{part}"
                    if key not in state or tuple(state[key].shape) != expected:
                        raise SoraError(
                            f"{path} has no {key!r} of shape {expected}, so it is not torchvision's vgg16; "
                            f"download {DOWNLOAD}"
                        )
                    # Buffers outside the state dict: neither trained, nor initialised anew, nor saved.
                    self.register_buffer(f"{part}_{block}_{layer}", state[key].float(), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(
        self,
        video: Float[Tensor, "batch 3 frames height width"],
        reconstruction: Float[Tensor, "batch 3 frames height width"],
    ) -> Float[Tensor, ""]:
        """The mean distance over clips and frames of videos in [-1, 1].

        Raises:
            SoraError: frames under 16x16 pixels, of which no feature of the last block is left.
        """
        if min(video.shape[3:]) < 16:
            raise SoraError(
                f"frames of {video.shape[3]}x{video.shape[4]} pixels are too small for VGG; use 16x16 or more"
            )
        a, b = self._frames(video), self._frames(reconstruction)
        total = a.new_zeros(())
        for block, layers in enumerate(BLOCKS):
            if block:
                a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
            for layer in range(len(layers)):
                weight, bias = getattr(self, f"weight_{block}_{layer}"), getattr(self, f"bias_{block}_{layer}")
                a, b = (F.relu(F.conv2d(x, weight, bias, padding=1)) for x in (a, b))
            difference = F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)
            total = total + difference.square().sum(dim=1).mean()
        return total

    def _frames(self, video: Tensor) -> Tensor:
        return (rearrange(video, "b c t h w -> (b t) c h w") * 0.5 + 0.5 - self.mean) / self.std


def _layer_names() -> list[list[tuple[str, tuple[int, ...]]]]:
    """Per block, the names in torchvision's ``vgg16`` and the weight shapes of its convolutions."""
    index, in_dim, names = 0, 3, []
    for widths in BLOCKS:
        block: list[tuple[str, tuple[int, ...]]] = []
        for width in widths:
            block.append((f"features.{index}", (width, in_dim, 3, 3)))
            index, in_dim = index + 2, width
        names.append(block)
        index += 1
    return names
