"""Given: what of a clip a sampler does not make up, as one mask of strengths, and how it enters a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_sora.diffusion.paths import interpolate
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize, patchify

#: The colour of what no frame shows, on its way into a VAE.
GREY = 128


@dataclass(frozen=True)
class Given:
    """Pixels of a clip that are given, and how much of each may change.

    The strength is the one of image-to-image sampling: the noise level ``t`` that a pixel is noised to at most (SDEdit,
    Meng et al. 2022, arXiv:2108.01073, section 3). 0 keeps it, 1 makes it anew, between it is edited.

    Attributes:
        video: values 0 to 255; those of strength 1 are not looked at.
        strength: in [0, 1].

    Raises:
        SoraError: shapes that do not agree, or a strength out of range.

    Example:
        >>> import torch, lightning_sora as ls
        >>> still = torch.zeros(9, 32, 32, 3, dtype=torch.uint8)
        >>> first = torch.ones(9, 32, 32)
        >>> first[0] = 0.0
        >>> ls.Given(still, first).tokens(ls.PatchSize(4, 8, 8)).view(3, 16).amax(dim=1)
        tensor([0., 1., 1.])
    """

    video: UInt8[Tensor, "frames height width 3"]
    strength: Float[Tensor, "frames height width"]

    def __post_init__(self) -> None:
        if self.video.ndim != 4 or tuple(self.video.shape[:3]) != tuple(self.strength.shape):
            raise SoraError(
                f"a video of shape {tuple(self.video.shape)} and strengths of shape {tuple(self.strength.shape)} do "
                "not agree; give [frames height width 3] and [frames height width]"
            )
        if not ((self.strength >= 0) & (self.strength <= 1)).all():
            raise SoraError("strengths must lie in [0, 1]: 0 keeps a pixel, 1 makes it anew")

    def tokens(self, patch: PatchSize) -> Float[Tensor, " tokens"]:
        """The strength of each token: the highest of its pixels, so that what is kept is given in full."""
        return patchify(self.strength[..., None], patch).amax(dim=-1)

    def filled(self) -> UInt8[Tensor, "frames height width 3"]:
        """What a VAE is to see: for what is made anew, the same pixel in the nearest frame that has it, or grey.

        A VAE looks beyond a token's own pixels; this keeps what it sees there close to what is given.
        """
        known = self.strength < 1
        if bool(known.all()):
            return self.video
        frames = len(known)
        at = torch.arange(frames)[:, None, None].expand(known.shape)
        before = torch.where(known, at, -frames).cummax(dim=0).values  # the last frame that has it; far below if none
        after = torch.where(known, at, 2 * frames).flip(0).cummin(dim=0).values.flip(0)
        source = torch.where(at - before <= after - at, before, after)
        filled = torch.take_along_dim(self.video, source.clamp(0, frames - 1)[..., None], dim=0)
        return torch.where(known.any(dim=0)[None, ..., None], filled, torch.full_like(filled, GREY))


@dataclass(frozen=True)
class GivenRows:
    """What is given of the clips of a batch, as a denoiser sees it.

    On the straight path, rows that are to stay are where the solver carries them as long as it is told that they are
    ``rows``: at ``(1 - t) rows + t noise``. So a row of any strength is taken up by the solver just where its own noise
    level is reached, and no solver knows of it.

    Attributes:
        rows: latents; of strength 1, anything.
        strength: of each token.
        noise: that the solver starts from.
    """

    rows: Float[Tensor, "batch tokens latent_dim"]
    strength: Float[Tensor, "batch tokens"]
    noise: Float[Tensor, "batch tokens latent_dim"]

    def held(self, t: float) -> Bool[Tensor, "batch tokens 1"]:
        """Which rows are as given at ``t``, since they may be noised to less."""
        return (self.strength < t)[..., None]

    def levels(self, t: float) -> Float[Tensor, "batch tokens"]:
        """The noise level of each token, for the network."""
        return self.strength.clamp(max=t)

    def noised(
        self, x_t: Float[Tensor, "batch tokens latent_dim"], t: float
    ) -> Float[Tensor, "batch tokens latent_dim"]:
        """The rows at those levels."""
        return torch.where(self.held(t), interpolate(self.rows, self.noise, self.strength[..., None]), x_t)

    def kept(self, x_0: Float[Tensor, "batch tokens latent_dim"], t: float) -> Float[Tensor, "batch tokens latent_dim"]:
        """A prediction, with what is held put back."""
        return torch.where(self.held(t), self.rows, x_0)

    def put_back(self, made: Float[Tensor, "batch tokens latent_dim"]) -> Float[Tensor, "batch tokens latent_dim"]:
        """What a solver made, with what was to be kept exactly as given."""
        return torch.where((self.strength == 0)[..., None], self.rows, made)

    def repeat(self, times: int, axis: int) -> GivenRows:
        """Of a batch that holds these clips several times."""
        return GivenRows(*(torch.cat([part] * times, dim=axis) for part in (self.rows, self.strength, self.noise)))


def given_rows(
    given: Sequence[Given | None],
    grid: TokenGrid,
    patch: PatchSize,
    noise: Float[Tensor, "batch tokens latent_dim"],
    encode: Callable[[list[Tensor]], Tensor],
) -> GivenRows | None:
    """What is given of each clip, as rows; None where nothing is given of any.

    Args:
        grid: of every clip.
        encode: gives the rows of videos.

    Raises:
        SoraError: not one for each clip, or of another size.
    """
    if len(given) != len(noise):
        raise SoraError(f"{len(given)} clips are given for {len(noise)} prompts; give one for each, or one for all")
    size = grid.size(patch)
    rows, strength = torch.zeros_like(noise), torch.ones(noise.shape[:2], device=noise.device)
    encoded: dict[int, Tensor] = {}  # what is given to all is encoded once
    for index, one in enumerate(given):
        if one is None:
            continue
        if tuple(one.strength.shape) != size:
            raise SoraError(
                f"what is given is {VideoSize(*one.strength.shape)} large and the clip {size}; bring it to that size"
            )
        if id(one) not in encoded:
            encoded[id(one)] = encode([one.filled().to(noise.device)])[0].to(noise.dtype)
        rows[index], strength[index] = encoded[id(one)], one.tokens(patch).to(noise.device)
    return GivenRows(rows, strength, noise) if encoded else None
