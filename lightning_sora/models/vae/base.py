"""What every video VAE promises: encode, decode, and a latent of about unit variance."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.digests import add_tensor
from lightning_sora.models.facts import VAEFacts
from lightning_sora.models.vae.statistics import LatentStatistics
from lightning_sora.registry import Registry
from lightning_sora.spacetime import PatchSize, TokenGrid


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal distribution over the raw latent of each clip.

    Attributes:
        mean, logvar: natural units; ``logvar`` is the logarithm of the variance.
    """

    mean: Float[Tensor, "batch channels t h w"]
    logvar: Float[Tensor, "batch channels t h w"]

    @property
    def std(self) -> Float[Tensor, "batch channels t h w"]:
        return (0.5 * self.logvar).exp()

    def sample(self, noise: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch channels t h w"]:
        """``mean + std * noise``; the caller draws the noise, so that it can be keyed."""
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, "batch channels t h w"]:
        """KL(posterior || standard normal) per latent value, in nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)

    def kl_per_channel(self) -> Float[Tensor, " channels"]:
        """The KL in nats per latent value, averaged over everything but the channel."""
        return self.kl().mean(dim=(0, 2, 3, 4))


class VideoVAE(nn.Module, ABC):
    """Compresses clips of RGB video into latents and back.

    An image is a clip of one frame. Clips have ``1 + n * stride.frames`` frames and become ``1 + n``
    latent frames; what else holds, a VAE declares as its :attr:`facts`. :mod:`.contract` says what all must keep.

    Args:
        stride: pixels per latent position along (frames, height, width).
        latent_channels: values per latent position.
        config: the options that built this model, for the fingerprint.
        statistics_frames: latent frames that have a mean and std of their own, and the most that a clip may have;
            None where those are of all frames.

    Attributes:
        facts: what holds of it: whether the first latent frame is that of an image, and more.
        pretrained: whether its weights come with it, so that none are drawn.
        images: whether it takes a clip frame by frame.
        latent_step: clips are of ``1 + n * latent_step`` latent frames.
        decoder_parts, decoder_options: the modules, and the options of ``config``, on which no latent depends.
        latent_mean, latent_std: buffers of one value per channel, or per channel and latent frame, that bring the raw
            latent to about zero mean and unit variance; the identity until :meth:`set_latent_statistics`.
    """

    facts: VAEFacts = VAEFacts()
    pretrained: bool = False
    images: bool = False
    latent_step: int = 1
    decoder_parts: ClassVar[tuple[str, ...]] = ("decoder",)
    decoder_options: ClassVar[tuple[str, ...]] = ()
    latent_mean: Float[Tensor, " channels *frames"]
    latent_std: Float[Tensor, " channels *frames"]

    def __init__(
        self,
        stride: PatchSize,
        latent_channels: int,
        config: Mapping[str, Any],
        statistics_frames: int | None = None,
    ) -> None:
        super().__init__()
        if latent_channels < 1:
            raise SoraError(f"latent_channels={latent_channels} must be at least 1")
        self.stride = stride
        self.latent_channels = latent_channels
        self.config = dict(config)
        size = (latent_channels,) if statistics_frames is None else (latent_channels, statistics_frames)
        self.register_buffer("latent_mean", torch.zeros(size))
        self.register_buffer("latent_std", torch.ones(size))

    @abstractmethod
    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Posterior:
        """The distribution of the raw latent.

        Args:
            video: values in [-1, 1].

        Raises:
            SoraError: the size does not divide by the stride; the nearest sizes that do are named.
        """

    @abstractmethod
    def decode(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """The video of a raw latent, about in [-1, 1] but not clamped.

        Raises:
            SoraError: the latent has another number of axes or channels than this model's.
        """

    def encode_latent(
        self,
        video: Float[Tensor, "batch 3 frames height width"],
        noise: Float[Tensor, "batch channels t h w"] | None = None,
    ) -> Float[Tensor, "batch channels t h w"]:
        """The latent of about unit variance: the posterior's mean, or its sample for this noise."""
        posterior = self.encode(video)
        return self.scale(posterior.mean if noise is None else posterior.sample(noise))

    def decode_latent(
        self, latent: Float[Tensor, "batch channels t h w"]
    ) -> Float[Tensor, "batch 3 frames height width"]:
        """The inverse direction of :meth:`encode_latent`; values in [-1, 1]."""
        return self.decode(self.unscale(latent)).clamp(-1.0, 1.0)

    def scale(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch channels t h w"]:
        """From raw to about unit variance.

        Raises:
            SoraError: more latent frames than have a mean and std.
        """
        mean, std = self._statistics(latent.shape[2])
        return (latent - mean) / std

    def unscale(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch channels t h w"]:
        """From about unit variance to raw; raises as :meth:`scale`."""
        mean, std = self._statistics(latent.shape[2])
        return latent * std + mean

    def _statistics(self, frames: int) -> tuple[Float[Tensor, "channels #t 1 1"], Float[Tensor, "channels #t 1 1"]]:
        """The mean and std of a latent of so many frames, as they are to be spread over it."""
        self._check_length(frames)
        mean, std = (one if one.ndim == 2 else one[:, None] for one in (self.latent_mean, self.latent_std))
        return mean[:, :frames, None, None], std[:, :frames, None, None]

    def _check_length(self, frames: int) -> None:
        most = self.latent_mean.shape[1] if self.latent_mean.ndim == 2 else frames
        if frames > most:
            raise SoraError(
                f"a clip of {frames} latent frames is too long: this VAE has a mean and std for {most}; the longest "
                f"clip is of {1 + (most - 1) * self.stride.frames} frames"
            )

    def grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The latent size of a video of this size.

        Raises:
            SoraError: a size that does not divide by the stride, or a length that this VAE does not take; the nearest
                that do are named.
        """
        s = self.stride
        TokenGrid.of(frames, height, width, PatchSize(s.frames * self.latent_step, s.height, s.width))
        grid = TokenGrid.of(frames, height, width, s)
        self._check_length(grid.frames)
        return grid

    @torch.no_grad()
    def set_latent_statistics(self, statistics: LatentStatistics) -> None:
        """Adopts the measured mean and standard deviation of *raw* latents.

        Raises:
            SoraError: other channels, or a channel that never varies (nothing to scale it to).
        """
        if statistics.channels != self.latent_channels:
            raise SoraError(
                f"statistics of {statistics.channels} channels do not fit a VAE of {self.latent_channels}; "
                "measure them on this VAE's raw latents"
            )
        mean, std = statistics.mean, statistics.std
        flat = [c for c in range(self.latent_channels) if not std[c] > 1e-6 * (1 + mean[c].abs())]
        if flat:
            raise SoraError(
                f"latent channels {flat} do not vary over {statistics.count} values and cannot be scaled to unit "
                "variance; train the VAE longer, lower its KL weight, or use fewer latent_channels"
            )
        of_frames = self.latent_mean.ndim == 2  # all of which are measured together
        self.latent_mean.copy_(mean[:, None] if of_frames else mean)
        self.latent_std.copy_(std[:, None] if of_frames else std)

    def spec_of_its_own(self, spec: str) -> str:
        """The spec that builds it once its weights are kept elsewhere, in a checkpoint: without those it came with."""
        return spec

    def fingerprint(self) -> str:
        """16 hexadecimal digits over the options, the weights and the latent scaling."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(json.dumps([type(self).__name__, self.config], sort_keys=True).encode())
        for name, value in self.hashed():
            add_tensor(digest, name, value)
        return digest.hexdigest()

    def hashed(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight that the fingerprint is of with its name, in the order of names."""
        yield from sorted(self.state_dict().items())

    def weights(self) -> dict[str, Tensor]:
        """Every weight by its name, those that no ``state_dict`` holds among them."""
        return dict(self.hashed())

    def decodes(self, name: str) -> bool:
        """Whether no latent depends on the weight of this name."""
        return name.partition(".")[0] in self.decoder_parts

    def latents_differ(self, other: VideoVAE, weights: bool = True) -> list[str]:
        """What makes the latent of a video another than that of another VAE: options and weights; nothing if none does.

        Args:
            weights: whether their values are compared, beside their names and shapes.
        """
        if type(self) is not type(other):
            return ["kind"]
        kept = [name for name in {**self.config, **other.config} if name not in self.decoder_options]
        options = [name for name in kept if self.config.get(name) != other.config.get(name)]
        if options:
            return options
        own, theirs = (
            {name: value for name, value in one.weights().items() if not one.decodes(name)} for one in (self, other)
        )
        return [
            name
            for name in {**own, **theirs}
            if name not in own
            or name not in theirs
            or own[name].shape != theirs[name].shape
            or (weights and not torch.equal(own[name], theirs[name].to(own[name])))
        ]

    @torch.no_grad()
    def adopt_latents(self, of: VideoVAE) -> None:
        """Takes the encoder and the latent scaling of another VAE, and those weights of its decoder that fit.

        Raises:
            SoraError: its encoder is another than this one's, or this VAE has none of ``decoder_parts``.
        """
        differ, own = self.latents_differ(of, weights=False), self.state_dict()
        if differ or not any(map(self.decodes, own)):
            raise SoraError(
                f"the latents of a {type(of).__name__} cannot be taken over by this {type(self).__name__}"
                + (f": their encoders differ in {', '.join(differ[:4])}" if differ else ", which has no decoder")
                + "; give the spec of the trained one, of which only options of the decoder may change"
                + (f" ({', '.join(self.decoder_options)})" if self.decoder_options else "")
            )
        fitting = {n: v for n, v in of.weights().items() if n in own and own[n].shape == v.shape}
        self.load_state_dict(fitting, strict=False)

    def _check_video(self, video: Tensor) -> TokenGrid:
        if video.ndim != 5 or video.shape[1] != 3:
            raise SoraError(
                f"a VAE encodes video of shape (batch, 3, frames, height, width), got {tuple(video.shape)}; "
                "move the colour axis to place 1"
            )
        return self.grid(*video.shape[2:])

    def _check_latent(self, latent: Tensor) -> None:
        if latent.ndim != 5 or latent.shape[1] != self.latent_channels:
            raise SoraError(
                f"this VAE decodes latents of shape (batch, {self.latent_channels}, t, h, w), got {tuple(latent.shape)}"
            )
        if (latent.shape[2] - 1) % self.latent_step:
            raise SoraError(
                f"this VAE decodes latents of 1 + n*{self.latent_step} frames, got {latent.shape[2]}; encode clips of "
                f"1 + n*{self.latent_step * self.stride.frames} frames"
            )


VAES: Registry[VideoVAE] = Registry("VAE", name="vae", contract="lightning_sora.models.vae.contract")
