"""What a VAE is trained to do, term by term, and the state of its posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sora.errors import SoraError
from lightning_sora.models.configs import Config
from lightning_sora.models.vae.base import Posterior
from lightning_sora.models.vae.discriminator import PatchDiscriminator
from lightning_sora.models.vae.perceptual import PerceptualDistance

RECONSTRUCTIONS = ("l1", "l2")


def reconstruction_loss(
    video: Float[Tensor, "batch 3 frames height width"],
    reconstruction: Float[Tensor, "batch 3 frames height width"],
    kind: str = "l2",
) -> Float[Tensor, ""]:
    """The mean absolute (``"l1"``) or squared (``"l2"``) difference over all pixel values.

    Raises:
        SoraError: an unknown kind.
    """
    if kind not in RECONSTRUCTIONS:
        raise SoraError(f"unknown reconstruction {kind!r}; known: {', '.join(RECONSTRUCTIONS)}")
    return F.l1_loss(reconstruction, video) if kind == "l1" else F.mse_loss(reconstruction, video)


def active_channels(posterior: Posterior) -> Bool[Tensor, " channels"]:
    """Which channels carry anything: posterior collapse made visible.

    A channel is active if the variance of its posterior mean over the batch and all positions exceeds 0.01
    (Burda et al. 2016, section 5.1), or its KL exceeds 0.01 nats per value.
    """
    return are_active(posterior.mean.transpose(0, 1).flatten(1).var(dim=1, correction=0), posterior.kl_per_channel())


def are_active(variance: Float[Tensor, " channels"], kl: Float[Tensor, " channels"]) -> Bool[Tensor, " channels"]:
    """The same, of the variance and the KL of each channel over any number of clips."""
    return (variance > 0.01) | (kl > 0.01)


def hinge_discriminator_loss(
    real: Float[Tensor, "*logits"], reconstructed: Float[Tensor, "*logits"]
) -> Float[Tensor, ""]:
    """``(mean(relu(1 - real)) + mean(relu(1 + reconstructed))) / 2`` (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + reconstructed).mean())


def hinge_generator_loss(reconstructed: Float[Tensor, "*logits"]) -> Float[Tensor, ""]:
    """``-mean(logits)``: the reconstruction should be judged real."""
    return -reconstructed.mean()


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], last_layer: Tensor, most: float = 1e4
) -> Float[Tensor, ""]:
    """How much the adversarial loss must be scaled to pull as hard as the reconstruction (VQGAN, eq. 7).

    The ratio of the norms of both gradients with respect to the weight that makes the pixels, at most ``most``.

    NaN where a gradient is not finite, and so is the loss: its step cannot be taken.
    """
    of_reconstruction = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    of_adversarial = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
    weight = (of_reconstruction / (of_adversarial + 1e-6)).clamp(0.0, most).detach()
    return torch.where(of_reconstruction.isfinite() & of_adversarial.isfinite(), weight, torch.nan)


@dataclass(frozen=True)
class VAELossConfig(Config):
    """What a VAE is trained to do; see :class:`VAELoss`.

    Args:
        reconstruction: "l1" or "l2".
        kl_weight: of the mean KL per latent value, in nats.
        perceptual_weight: of the distance of VGG-16 features; needs ``perceptual_weights``.
        perceptual_weights: path of VGG-16 weights.
        adversarial_weight: of a discriminator's hinge loss, on top of its adaptive weight; 0 for none.
        adversarial_start: the first step with a discriminator; before, it neither trains nor counts.
        discriminator_dim, discriminator_levels, discriminator_temporal: its width, its levels, and whether it
            looks at several frames at once; it trains by the same optimizer spec as the VAE.

    Example:
        >>> import lightning_sora as ls
        >>> ls.LitVAE(loss=ls.VAELossConfig(reconstruction="l2")).loss.kl_weight
        0.0001
    """

    reconstruction: str = "l1"
    kl_weight: float = 1e-4
    perceptual_weight: float = 0.0
    perceptual_weights: str | None = None
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    discriminator_dim: int = 32
    discriminator_levels: int = 2
    discriminator_temporal: bool = True

    @classmethod
    def section(cls) -> str:
        return "loss"


class VAELoss(nn.Module):
    """The whole objective: reconstruction + KL, and if asked for, perceptual and adversarial terms.

    Args:
        reconstruction: ``"l2"`` or ``"l1"``.
        kl_weight: of the mean KL per latent value, in nats.
        perceptual_weight: of :class:`PerceptualDistance`; needs ``perceptual_weights``.
        perceptual_weights: path of VGG-16 weights.
        adversarial_weight: of the hinge loss, on top of its adaptive weight.
        adversarial_start: the first step with a discriminator; before, it neither trains nor counts.
        discriminator_dim, discriminator_levels, discriminator_temporal: see :class:`PatchDiscriminator`.

    Attributes:
        discriminator: to be trained by its own optimizer on :meth:`discriminator_loss`; None without one.

    Raises:
        SoraError: a negative weight, an unknown kind, or weights missing.
    """

    def __init__(
        self,
        reconstruction: str = "l2",
        kl_weight: float = 1e-4,
        perceptual_weight: float = 0.0,
        perceptual_weights: str | None = None,
        adversarial_weight: float = 0.0,
        adversarial_start: int = 0,
        discriminator_dim: int = 32,
        discriminator_levels: int = 2,
        discriminator_temporal: bool = True,
    ) -> None:
        super().__init__()
        weights = {"kl": kl_weight, "perceptual": perceptual_weight, "adversarial": adversarial_weight}
        for name, weight in weights.items():
            if not 0.0 <= weight < float("inf"):
                raise SoraError(f"{name}_weight={weight} must be a finite number of at least 0")
        if reconstruction not in RECONSTRUCTIONS:
            raise SoraError(f"unknown reconstruction {reconstruction!r}; known: {', '.join(RECONSTRUCTIONS)}")
        if adversarial_start < 0:
            raise SoraError(f"adversarial_start={adversarial_start} must be a step, at least 0")
        if perceptual_weight > 0 and perceptual_weights is None:
            raise SoraError(
                f"perceptual_weight={perceptual_weight} needs perceptual_weights, the path of a VGG-16 state dict; "
                "set it, or set perceptual_weight to 0"
            )
        self.reconstruction, self.adversarial_start = reconstruction, adversarial_start
        self.kl_weight, self.perceptual_weight, self.adversarial_weight = weights.values()
        self.perceptual = PerceptualDistance(str(perceptual_weights)) if perceptual_weight > 0 else None
        self.discriminator = (
            PatchDiscriminator(discriminator_dim, discriminator_levels, discriminator_temporal)
            if adversarial_weight > 0
            else None
        )

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part at this step."""
        return self.discriminator is not None and step >= self.adversarial_start

    def forward(
        self,
        video: Float[Tensor, "batch 3 frames height width"],
        reconstruction: Float[Tensor, "batch 3 frames height width"],
        posterior: Posterior,
        step: int,
        last_layer: Tensor | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of the VAE's own loss; ``"loss"`` is their weighted sum, the others are unweighted.

        The discriminator receives no gradient that its optimizer would use only if the caller freezes it or
        clears its gradients; Lightning's ``toggle_optimizer`` does the former.

        Args:
            video: in [-1, 1].
            reconstruction: decoded from a sample of the posterior, not clamped.
            step: of the VAE's optimizer, against ``adversarial_start``.
            last_layer: the weight that makes the pixels (``vae.last_layer``); needed by the adversarial term when
                gradients are on. Without gradients the adaptive weight is left at 1.

        Raises:
            SoraError: ``last_layer`` is missing.
        """
        terms = {
            "reconstruction": reconstruction_loss(video, reconstruction, self.reconstruction),
            "kl": posterior.kl().mean(),
        }
        faithful = terms["reconstruction"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(video, reconstruction)
            faithful = faithful + self.perceptual_weight * terms["perceptual"]
        loss = faithful + self.kl_weight * terms["kl"]
        if self.discriminator is not None and self.adversarial(step):
            terms["adversarial"] = hinge_generator_loss(self.discriminator(reconstruction))
            terms["adaptive_weight"] = torch.ones_like(loss)
            if torch.is_grad_enabled():
                if last_layer is None:
                    raise SoraError("the adversarial loss needs last_layer; pass the VAE's last_layer")
                terms["adaptive_weight"] = adaptive_weight(faithful, terms["adversarial"], last_layer)
            loss = loss + self.adversarial_weight * terms["adaptive_weight"] * terms["adversarial"]
        return {"loss": loss, **terms}

    def discriminator_loss(
        self,
        video: Float[Tensor, "batch 3 frames height width"],
        reconstruction: Float[Tensor, "batch 3 frames height width"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The discriminator's hinge loss ``"loss"`` and its mean logits; the VAE receives no gradient.

        Raises:
            SoraError: there is no discriminator.
        """
        if self.discriminator is None:
            raise SoraError("there is no discriminator; set adversarial_weight above 0")
        real, reconstructed = self.discriminator(video), self.discriminator(reconstruction.detach())
        return {
            "loss": hinge_discriminator_loss(real, reconstructed),
            "logits_real": real.mean(),
            "logits_reconstructed": reconstructed.mean(),
        }
