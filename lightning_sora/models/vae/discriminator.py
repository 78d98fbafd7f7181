"""A patch discriminator for video: judges small neighbourhoods of spacetime as real or reconstructed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sora.errors import SoraError


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) over videos: one logit per neighbourhood.

    Not causal: it may look ahead. Each level halves height and width, and time too if ``temporal`` (rounding
    up, so that an image, a clip of one frame, is judged as well). There are no batch statistics: a clip's logits
    depend on that clip alone.

    Args:
        dim: channels of the first level.
        levels: halvings; widths double up to ``4 * dim``.
        temporal: whether kernels reach over 3 frames; otherwise each frame is judged by itself.

    Raises:
        SoraError: an option is out of range.
    """

    def __init__(self, dim: int = 32, levels: int = 2, temporal: bool = True) -> None:
        super().__init__()
        if dim < 1 or levels < 1:
            raise SoraError(f"a discriminator needs dim and levels of at least 1, got dim={dim}, levels={levels}")
        self.levels = levels
        frames, step = (3, 2) if temporal else (1, 1)
        dims = [3, *(dim * min(2**level, 4) for level in range(levels))]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(a, b, (frames, 4, 4), stride=(step, 2, 2), padding=(frames // 2, 1, 1)) for a, b in pairwise(dims)
        )
        self.output = nn.Conv3d(dims[-1], 1, (frames, 3, 3), padding=(frames // 2, 1, 1))

    def forward(self, video: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, "batch t h w"]:
        """Logits; high means real.

        Args:
            video: values about in [-1, 1].

        Raises:
            SoraError: frames smaller than the reach of the levels.
        """
        least = 2**self.levels
        if video.ndim != 5 or video.shape[1] != 3 or min(video.shape[3:]) < least:
            raise SoraError(
                f"a discriminator of {self.levels} levels judges video (batch, 3, frames, height, width) of at "
                f"least {least}x{least} pixels, got {tuple(video.shape)}; use fewer levels or larger frames"
            )
        for convolution in self.convolutions:
            video = F.leaky_relu(_convolved(convolution, video), 0.2)
        return _convolved(self.output, video).squeeze(1)


def _convolved(convolution: Any, video: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else video.dtype
    if not video.is_cpu or dtype.itemsize > 2:
        return convolution(video)
    # oneDNN reads memory that nobody wrote into the gradient of half-precision weights, where it pads time itself and
    # the frames are fewer than the kernel's.
    around, *padding = (int(one) for one in convolution.padding)
    padded = F.pad(video, (0, 0, 0, 0, around, around))
    return F.conv3d(padded, convolution.weight, convolution.bias, convolution.stride, (0, *padding))
