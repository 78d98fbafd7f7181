"""Moving blocks of spacetime into channels and back: the front end and every change of resolution.

All of it works on activations laid out ``batch frames height width channels``, where a pointwise layer is a
plain matrix product, and keeps the causal first-frame rule: the first frame, repeated, fills a block of its own.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.spacetime import PatchSize


def fold(
    x: Float[Tensor, "batch frames height width channels"], block: PatchSize, first: bool
) -> Float[Tensor, "batch t h w block_channels"]:
    """Blocks of positions become channels, ordered (frame, height, width, channel).

    Args:
        first: whether ``x`` begins with the first frame of the video (then ``1 + n * block.frames`` frames),
            or continues one (then ``n * block.frames``).
    """
    if first and block.frames > 1:
        x = torch.cat([x[:, :1].expand(-1, block.frames - 1, -1, -1, -1), x], dim=1)
    return rearrange(
        x,
        "b (t bt) (h bh) (w bw) c -> b t h w (bt bh bw c)",
        bt=block.frames,
        bh=block.height,
        bw=block.width,
    )


def unfold(
    x: Float[Tensor, "batch t h w block_channels"], block: PatchSize, first: bool
) -> Float[Tensor, "batch frames height width channels"]:
    """The inverse of :func:`fold`: of the first frame's block, the last copy is kept."""
    x = rearrange(
        x,
        "b t h w (bt bh bw c) -> b (t bt) (h bh) (w bw) c",
        bt=block.frames,
        bh=block.height,
        bw=block.width,
    )
    return x[:, block.frames - 1 :] if first else x


def haar_matrix(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal Haar basis of ``size`` (a power of two) samples, one per row, the mean first."""
    basis = torch.ones(1, 1, dtype=torch.float64)
    while basis.shape[0] < size:
        mean, difference = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
        eye = torch.eye(basis.shape[0], dtype=torch.float64)
        basis = torch.cat([torch.kron(basis, mean), torch.kron(eye, difference)]) / 2**0.5
    return basis


class FrontEnd(nn.Module):
    """A fixed, orthonormal, causal cut of pixels into blocks, optionally in the Haar wavelet basis.

    The wavelet is separable and dyadic along each axis (as in the Cosmos tokenizer and WF-VAE). In time it
    acts within blocks, hence is causal, and all of the first frame's temporal differences are zero.

    Args:
        block: pixels per position along (frames, height, width), powers of two.
        wavelet: whether to change the basis of each block; otherwise its values are its pixels.
    """

    basis: Float[Tensor, "volume volume"]

    def __init__(self, block: PatchSize, wavelet: bool) -> None:
        super().__init__()
        self.block, self.wavelet = block, wavelet
        if wavelet:
            matrices = [haar_matrix(size) for size in block]
            basis = torch.kron(torch.kron(matrices[0], matrices[1]), matrices[2]).float()
            self.register_buffer("basis", basis, persistent=False)

    @property
    def channels(self) -> int:
        return self.block.volume * 3

    def forward(
        self, video: Float[Tensor, "batch 3 frames height width"], first: bool
    ) -> Float[Tensor, "batch t h w channels"]:
        x = fold(rearrange(video, "b c t h w -> b t h w c"), self.block, first)
        return self._change(x, self.basis.T) if self.wavelet else x

    def invert(
        self, x: Float[Tensor, "batch t h w channels"], first: bool
    ) -> Float[Tensor, "batch 3 frames height width"]:
        """The video of some blocks: the transpose of the forward direction, exactly its inverse."""
        x = self._change(x, self.basis) if self.wavelet else x
        return rearrange(unfold(x, self.block, first), "b t h w c -> b c t h w")

    def _change(self, x: Tensor, basis: Tensor) -> Tensor:
        colours = rearrange(x, "b t h w (volume c) -> b t h w c volume", c=3)
        return rearrange(colours @ basis.to(x.dtype), "b t h w c volume -> b t h w (volume c)")
