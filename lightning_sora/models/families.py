"""Families of pretrained models, as diffusers has them: what those of one family agree on, in one table.

A fact is what was measured of networks of random weights, and not what a paper says: tests prove or disprove each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.models.facts import VAEFacts

#: Frames, height and width in pixels of a latent position.
Stride = tuple[int, int, int]


def _as_attributes(network: Any) -> Stride:
    space = int(network.spatial_compression_ratio)
    return int(network.temporal_compression_ratio), space, space


def _of_wan(network: Any) -> Stride:
    space = int(network.config.scale_factor_spatial)
    return int(network.config.scale_factor_temporal), space, space


def _of_cosmos(network: Any) -> Stride:
    space = int(network.config.spatial_compression_ratio)
    return int(network.config.temporal_compression_ratio), space, space


def _of_cogvideox(network: Any) -> Stride:
    space = 2 ** (len(network.config.block_out_channels) - 1)
    return int(network.config.temporal_compression_ratio), space, space


def _of_images(network: Any) -> Stride:
    space = 2 ** (len(network.config.block_out_channels) - 1)
    return 1, space, space


@dataclass(frozen=True)
class Family:
    """What the published models of one family agree on.

    Attributes:
        vae: the class of its VAE in diffusers.
        stride: reads it off such a network.
        facts: of the VAE as it runs here: without blending, of clips of the sizes that it takes. What a configuration
            says of its own (``decoder_causal`` of LTX) goes before; see :func:`facts_of`.
        channels: the option that counts latent channels.
        latent_step: clips are of 1 + n * latent_step latent frames.
        framewise: long clips can be passed in overlapping chunks that are blended.
        tiling: large frames can be passed in overlapping tiles that are blended.
        images: it takes images; a clip is passed frame by frame.
        transformers: classes in diffusers of those that were trained on its latents.
    """

    name: str
    vae: str
    stride: Callable[[Any], Stride]
    facts: VAEFacts
    channels: str = "latent_channels"
    latent_step: int = 1
    framewise: bool = False
    tiling: bool = True
    images: bool = False
    transformers: tuple[str, ...] = ()


AHEAD = VAEFacts(first_frame_alone=False, encoder_causal=False, decoder_causal=False, chunk_exact=False)

FAMILIES = (
    # Passed 4 frames at a time, always: what its convolutions have seen is kept.
    Family("wan", "AutoencoderKLWan", _of_wan, VAEFacts(chunk_exact=True), channels="z_dim",
           transformers=("WanTransformer3DModel", "WanModel")),
    # Passed 8 frames at a time; its norms are of all frames of a chunk. Of an even number of latent frames, diffusers
    # decodes too many frames.
    Family(
        "cogvideox", "AutoencoderKLCogVideoX", _of_cogvideox,
        VAEFacts(first_frame_alone=False, chunk_exact=False), latent_step=2,
        transformers=("CogVideoXTransformer3DModel",),
    ),
    # Its norms are of all frames of a clip.
    Family("hunyuan_video", "AutoencoderKLHunyuanVideo", _as_attributes, AHEAD, framewise=True,
           transformers=("HunyuanVideoTransformer3DModel",)),
    Family("hunyuan_video_15", "AutoencoderKLHunyuanVideo15", _as_attributes, VAEFacts()),
    Family(
        "ltx", "AutoencoderKLLTXVideo", _as_attributes,
        VAEFacts(decoder_causal=False, chunk_exact=False), framewise=True,
        transformers=("LTXVideoTransformer3DModel",),
    ),
    Family("ltx2", "AutoencoderKLLTX2Video", _as_attributes, VAEFacts(chunk_exact=False), framewise=True),
    Family("cosmos", "AutoencoderKLCosmos", _of_cosmos, VAEFacts(deterministic_posterior=True), tiling=False),
    Family("mochi", "AutoencoderKLMochi", _as_attributes, VAEFacts(), transformers=("MochiTransformer3DModel",)),
    # Stable Diffusion 1 to 3, Flux.
    Family("image", "AutoencoderKL", _of_images, VAEFacts(chunk_exact=True), images=True),
)  # fmt: skip


def family_of_vae(name: object) -> Family:
    """The family of a VAE, by the name of its class in diffusers.

    Raises:
        SoraError: it is of none that is known.
    """
    for family in FAMILIES:
        if family.vae == name:
            return family
    known = [family.vae for family in FAMILIES]
    hint = did_you_mean(str(name), known)
    raise SoraError(f"{name!r} is no VAE of a family that is known; {hint}known: {', '.join(known)}")


def vae_of_transformer(name: str) -> str | None:
    """The class in diffusers of the VAE on whose latents a transformer's published weights were trained.

    Args:
        name: the class of the transformer.
    """
    return next((family.vae for family in FAMILIES if name in family.transformers), None)


def facts_of(family: Family, config: Mapping[str, Any], framewise: bool) -> VAEFacts:
    """What holds of a VAE of a family, by its configuration and the way that it is run.

    Args:
        framewise: chunks are blended: what is near their seams depends on how long the clip is.
    """
    facts = replace(
        family.facts, **{name: bool(config[name]) for name in ("encoder_causal", "decoder_causal") if name in config}
    )
    if not facts.encoder_causal:
        facts = replace(facts, first_frame_alone=False)
    return replace(facts, encoder_causal=False, decoder_causal=False) if framewise else facts


def latent_statistics(
    config: Mapping[str, Any], buffers: Mapping[str, Tensor], channels: int
) -> tuple[Float[Tensor, "*sizes"], Float[Tensor, "*sizes"]]:
    """What brings raw latents to those that the family's transformer sees: ``(latent - mean) / std``.

    As its pipelines do it: ``(latent - latents_mean) * scaling_factor / latents_std``, with ``shift_factor`` for the
    mean of image VAEs, each where the configuration has it, or the buffers of LTX. Cosmos gives a value per channel and
    latent frame; the ``sigma_data`` that its pipelines multiply by is its denoiser's.

    Args:
        config: of the network.
        buffers: of the network, by name; those of LTX are looked for.

    Returns:
        mean and std, each of [channels] or [channels, frames].

    Raises:
        SoraError: so many values as do not divide into the channels, or a std that is not positive.
    """

    def told(name: str, default: float) -> Tensor:
        value = buffers.get(name, config.get(name))
        values = torch.as_tensor(default if value is None else value, dtype=torch.float32).detach().cpu().flatten()
        values = values.expand(channels) if len(values) == 1 else values
        if len(values) % channels:
            raise SoraError(f"{name} has {len(values)} values for {channels} latent channels; correct config.json")
        return values.clone() if len(values) == channels else values.reshape(channels, -1)

    mean, std = told("latents_mean", config.get("shift_factor") or 0.0), told("latents_std", 1.0)
    std = std / (config.get("scaling_factor") or 1.0)
    if mean.shape != std.shape:
        mean, std = (one if one.ndim == 2 else one[:, None] for one in (mean, std))
        mean, std = (one.contiguous() for one in torch.broadcast_tensors(mean, std))
    if not bool((std > 0).all()):
        raise SoraError("latents_std and scaling_factor must be positive; correct config.json")
    return mean, std
