"""Whether a text encoder and a VAE give a denoiser what it takes, and what it was trained on."""

from __future__ import annotations

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers.base import Denoiser
from lightning_sora.models.text_base import TextEncoder
from lightning_sora.models.vae import VideoVAE


def check_fit(vae: VideoVAE, text: TextEncoder, dit: Denoiser) -> None:
    """Refuses parts of other widths than a denoiser's, and text as a pretrained one was not trained on.

    An encoder that learns together with the denoiser is taken as it is: it begins anew in any case.

    Raises:
        SoraError: channels or text of another width; no vector of the whole caption, of its width, where one is asked
            for; or a frozen encoder that sees the padding of text where the pretrained weights know text without, or
            the other way round.

    Example:
        >>> from lightning_sora.models.denoisers import DENOISERS
        >>> from lightning_sora.models.text import TEXT_ENCODERS
        >>> from lightning_sora.models.text_fit import check_fit
        >>> from lightning_sora.models.vae import VAES
        >>> vae, text = VAES.create("identity"), TEXT_ENCODERS.create("bytes(dim=16)")
        >>> check_fit(vae, text, DENOISERS.create("dit(dim=32, depth=1, num_heads=2)", vae.latent_channels, text.dim))
    """
    if (dit.channels, dit.text_dim) != (vae.latent_channels, text.dim):
        raise SoraError(
            f"a denoiser of channels={dit.channels} and text_dim={dit.text_dim} does not fit this VAE and text "
            f"encoder, which have {vae.latent_channels} and {text.dim}"
        )
    if dit.pooled_dim is not None and text.pooled_dim != dit.pooled_dim:
        raise SoraError(
            f"this denoiser asks for a vector of each caption of width {dit.pooled_dim}, as CLIP makes, beside the "
            f"text, and this text encoder gives {'none' if text.pooled_dim is None else f'one of {text.pooled_dim}'}; "
            "take hunyuan_video(path='DIR') of its pipeline, or a cache of it"
        )
    if not dit.pretrained or text.trainable or dit.padded_text is None:
        return
    if not dit.padded_text and text.padded is not None:
        raise SoraError(
            "this pretrained denoiser was trained on text whose padding its encoder did not see, and this text encoder "
            f"sees {text.padded} tokens of every caption; leave out padded=True of the text encoder, and of its cache"
        )
    if dit.padded_text and (text.padded is None or dit.padded_to not in (None, text.padded)):
        asked = f"max_tokens={dit.padded_to or 'N'}, padded=True"
        does = "masks it" if text.padded is None else f"pads to {text.padded} tokens"
        raise SoraError(
            f"this pretrained denoiser was trained on text that was encoded with its padding"
            f"{'' if dit.padded_to is None else f', to {dit.padded_to} tokens'}, and this text encoder {does}; set "
            f"{asked} of the text encoder, as in hf(name='DIR', {asked}), and of its cache"
        )
