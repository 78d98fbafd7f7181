"""A causal convolutional video VAE, in the family of CogVideoX, Wan and Cosmos.

Convolutions at full resolution are nearly all of such a model's cost. So pixels are first cut into blocks by a
fixed front end, and convolutions are factorised into space and time; each is an option.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.facts import VAEFacts
from lightning_sora.models.vae.base import VAES, Posterior, VideoVAE
from lightning_sora.models.vae.folding import FrontEnd
from lightning_sora.models.vae.layers import ChannelNorm, Down, ResidualBlock, SpatialConv, Stream, Up, Video
from lightning_sora.spacetime import PatchSize

LOGVAR_RANGE = (-30.0, 20.0)
INITIAL_LOGVAR = -4.0
"""A posterior as wide as the prior drowns the first, small means in noise; a narrow one lets them grow."""


class PosteriorHead(nn.Linear):
    """Projects to (mean, logvar), the latter starting at ``INITIAL_LOGVAR``."""

    def __init__(self, in_dim: int, latent_channels: int) -> None:
        super().__init__(in_dim, 2 * latent_channels)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        mean, logvar = self.bias.detach().chunk(2)
        mean.zero_()
        logvar.fill_(INITIAL_LOGVAR)


class Encoder(nn.Module):
    """Blocks of pixels to posterior parameters; ``dims[i]`` is the width of level i, finest first."""

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        factors: Sequence[PatchSize],
        blocks: int,
        convolution: str,
        latent_channels: int,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(in_dim, dims[0])
        layers: list[nn.Module] = []
        for level, dim in enumerate(dims):
            if level:
                layers.append(Down(dims[level - 1], dim, factors[level - 1]))
            layers += [ResidualBlock(dim, convolution) for _ in range(blocks)]
        self.layers = nn.ModuleList(layers)
        self.norm = ChannelNorm(dims[-1])
        self.output = PosteriorHead(dims[-1], latent_channels)

    def forward(self, x: Video, stream: Stream) -> Video:
        x = self.input(x)
        for layer in self.layers:
            x = layer(x, stream)
        return self.output(self.norm(x))


class Decoder(nn.Module):
    """Latents to blocks of pixels; the mirror of :class:`Encoder`."""

    def __init__(
        self,
        out_dim: int,
        dims: Sequence[int],
        factors: Sequence[PatchSize],
        blocks: int,
        convolution: str,
        latent_channels: int,
    ) -> None:
        super().__init__()
        self.input = SpatialConv(latent_channels, dims[-1])
        layers: list[nn.Module] = []
        for level in reversed(range(len(dims))):
            layers += [ResidualBlock(dims[level], convolution) for _ in range(blocks)]
            if level:
                layers.append(Up(dims[level], dims[level - 1], factors[level - 1]))
        self.layers = nn.ModuleList(layers)
        self.norm = ChannelNorm(dims[0])
        self.output = nn.Linear(dims[0], out_dim)

    def forward(self, z: Video, stream: Stream) -> Video:
        x = self.input(z, stream)
        for layer in self.layers:
            x = layer(x, stream)
        return self.output(self.norm(x))


@VAES.register("causal_conv")
class CausalConvVAE(VideoVAE):
    """A VAE of 3D convolutions that never look at a later frame.

    Args:
        stride: pixels per latent position along (frames, height, width), each a power of two.
        latent_channels: values per latent position.
        dim: channels of the finest level.
        multipliers: width of each level in multiples of ``dim``, finest first, one more than there are
            halvings after the front end; None doubles per level, up to 4.
        blocks, decoder_blocks: residual blocks per level.
        convolution: ``"factorised"`` (2D in space, then causal 1D in time) or ``"full"`` (causal 3D).
        front_end: ``"none"``, ``"patch"`` (blocks of pixels become channels) or ``"wavelet"`` (the same in
            the Haar basis).
        front_end_patch: the block of the front end, dividing the stride; None takes as much of (2, 4, 4) as
            the stride allows.
        chunk_frames: pass longer videos in chunks of so many frames (a multiple of the temporal stride), which
            bounds memory and changes nothing else; None passes them whole.

    Raises:
        SoraError: an option is out of range or does not fit the others.
    """

    facts = VAEFacts(chunk_exact=True)
    decoder_options = ("decoder_blocks",)

    def __init__(
        self,
        stride: Sequence[int] = (4, 8, 8),
        latent_channels: int = 16,
        dim: int = 64,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        decoder_blocks: int = 2,
        convolution: str = "factorised",
        front_end: str = "patch",
        front_end_patch: Sequence[int] | None = None,
        chunk_frames: int | None = None,
    ) -> None:
        whole = PatchSize.of(stride)
        block = _front_end_block(whole, front_end, front_end_patch)
        factors = _halvings(whole, block)
        if multipliers is None:
            multipliers = [min(2**level, 4) for level in range(len(factors) + 1)]
        _check_options(dim, blocks, decoder_blocks, convolution, multipliers, len(factors) + 1)
        super().__init__(
            whole,
            latent_channels,
            config={
                "stride": list(whole),
                "latent_channels": latent_channels,
                "dim": dim,
                "multipliers": list(multipliers),
                "blocks": blocks,
                "decoder_blocks": decoder_blocks,
                "convolution": convolution,
                "front_end": front_end,
                "front_end_patch": list(block),
            },
        )
        self.front_end = FrontEnd(block, wavelet=front_end == "wavelet")
        dims = [dim * multiplier for multiplier in multipliers]
        pixels = self.front_end.channels
        self.encoder = Encoder(pixels, dims, factors, blocks, convolution, latent_channels)
        self.decoder = Decoder(pixels, dims, factors, decoder_blocks, convolution, latent_channels)
        self.chunk_frames = chunk_frames

    @property
    def chunk_frames(self) -> int | None:
        return self._chunk_frames

    @chunk_frames.setter
    def chunk_frames(self, frames: int | None) -> None:
        step = self.stride.frames
        if frames is not None and (frames < step or frames % step):
            raise SoraError(f"chunk_frames={frames} is not a positive multiple of the temporal stride {step}")
        self._chunk_frames = frames

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels: where adaptive loss weights compare gradients."""
        return self.decoder.output.weight

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Posterior:
        self._check_video(video)
        stream, parts = Stream(), []
        for chunk in _chunks(video, self.chunk_frames):
            parts.append(self.encoder(self.front_end(chunk, stream.first), stream))
            stream.first = False
        mean, logvar = rearrange(torch.cat(parts, dim=1), "b t h w (two c) -> two b c t h w", two=2)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        self._check_latent(latent)
        stream, parts = Stream(), []
        rows = None if self.chunk_frames is None else self.chunk_frames // self.stride.frames
        for chunk in _chunks(latent, rows):
            blocks = self.decoder(rearrange(chunk, "b c t h w -> b t h w c"), stream)
            parts.append(self.front_end.invert(blocks, stream.first))
            stream.first = False
        return torch.cat(parts, dim=2)


def _chunks(x: Tensor, frames: int | None) -> list[Tensor]:
    """Cuts the time axis (2) after the first ``1 + frames`` and then every ``frames``."""
    total = x.shape[2]
    if frames is None or total <= 1 + frames:
        return [x]
    head, rest = x[:, :, : 1 + frames], x[:, :, 1 + frames :]
    return [head, *rest.split(frames, dim=2)]


def _front_end_block(stride: PatchSize, front_end: str, patch: Sequence[int] | None) -> PatchSize:
    if any(size & (size - 1) for size in stride):
        raise SoraError(f"stride {tuple(stride)}: each axis must be a power of two, such as (4, 8, 8)")
    if front_end not in ("none", "patch", "wavelet"):
        raise SoraError(f"unknown front_end {front_end!r}; known: none, patch, wavelet")
    if front_end == "none":
        if patch is not None:
            raise SoraError(f"front_end_patch={tuple(patch)} has no meaning with front_end='none'; leave it out")
        return PatchSize(1, 1, 1)
    if patch is None:
        return PatchSize(*(min(size, most) for size, most in zip(stride, (2, 4, 4), strict=True)))
    block = PatchSize.of(patch)
    if any(size % part or part & (part - 1) for size, part in zip(stride, block, strict=True)):
        raise SoraError(
            f"front_end_patch {tuple(block)} must be powers of two that divide the stride {tuple(stride)}; "
            f"the largest that does is {tuple(stride)}"
        )
    return block


def _halvings(stride: PatchSize, block: PatchSize) -> list[PatchSize]:
    """The factors of the levels after the front end, finest first; time is halved last (Wan 2.1)."""
    counts = [(size // part).bit_length() - 1 for size, part in zip(stride, block, strict=True)]
    levels = max(counts)
    return [PatchSize(*(2 if level >= levels - count else 1 for count in counts)) for level in range(levels)]


def _check_options(
    dim: int, blocks: int, decoder_blocks: int, convolution: str, multipliers: Sequence[int], levels: int
) -> None:
    if dim < 2 or blocks < 0 or decoder_blocks < 0:
        raise SoraError(f"dim={dim} must be at least 2, blocks={blocks} and decoder_blocks={decoder_blocks} at least 0")
    if convolution not in ("factorised", "full"):
        raise SoraError(f"unknown convolution {convolution!r}; known: factorised, full")
    if len(multipliers) != levels or min(multipliers) < 1:
        raise SoraError(
            f"multipliers {list(multipliers)} must be {levels} positive numbers: this stride and front end make "
            f"{levels} levels"
        )
