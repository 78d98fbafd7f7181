"""The layers of the causal VAE. None has statistics or reach over later frames.

Activations are laid out ``batch frames height width channels``. A video may pass in chunks of frames; a
:class:`Stream` then carries what each causal layer must remember, so that the result is that of one pass.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sora.models.vae.folding import fold, unfold
from lightning_sora.spacetime import PatchSize

Video = Float[Tensor, "batch _ _ _ _"]


class Stream:
    """One pass over one video, chunk by chunk (the feature cache of Wan 2.1).

    Attributes:
        first: whether the chunk at hand begins with the first frame of the video.
    """

    def __init__(self) -> None:
        self.first = True
        self._tails: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Video, reach: int) -> Video:
        """Puts before ``x`` the ``reach`` frames that ``layer`` saw last; at the start, copies of the first."""
        before = x[:, :1].expand(-1, reach, -1, -1, -1) if self.first else self._tails[layer]
        x = torch.cat([before, x], dim=1)
        self._tails[layer] = x[:, -reach:]
        return x


class SpatialConv(nn.Module):
    """A square convolution of each frame by itself, zero-padded."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 3) -> None:
        super().__init__()
        # Activations are channels-last; a weight that is not would be reordered at every call.
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2).to(memory_format=torch.channels_last)

    def forward(self, x: Video, stream: Stream) -> Video:
        # The rearrangement is a view: the frames become channels-last images.
        frames = self.conv(rearrange(x, "b t h w c -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b t h w c", b=x.shape[0])


class TemporalConv(nn.Module):
    """A convolution over this and the ``kernel - 1`` frames before, per position: one matrix product."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.linear = nn.Linear(kernel * in_dim, out_dim)

    def forward(self, x: Video, stream: Stream) -> Video:
        frames = x.shape[1]
        x = stream.extend(self, x, self.kernel - 1)
        return self.linear(torch.cat([x[:, i : i + frames] for i in range(self.kernel)], dim=-1))


class VolumeConv(nn.Module):
    """A full 3D convolution: causal in time, zero-padded in space."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.conv = nn.Conv3d(in_dim, out_dim, kernel, padding=(0, kernel // 2, kernel // 2))

    def forward(self, x: Video, stream: Stream) -> Video:
        frames = x.shape[1]
        x = stream.extend(self, x, self.kernel - 1)
        if x.device.type == "cpu" and len(x) == 1:
            return self._frame_by_frame(x[0], frames)[None]
        return rearrange(self.conv(rearrange(x, "b t h w c -> b c t h w")), "b c t h w -> b t h w c")

    def _frame_by_frame(self, x: Float[Tensor, "_ _ _ _"], frames: int) -> Float[Tensor, "_ _ _ _"]:
        """The same as a sum of 2D convolutions, one per moment of the kernel: for a single clip on a CPU, where torch's
        3D convolution is several times slower."""
        images, padding = rearrange(x, "t h w c -> t c h w"), self.conv.padding[1:]
        total = F.conv2d(images[:frames], self.conv.weight[:, :, 0], self.conv.bias, padding=padding)
        for i in range(1, self.kernel):
            total += F.conv2d(images[i : i + frames], self.conv.weight[:, :, i], padding=padding)
        return rearrange(total, "t c h w -> t h w c")


class ChannelNorm(nn.Module):
    """Layer norm of each position over its channels, without shift (Ba et al. 2016).

    The root-mean-square norm would do as well, but on a CPU torch has a fused kernel for this one only.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Video) -> Video:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype))


class ResidualBlock(nn.Module):
    """``x + second(silu(first(norm(x))))``.

    Factorised, the first convolution looks around in space and the second back in time; full, both are 3D.
    """

    def __init__(self, dim: int, convolution: str) -> None:
        super().__init__()
        factorised = convolution == "factorised"
        self.norm = ChannelNorm(dim)
        self.first = SpatialConv(dim, dim) if factorised else VolumeConv(dim, dim)
        self.second = TemporalConv(dim, dim) if factorised else VolumeConv(dim, dim)

    def forward(self, x: Video, stream: Stream) -> Video:
        return x + self.second(F.silu(self.first(self.norm(x), stream)), stream)


class Down(nn.Module):
    """Halves some axes: blocks become channels, then a pointwise projection."""

    def __init__(self, in_dim: int, out_dim: int, factor: PatchSize) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(in_dim * factor.volume, out_dim)

    def forward(self, x: Video, stream: Stream) -> Video:
        return self.project(fold(x, self.factor, stream.first))


class Up(nn.Module):
    """Doubles some axes: a pointwise projection, then channels become blocks."""

    def __init__(self, in_dim: int, out_dim: int, factor: PatchSize) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(in_dim, out_dim * factor.volume)

    def forward(self, x: Video, stream: Stream) -> Video:
        return unfold(self.project(x), self.factor, stream.first)
