"""ClipVAE: a trained VAE by hand, from display values to latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.hub import PretrainedModel
from lightning_sora.models.pixels import Clip, from_uint8, to_uint8
from lightning_sora.models.saved import read_kind, read_model, rounded, save_model
from lightning_sora.models.vae.base import VAES, VideoVAE

KIND = "vae"
#: Kinds of models of which it may be a part.
HOLDERS = (KIND, "latent_diffusion")


class ClipVAE(PretrainedModel, tags=[KIND]):
    """Encodes and decodes single clips of display values by a VAE.

    Args:
        vae: with the statistics of its latents.
        spec: that builds it.

    Example:
        >>> import torch, lightning_sora as ls
        >>> spec = "causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8)"
        >>> folder = ls.ClipVAE(ls.VAES.create(spec), spec).save("my_vae")
        >>> ls.load(folder, "cpu").encode(torch.zeros(9, 32, 32, 3, dtype=torch.uint8)).shape
        torch.Size([4, 3, 4, 4])
    """

    def __init__(self, vae: VideoVAE, spec: str) -> None:
        super().__init__()
        self.vae, self.spec = vae, spec

    @torch.no_grad()
    def encode(self, clip: Clip) -> Float[Tensor, "channels t h w"]:
        """The latent of a clip, of about unit variance: the mean of its posterior.

        Args:
            clip: uint8 [frames height width 3], values 0 to 255, of a size that the stride divides.

        Raises:
            SoraError: another type or shape, or a size that does not divide; the nearest that do are named.
        """
        if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            raise SoraError(
                f"a clip of {clip.dtype} {tuple(clip.shape)} cannot be encoded; give display values 0 to 255 as uint8 "
                "[frames height width 3]"
            )
        place = self.vae.latent_mean
        return self.vae.encode_latent(from_uint8([clip.to(place.device)], place.dtype))[0]

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "channels t h w"]) -> Clip:
        """The clip of a latent, uint8 [frames height width 3]: what :meth:`encode` took, as far as it was kept.

        Raises:
            SoraError: a latent of other axes or channels.
        """
        return to_uint8(self.vae.decode_latent(latent[None].to(self.vae.latent_mean)))[0]

    def save(self, folder: str | Path, *, stored: str | None = None) -> Path:
        """Writes the VAE as safetensors and JSON; see :mod:`lightning_sora.models.saved`.

        Args:
            stored: precision of the weights in the files: "float16" makes them half as large. None for their own.

        Raises:
            SoraError: an unknown precision, the disk is full, or nothing can be written there.
        """
        told = {
            "vae_hash": (self.vae if stored is None else rounded(self.vae, stored)).fingerprint(),
            "dtype": str(self.vae.latent_mean.dtype).removeprefix("torch."),
            "run_id": self.run_id,
        }
        specs = {"vae": self.vae.spec_of_its_own(self.spec)}
        return save_model(folder, KIND, specs, {"vae": self.vae}, stored=stored, **told)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ClipVAE:
        """Reads what :meth:`save` wrote, or the VAE of a saved text-to-video model, frozen and in evaluation mode.

        Raises:
            SoraError: no such model, or a damaged one.
        """
        kind = read_kind(folder)
        saved = read_model(folder, kind if kind in HOLDERS else KIND)
        vae = VAES.create(saved.config["vae"])
        saved.fill("vae", vae)
        made = cls(vae, saved.config["vae"])
        made.run_id = saved.metadata.get("run_id") if saved.kind == KIND else None
        return made.to(device).eval().requires_grad_(False)
