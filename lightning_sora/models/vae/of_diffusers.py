"""Pretrained VAEs of diffusers, as VAEs of ours."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.diffusers_folder import build, find, keep_fresh, load
from lightning_sora.models.families import facts_of, family_of_vae, latent_statistics
from lightning_sora.models.vae.base import VAES, Posterior, VideoVAE
from lightning_sora.models.vae.identity import LOGVAR
from lightning_sora.models.vae.on_demand import OnDemand
from lightning_sora.spacetime import PatchSize
from lightning_sora.specs import Spec

log = logging.getLogger(__name__)

#: Images that an image VAE is given at once: of a long clip, all would not fit.
AT_ONCE = 8
#: Of the noise that some decoders of LTX add to what they decode.
SEED = 0


@VAES.register("diffusers")
class DiffusersVAE(VideoVAE):
    """A pretrained VAE of diffusers: of videos (Wan, CogVideoX, HunyuanVideo, LTX, Cosmos, Mochi), or of images (Stable
    Diffusion, Flux), which takes clips frame by frame.

    What holds of it, its :attr:`facts` say, by its family (:mod:`lightning_sora.models.families`). Latents are scaled
    as the family's transformer expects them. It computes in float32.

    Args:
        path: a folder that ``save_pretrained`` wrote, or of a pipeline that has a ``vae``; or a name on diffusers' hub.
        subfolder: of the folder or the name that holds it, where that is not to be found out.
        revision: of a name on a hub: a branch, tag or commit.
        framewise: pass long clips in overlapping chunks that are blended, where the family can: less memory, and other
            latents.
        tiling: pass large frames in overlapping tiles that are blended, where the family can: less memory, and other
            latents.
        on_demand: its weights stay in their files until something is encoded or decoded, which a training on cached
            latents never does; and they are part of no checkpoint: the folder must be at hand to sample, with the same
            weights. False to have them in memory and in checkpoints.
        config: what its config.json says, with the ``_class_name``: its weights are then fresh, and nothing is read. A
            saved model says so, as it has the weights itself.

    Attributes:
        network: the module of diffusers.
        family: what is known of its family.

    Raises:
        SoraError: diffusers is not installed, nothing can be read there, it is of no family that is known, or an
            option that the family does not have.

    Example:
        >>> import lightning_sora as ls
        >>> vae = ls.VAES.create("diffusers(path='models/wan/vae')")  # doctest: +SKIP
        >>> ls.ClipVAE(vae, "diffusers(path='models/wan/vae')").encode(clip).shape  # doctest: +SKIP
        torch.Size([16, 21, 60, 104])
    """

    def __init__(
        self,
        path: str,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        framewise: bool = False,
        tiling: bool = False,
        on_demand: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        stored = find(path, "vae", subfolder, revision) if config is None else None
        config = config if stored is None else stored.config
        if not isinstance(config, Mapping):
            raise SoraError(f"config={config!r} must be a mapping, of what a config.json says")
        family = family_of_vae(config.get("_class_name"))
        for option, asked in (("framewise", framewise), ("tiling", tiling)):
            if asked and not getattr(family, option):
                raise SoraError(f"{option}=True has no meaning for a {family.vae}; leave it out")
        if stored is None:
            if on_demand:
                raise SoraError(
                    "on_demand=True reads weights from a folder, and config makes them; leave one of them out"
                )
            keep_fresh(network := build(config))
        else:
            network = OnDemand(stored) if on_demand else load(stored)
        shape = network.shape[0] if isinstance(network, OnDemand) else network
        # Of the configuration as it is written: what diffusers fills in moves with its version.
        told = {name: value for name, value in json.loads(json.dumps(dict(config))).items() if name[0] != "_"}
        options = {"_class_name": family.vae, **told, "framewise": framewise, "tiling": tiling}
        channels = int(network.config[family.channels])  # type: ignore[index]
        names = "latents_mean", "latents_std"
        buffers = network.buffers_of_file(*names) if isinstance(network, OnDemand) else dict(network.named_buffers())
        mean, std = latent_statistics(network.config, buffers, channels)  # type: ignore[arg-type]
        super().__init__(
            PatchSize.of(family.stride(shape)), channels, options, mean.shape[1] if mean.ndim == 2 else None
        )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        self.network, self.family, self.pretrained = network, family, stored is not None
        self.latent_step, self.images = family.latent_step, family.images
        self.facts = facts_of(family, network.config, framewise)  # type: ignore[arg-type]
        run = functools.partial(_run_as, framewise=framewise if family.framewise else None, tiling=tiling)
        if isinstance(network, OnDemand):
            network.prepare(run)
        else:
            run(network)
        if framewise:
            log.warning("framewise=True: %s", self.facts.otherwise("chunk_exact"))

    def hashed(self) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(self.network, OnDemand):
            yield from super().hashed()
            return
        yield from (("latent_mean", self.latent_mean), ("latent_std", self.latent_std))
        for name, value in self.network.tensors():
            yield f"network.{name}", value

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Posterior:
        grid = self._check_video(video)
        found = [self.network.encode(part).latent_dist for part in self._parts(video)]  # type: ignore[operator]
        means = self._joined([one.mode() for one in found], len(video))
        if tuple(means.shape[1:]) != (self.latent_channels, *grid):
            raise SoraError(
                f"{self.family.vae} makes latents of {tuple(means.shape[1:])} where its config.json says "
                f"{(self.latent_channels, *grid)}; correct that, or give the folder that belongs to the weights"
            )
        if self.facts.deterministic_posterior:
            return Posterior(means, torch.full_like(means, LOGVAR))
        return Posterior(means, self._joined([one.logvar for one in found], len(video)))

    def decode(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        self._check_latent(latent)
        return self._joined([self._decoded(part) for part in self._parts(latent)], len(latent))

    def _decoded(self, part: Tensor) -> Tensor:
        config: Any = self.network.config
        given = {}
        if config.get("timestep_conditioning"):  # as the pipeline does where nothing else is asked: no noise, time 0
            given["temb"] = torch.zeros(len(part), device=part.device, dtype=part.dtype)
        with _same_noise(part) if _injects_noise(config) else contextlib.nullcontext():
            return self.network.decode(part, **given).sample  # type: ignore[operator]

    def _parts(self, video: Tensor) -> tuple[Tensor, ...]:
        """What the network is given at a time: some images, or a clip, of which HunyuanVideo 1.5 takes no two."""
        return rearrange(video, "b c t h w -> (b t) c h w").split(AT_ONCE) if self.images else video.split(1)

    def _joined(self, parts: list[Tensor], batch: int) -> Tensor:
        found = torch.cat(parts)
        return rearrange(found, "(b t) c h w -> b c t h w", b=batch) if self.images else found

    def decodes(self, name: str) -> bool:
        return name.startswith(("network.decoder.", "network.post_quant_conv."))

    def spec_of_its_own(self, spec: str) -> str:
        if isinstance(self.network, OnDemand):
            return spec  # its weights stay where they are
        asked = VAES.resolve(spec)
        kept = {name: value for name, value in asked.options.items() if name not in ("subfolder", "revision")}
        own = {name: value for name, value in self.config.items() if name not in ("framewise", "tiling")}
        return str(Spec(asked.name, {**kept, "config": own}))


def _run_as(network: Any, framewise: bool | None, tiling: bool) -> None:
    if framewise is not None:  # which some do unless told otherwise
        network.use_framewise_encoding = network.use_framewise_decoding = framewise
    if tiling:
        network.enable_tiling()


def _injects_noise(config: Any) -> bool:
    injected = config.get("decoder_inject_noise")
    return any(injected) if isinstance(injected, list | tuple) else bool(injected)


@contextlib.contextmanager
def _same_noise(latent: Tensor) -> Iterator[None]:
    """What decoders draw within is the same every time, and moves no global generator."""
    with torch.random.fork_rng(devices=[latent.device] if latent.is_cuda else []):
        torch.manual_seed(SEED)
        yield
