"""What an image-to-video denoiser is shown of a clip beside its noised rows: channels that hold the frames it knows.

Two ways are in use. Wan 2.1 and 2.2 (Wan Team 2025, arXiv:2503.20314, section 5.1) show a clip of which the unknown
frames are grey, encoded whole, and a mask of the known frames; CogVideoX (Yang et al. 2024, arXiv:2408.06072, section
3.4) shows the latent of the first frame, and zeros after it. Which one a denoiser was trained with, the number of its
channels says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers.base import Condition, Denoiser
from lightning_sora.models.given import Given
from lightning_sora.models.image import ImageEncoder
from lightning_sora.models.pixels import Clip, from_uint8
from lightning_sora.models.vae import VideoVAE
from lightning_sora.spacetime import TokenGrid, TokenLayout, VideoSize, patchify

log = logging.getLogger(__name__)


class Conditioned(Protocol):
    """A model whose denoiser is shown frames."""

    vae: VideoVAE
    dit: Denoiser
    image: ImageEncoder | None

    @property
    def dtype(self) -> torch.dtype: ...


def check_conditioning(vae: VideoVAE, dit: Denoiser, image: ImageEncoder | None) -> None:
    """Refuses a denoiser whose further channels are of no known kind, and one that lacks its image encoder; warns of
    one that was trained on latents of another VAE.

    Raises:
        SoraError: which it is, and what would fit.
    """
    own = getattr(getattr(vae, "family", None), "vae", None)
    if dit.pretrained and None not in (own, dit.trained_with) and own != dit.trained_with:
        log.warning(
            "this pretrained denoiser was trained on latents of %s, and model.vae is %s%s: it begins far from what it "
            "knows", dit.trained_with, own, ", a VAE of images" if vae.images else "",
        )  # fmt: skip
    shown = dit.condition_channels
    if shown not in (0, vae.latent_channels, vae.stride.frames + vae.latent_channels):
        raise SoraError(
            f"this denoiser is shown {shown} channels beside the noised ones, and with this VAE that could "
            f"be {vae.latent_channels} (the first frame) or {vae.stride.frames + vae.latent_channels} (a mask and a "
            "clip); take the VAE that it was trained with"
        )
    if dit.image_dim is not None and image is None:
        raise SoraError(
            "this denoiser attends to embeddings of the first frame; name the encoder that makes them, a folder of "
            "transformers: model.image='DIR/image_encoder'"
        )
    if image is not None and dit.image_dim is None:
        raise SoraError("this denoiser attends to no image embeddings; leave out model.image")
    if image is not None and image.dim != dit.image_dim:
        raise SoraError(
            f"model.image makes embeddings of width {image.dim}, and this denoiser takes {dit.image_dim}; give the "
            "image encoder that it was trained with"
        )
    if image is not None and dit.image_frames > 1 and dit.image_frames * image.tokens != dit.image_tokens:
        raise SoraError(
            f"model.image makes {image.tokens} embeddings of a frame, and this denoiser has {dit.image_tokens} places "
            "for those of the first and the last; give the image encoder that it was trained with"
        )


@torch.no_grad()
def condition_of(
    model: Conditioned, layout: TokenLayout, videos: Sequence[Clip], strength: Float[Tensor, "batch tokens"] | None
) -> Condition:
    """What the denoiser is shown of some clips.

    Args:
        videos: the clips, each of its size in the layout or longer; frames of strength 1 are not looked at.
        strength: of each token, 0 where it is known and 1 where it is made.

    Raises:
        SoraError: what is known is no whole frames, or not the first; or not the last, of a denoiser that attends to
            it.
    """
    strengths = layout.split(torch.ones(layout.shape) if strength is None else strength.cpu())
    patch = model.vae.stride * model.dit.patch_size
    rows, attended = [], []
    for grid, video, of_clip in zip(layout.grids, videos, strengths, strict=True):
        known = _known_frames(of_clip, grid, model.dit.patch_size.frames)
        clip = video[: grid.size(patch)[0]]
        with torch.autocast(video.device.type, enabled=False):
            latent = _shown(model.vae, model.dit, from_uint8([clip], model.dtype), known.to(video.device))
        rows.append(patchify(rearrange(latent, "1 c t h w -> t h w c"), model.dit.patch_size))
        attended += [clip[0], clip[-1]][: model.dit.image_frames]
        if model.dit.image_frames > 1:
            _check_ends(known)
    if model.image is None:
        return Condition(layout.join(rows))
    embedded = model.image(attended).unflatten(0, (layout.clips, -1)).flatten(1, 2)
    return Condition(layout.join(rows), embedded.to(model.dtype))


def condition_of_given(model: Conditioned, layout: TokenLayout, given: Sequence[Given | None]) -> Condition | None:
    """What the denoiser is shown of clips that samples begin with; None for one that is shown nothing.

    Raises:
        SoraError: of some clip nothing is given, it is of another size; or as :func:`condition_of`.
    """
    if not model.dit.condition_channels:
        return None
    patch = model.vae.stride * model.dit.patch_size
    size = layout.grids[0].size(patch)
    known = [one for one in given if one is not None]
    if len(known) < len(given):
        task = "image_to_video" if model.dit.image_frames == 1 else "first_and_last"
        raise SoraError(
            "an image-to-video denoiser makes a clip from its first frame, and of a prompt none is given; sample by a "
            f"task that gives it: `lightning-sora sample --task {task}`"
        )
    for one in known:
        if tuple(one.strength.shape) != size:
            raise SoraError(
                f"what is given is {VideoSize(*one.strength.shape)} large and the clip {size}; bring it to that size"
            )
    strength = torch.stack([one.tokens(patch) for one in known])
    device = next(model.dit.parameters()).device
    return condition_of(model, layout, [one.video.to(device) for one in known], strength)


def condition_encodes(vae: VideoVAE, dit: Denoiser, size: tuple[int, int, int]) -> tuple[int, int, int]:
    """The size of the clip that the VAE encodes for what is shown of one of this size."""
    return size if dit.condition_channels > vae.latent_channels else (1, *size[1:])


def _known_frames(strength: Float[Tensor, " tokens"], grid: TokenGrid, per_row: int) -> Bool[Tensor, " latent_frames"]:
    """Which latent frames are known."""
    rows = strength.view(grid.frames, -1)
    known = (rows == 0).all(dim=1)
    if (
        not bool(known[0])
        or not bool(((rows == 0) | (rows == 1)).all())
        or bool(((rows == 0).any(dim=1) != known).any())
    ):
        raise SoraError(
            "an image-to-video denoiser is shown whole frames as they are, the first among them; take a task such as "
            "image_to_video or extend_forward"
        )
    return known.repeat_interleave(per_row)[per_row - 1 :] if per_row > 1 else known


def _check_ends(known: Bool[Tensor, " latent_frames"]) -> None:
    if len(known) < 3 or not bool(known[-1]):
        raise SoraError(
            "this denoiser makes what is between a first and a last frame, and attends to both: take the task "
            f"first_and_last, and clips of three latent frames at least (here {len(known)})"
        )


def _shown(
    vae: VideoVAE, dit: Denoiser, video: Float[Tensor, "1 3 frames height width"], known: Bool[Tensor, " latent_frames"]
) -> Float[Tensor, "1 channels t h w"]:
    if dit.condition_channels == vae.latent_channels:
        return _first_latent(vae, video, len(known))
    step = vae.stride.frames
    frames = torch.cat([known[:1], known[1:].repeat_interleave(step)])
    if len(known) > 2 and known[-1] and not known[-2]:  # a last frame by itself, as Wan's pipeline shows it
        frames[-step:-1] = False
    latent = vae.encode_latent(video * frames[:, None, None].to(video))
    # The first latent frame is of one frame, whose mark fills the channels of its mask.
    marks = torch.cat([frames[:1].expand(step), frames[1:]]).view(-1, step).T.to(latent)
    return torch.cat([marks[None, :, :, None, None].expand(-1, -1, -1, *latent.shape[-2:]), latent], dim=1)


def _first_latent(vae: VideoVAE, video: Tensor, frames: int) -> Float[Tensor, "1 channels t h w"]:
    first = vae.encode_latent(video[:, :, :1])
    if vae.config.get("invert_scale_latents"):  # the model was trained on the first frame divided by the factor
        first = vae.unscale(first) * vae.latent_std[:, None, None, None]
    return torch.cat([first, first.new_zeros(1, first.shape[1], frames - 1, *first.shape[-2:])], dim=2)
