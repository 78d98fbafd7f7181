"""I3D: the inflated Inception-v1 of Kinetics-400 that FVD is defined with, as in ``deepmind/i3d-kinetics-400/1``.

Submodules carry the names of the TensorFlow graph, so a variable's name is a parameter's with "/" for ".".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CLASSES = 400
MIN_FRAMES = 9
"""Time is halved three times, rounding up, and the average pool spans two of what is left: 8 frames leave one."""
EPSILON = 1e-3

_MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of each block: branch 0; branch 1 before and after its 3x3; branch 2 likewise; branch 3."""


class I3D(nn.Module):
    """Kinetics-400 logits of clips in [-1, 1]; weights are random until :func:`load_i3d` fills them."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        width = 192
        for name, channels in _MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            # The graph misnames one convolution, and so do its checkpoints.
            self.add_module(name, Mixed(width, channels, "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"))
            width = channels[0] + channels[2] + channels[4] + channels[5]
        self.Logits = nn.ModuleDict({"Conv3d_0c_1x1": Unit(width, CLASSES, 1, normalised=False)})

    def trunk(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips 1024 t h w"]:
        """The output of the last block, ``Mixed_5c/concat``."""
        hidden = clips
        for name, layer in self.named_children():
            if name != "Logits":
                hidden = layer(hidden)
        return hidden

    def forward(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips 400"]:
        """Logits before the softmax, averaged over time: the tensor ``RGB/inception_i3d/Mean:0``.

        Frames of 224 by 224 are meant: the graph squeezes height and width away, and other sizes leave more than one.
        """
        pooled = F.avg_pool3d(self.trunk(clips), (2, 7, 7), stride=1)
        logits = self.Logits["Conv3d_0c_1x1"](pooled)
        return logits.squeeze(4).squeeze(3).mean(dim=2)

    def fold(self) -> I3D:
        """Puts every batch norm into its convolution: a pass over each activation less, and no TF names any more.

        Returns:
            Itself.
        """
        for module in self.modules():
            if isinstance(module, Unit):
                module.fold()
        return self


class Unit(nn.Module):
    """A convolution with "SAME" padding, then batch norm and ReLU; the classifier has a bias and neither."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, normalised: bool = True) -> None:
        super().__init__()
        self.conv_3d = nn.Conv3d(width, out, kernel, stride, bias=not normalised)
        self.batch_norm: nn.Module = FrozenBatchNorm(out) if normalised else nn.Identity()
        self.normalised = normalised

    def forward(self, hidden: Float[Tensor, "clips c t h w"]) -> Float[Tensor, "clips d t2 h2 w2"]:
        """Channels c to d."""
        conv = self.conv_3d
        before, after = same_padding(hidden.shape[2:], conv.kernel_size, conv.stride)
        if before == after:
            # One convolution pads by itself; a padded copy costs time and memory.
            hidden = F.conv3d(hidden, conv.weight, conv.bias, conv.stride, before)
        else:
            hidden = F.conv3d(_pad(hidden, before, after, 0.0), conv.weight, conv.bias, conv.stride)
        return F.relu_(self.batch_norm(hidden)) if self.normalised else hidden

    @torch.no_grad()
    def fold(self) -> None:
        """Moves the batch norm into the convolution, reckoned in float64."""
        norm = self.batch_norm
        if not isinstance(norm, FrozenBatchNorm):
            return
        scale = (norm.moving_variance.double() + EPSILON).rsqrt()
        weight, bias = self.conv_3d.weight, norm.beta.double() - norm.moving_mean.double() * scale
        weight.copy_(weight.double() * scale[:, None, None, None, None])
        self.conv_3d.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
        self.batch_norm = nn.Identity()


class FrozenBatchNorm(nn.Module):
    """Batch norm by stored moments, without a scale, as the graph has it."""

    beta: Tensor
    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("beta", torch.zeros(width))
        self.register_buffer("moving_mean", torch.zeros(width))
        self.register_buffer("moving_variance", torch.ones(width))

    def forward(self, hidden: Float[Tensor, "clips c t h w"]) -> Float[Tensor, "clips c t h w"]:
        """Never the moments of the batch, whatever mode the module is in."""
        return F.batch_norm(hidden, self.moving_mean, self.moving_variance, None, self.beta, eps=EPSILON)


class MaxPool(nn.Module):
    """Max-pool with "SAME" padding, whose border never wins."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, hidden: Float[Tensor, "clips c t h w"]) -> Float[Tensor, "clips c t2 h2 w2"]:
        """One maximum for each stride, rounding up."""
        before, after = same_padding(hidden.shape[2:], self.kernel, self.stride)
        if before == after:
            return F.max_pool3d(hidden, self.kernel, self.stride, before)
        return F.max_pool3d(_pad(hidden, before, after, float("-inf")), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception block: four branches, side by side in channels."""

    def __init__(self, width: int, channels: tuple[int, int, int, int, int, int], third: str) -> None:
        super().__init__()
        zero, one_in, one_out, two_in, two_out, three = channels
        self.Branch_0 = _branch(Conv3d_0a_1x1=Unit(width, zero, 1))
        self.Branch_1 = _branch(Conv3d_0a_1x1=Unit(width, one_in, 1), Conv3d_0b_3x3=Unit(one_in, one_out, 3))
        self.Branch_2 = _branch(**{"Conv3d_0a_1x1": Unit(width, two_in, 1), third: Unit(two_in, two_out, 3)})
        self.Branch_3 = _branch(MaxPool3d_0a_3x3=MaxPool((3, 3, 3), (1, 1, 1)), Conv3d_0b_1x1=Unit(width, three, 1))

    def forward(self, hidden: Float[Tensor, "clips c t h w"]) -> Float[Tensor, "clips d t h w"]:
        """Channels c to the sum of the branches'."""
        return torch.cat([branch(hidden) for branch in self.children()], dim=1)


def _branch(**layers: nn.Module) -> nn.Sequential:
    branch = nn.Sequential()
    for name, layer in layers.items():
        branch.add_module(name, layer)
    return branch


def same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """TensorFlow's "SAME": as many outputs as strides begun; of an odd padding the end has the larger half.

    Returns:
        Padding before and after, for each dimension.
    """
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride, strict=True)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def _pad(hidden: Tensor, before: Sequence[int], after: Sequence[int], value: float) -> Tensor:
    sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return F.pad(hidden, sides, value=value)
