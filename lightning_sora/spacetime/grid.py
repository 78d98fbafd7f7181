"""Spacetime patches: the lossless cut of a video into tokens.

The causal first-frame rule: the first frame stands alone. A video of ``1 + n * patch.frames``
frames becomes ``1 + n`` rows of tokens in time; the first row holds the first frame only, repeated
to fill its patch. Hence an image is a one-frame video, and nothing else is special about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import torch
from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.spacetime.crop import VideoSize


@dataclass(frozen=True, order=True)
class PatchSize:
    """How many positions of a video one token covers per axis; also the stride of a VAE.

    Example:
        >>> import lightning_sora as ls
        >>> ls.PatchSize(4, 8, 8) * ls.PatchSize(1, 2, 2)  # a VAE's stride times a DiT's patch size
        PatchSize(frames=4, height=16, width=16)
    """

    frames: int = 1
    height: int = 1
    width: int = 1

    def __post_init__(self) -> None:
        if min(self) < 1:
            raise SoraError(f"patch size {tuple(self)} must be at least 1 along each axis")

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.frames, self.height, self.width))

    def __mul__(self, other: PatchSize) -> PatchSize:
        """The patch size of cutting twice: a VAE's stride times a DiT's patch size."""
        return PatchSize(*(a * b for a, b in zip(self, other, strict=True)))

    @classmethod
    def of(cls, sizes: PatchSize | Sequence[int]) -> PatchSize:
        """Reads ``[frames, height, width]``."""
        if isinstance(sizes, PatchSize):
            return sizes
        if len(sizes) != 3:
            raise SoraError(f"a patch size has 3 axes (frames, height, width), got {list(sizes)}")
        return cls(*map(int, sizes))

    @property
    def volume(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True, order=True)
class TokenGrid:
    """Tokens per axis of one clip.

    Example:
        >>> import lightning_sora as ls
        >>> ls.TokenGrid.of(17, 32, 48, ls.PatchSize(4, 8, 8))
        TokenGrid(frames=5, height=4, width=6)
    """

    frames: int
    height: int
    width: int

    @no_type_check  # FlexAttention compiles it
    def __iter__(self):
        return iter((self.frames, self.height, self.width))

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @classmethod
    def of(cls, frames: int, height: int, width: int, patch: PatchSize) -> TokenGrid:
        """The grid of a video of this size.

        Raises:
            SoraError: the size does not divide; the nearest sizes that work are named.
        """
        problems = []
        if frames < 1 or (frames - 1) % patch.frames:
            near = _nearest(frames, patch.frames, offset=1)
            problems.append(f"frames={frames} is not 1 + n*{patch.frames} (nearest: {near})")
        for axis, size, step in (("height", height, patch.height), ("width", width, patch.width)):
            if size < step or size % step:
                problems.append(f"{axis}={size} is not a multiple of {step} (nearest: {_nearest(size, step)})")
        if problems:
            raise SoraError(
                f"a video of {frames}x{height}x{width} does not cut into patches of "
                f"{patch.frames}x{patch.height}x{patch.width}: " + "; ".join(problems)
            )
        return cls(1 + (frames - 1) // patch.frames, height // patch.height, width // patch.width)

    def size(self, patch: PatchSize) -> VideoSize:
        """The size of the video that this grid tiles."""
        frames = 1 + (self.frames - 1) * patch.frames
        return VideoSize(frames, self.height * patch.height, self.width * patch.width)


def _nearest(size: int, step: int, offset: int = 0) -> str:
    below = (size - offset) // step * step + offset
    smallest = offset or step
    return " or ".join(str(s) for s in dict.fromkeys((max(below, smallest), max(below + step, smallest))))


def patchify(
    video: Shaped[Tensor, "*batch frames height width channels"], patch: PatchSize
) -> Shaped[Tensor, "*batch tokens patch_dim"]:
    """Cuts videos into rows, one per token, ordered by frame, then height, then width.

    Args:
        video: any dtype; ``frames = 1 + n * patch.frames``.

    Returns:
        Rows of ``patch.volume * channels`` values, ordered (frame, height, width, channel).

    Raises:
        SoraError: the size does not divide by the patch.

    Example:
        >>> import torch, lightning_sora as ls
        >>> ls.patchify(torch.zeros(2, 17, 32, 32, 3), ls.PatchSize(4, 8, 8)).shape
        torch.Size([2, 80, 768])
    """
    frames, height, width = video.shape[-4:-1]
    grid = TokenGrid.of(frames, height, width, patch)
    if patch.frames > 1:
        first = video[..., :1, :, :, :].expand(*video.shape[:-4], patch.frames - 1, *video.shape[-3:])
        video = torch.cat([first, video], dim=-4)
    return rearrange(
        video,
        "... (t pt) (h ph) (w pw) c -> ... (t h w) (pt ph pw c)",
        t=grid.frames,
        pt=patch.frames,
        ph=patch.height,
        pw=patch.width,
    )


def unpatchify(
    patches: Shaped[Tensor, "*batch tokens patch_dim"], grid: TokenGrid, patch: PatchSize
) -> Shaped[Tensor, "*batch frames height width channels"]:
    """The inverse of :func:`patchify`.

    Raises:
        SoraError: the rows do not fit the grid or the patch.

    Example:
        >>> import torch, lightning_sora as ls
        >>> patch, video = ls.PatchSize(4, 8, 8), torch.rand(17, 32, 48, 3)
        >>> rows = ls.patchify(video, patch)
        >>> torch.equal(ls.unpatchify(rows, ls.TokenGrid.of(17, 32, 48, patch), patch), video)
        True
    """
    tokens, patch_dim = patches.shape[-2:]
    if tokens != grid.tokens or patch_dim % patch.volume:
        raise SoraError(
            f"patches of shape {tuple(patches.shape)} do not fit a grid of {grid.tokens} tokens "
            f"({grid.frames}x{grid.height}x{grid.width}) of {patch.volume} positions each"
        )
    video = rearrange(
        patches,
        "... (t h w) (pt ph pw c) -> ... (t pt) (h ph) (w pw) c",
        t=grid.frames,
        h=grid.height,
        w=grid.width,
        pt=patch.frames,
        ph=patch.height,
        pw=patch.width,
    )
    return video[..., patch.frames - 1 :, :, :, :]
