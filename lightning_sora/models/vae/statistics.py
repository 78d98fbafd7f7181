"""The mean and spread of latents, from sums that add up exactly over batches and processes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError


class LatentStatistics:
    """Running sums per channel, in float64.

    Attributes:
        sums: rows (count, sum, sum of squares) per channel; to join processes, add their ``sums``.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        if channels < 1:
            raise SoraError(f"channels={channels} must be at least 1")
        self.sums: Float[Tensor, "3 channels"] = torch.zeros(3, channels, dtype=torch.float64, device=device)

    @property
    def channels(self) -> int:
        return self.sums.shape[1]

    @property
    def count(self) -> int:
        """Values per channel seen so far."""
        return int(self.sums[0, 0])

    @torch.no_grad()
    def update(self, latent: Float[Tensor, "batch channels t h w"]) -> None:
        """Adds the values of some latents.

        Raises:
            SoraError: another number of channels, or values that are not finite.
        """
        if latent.ndim != 5 or latent.shape[1] != self.channels:
            raise SoraError(f"expected latents (batch, {self.channels}, t, h, w), got {tuple(latent.shape)}")
        values = latent.detach().to(self.sums).transpose(0, 1).flatten(1)
        if not bool(values.isfinite().all()):
            raise SoraError("latents hold values that are not finite; the VAE has diverged: lower its learning rate")
        self.sums[0] += values.shape[1]
        self.sums[1] += values.sum(dim=1)
        self.sums[2] += values.square().sum(dim=1)

    def merge(self, other: LatentStatistics) -> None:
        """Adds what another process or batch has seen.

        Raises:
            SoraError: another number of channels.
        """
        if other.channels != self.channels:
            raise SoraError(f"cannot merge statistics of {other.channels} channels into those of {self.channels}")
        self.sums += other.sums.to(self.sums.device)

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        self._require(1)
        return self.sums[1] / self.sums[0]

    @property
    def std(self) -> Float[Tensor, " channels"]:
        """The population standard deviation."""
        self._require(2)
        return (self.sums[2] / self.sums[0] - self.mean.square()).clamp_min(0.0).sqrt()

    def _require(self, count: int) -> None:
        if self.count < count:
            raise SoraError(f"statistics of {self.count} values; update() with at least {count} first")
