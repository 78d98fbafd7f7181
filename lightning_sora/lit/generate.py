"""Generation: from prompts and keyed noise to videos, with whatever sampler and guidance a recipe names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_sora.diffusion.guidance import TOGETHER_TOKENS, guidance_of
from lightning_sora.diffusion.paths import Objective
from lightning_sora.diffusion.samplers import SAMPLERS, Denoise, Progress, time_schedule
from lightning_sora.lit.expander import create_expander
from lightning_sora.lit.module import LitModule
from lightning_sora.models.dit import DiT
from lightning_sora.models.pixels import to_uint8
from lightning_sora.models.text import TextContext, TextEncoder
from lightning_sora.models.vae import VideoVAE
from lightning_sora.randomness import normal_per_clip
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout, patchify, unpatchify

log = logging.getLogger(__name__)

Video = UInt8[Tensor, "frames height width 3"]


class GenerativeModule(LitModule):
    """What a trained latent diffusion model can do with prompts; a subclass trains it.

    Args:
        sampler, steps, guidance, shift: how samples are drawn when nothing else is asked; guidance is a spec, or the
            scale of plain classifier-free guidance.
        prompts: of the gallery that each validation adds to; None for none.
        expander: checkpoint or spec of what turns captions into rich prompts before a test or a prediction samples from
            them; None to take them as they are.
    """

    vae: VideoVAE
    dit: DiT
    text: TextEncoder
    objective: Objective
    patch_size: PatchSize

    def __init__(
        self,
        *,
        sampler: str,
        steps: int,
        guidance: float | str,
        shift: float,
        prompts: Sequence[str] | None,
        expander: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.sampler, self.steps, self.shift = SAMPLERS.create(sampler), steps, shift
        self.guidance = guidance_of(guidance)
        time_schedule(steps, shift)  # refuses impossible ones now rather than at the first validation
        self.prompts = list(prompts or ())
        # Outside the module tree: the weak model of autoguidance is no part of this one's weights.
        self.__dict__["_weak"] = None
        self.__dict__["_shown"] = None, []
        made = None if expander is None else self.awaited.make(lambda: create_expander(expander), "test", "predict")
        self.__dict__["expander"] = made

    @property
    def patch(self) -> PatchSize:
        return self.vae.stride * self.patch_size

    def encode_rows(self, batch: SpacetimeBatch) -> list[Float[Tensor, "tokens latent_dim"]]:
        """Rows of scaled latents of each clip of a batch of pixels, on its own grid.

        In the precision of the VAE's own weights, as a cache of latents is made.
        """
        rows: dict[int, Tensor] = {}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for places, part in batch.split_by_grid():
                latent = self.vae.encode_latent(self.videos(part))
                rows |= zip(places, patchify(rearrange(latent, "b c t h w -> b t h w c"), self.patch_size), strict=True)
        return [rows[i] for i in range(len(batch))]

    def decode_rows(self, rows: Float[Tensor, "clips tokens latent_dim"], grid: TokenGrid) -> list[Video]:
        """Videos of rows on one grid."""
        latent = rearrange(unpatchify(rows, grid, self.patch_size), "b t h w c -> b c t h w")
        return to_uint8(self.vae.decode_latent(latent.to(self.dtype)))

    @overload
    def sample(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
        self,
        prompts: str,
        frames: int | None = ...,
        height: int | None = ...,
        width: int | None = ...,
        *,
        seed: int = ...,
        steps: int | None = ...,
        guidance: float | str | None = ...,
        keys: Sequence[tuple[Any, ...]] | None = ...,
        progress: Progress = ...,
    ) -> Video: ...

    @overload
    def sample(
        self,
        prompts: Sequence[str],
        frames: int | None = ...,
        height: int | None = ...,
        width: int | None = ...,
        *,
        seed: int = ...,
        steps: int | None = ...,
        guidance: float | str | None = ...,
        keys: Sequence[tuple[Any, ...]] | None = ...,
        progress: Progress = ...,
    ) -> list[Video]: ...

    @torch.no_grad()
    def sample(
        self,
        prompts: str | Sequence[str],
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | str | None = None,
        keys: Sequence[tuple[Any, ...]] | None = None,
        progress: Progress = iter,
    ) -> Video | list[Video]:
        """Generates a video of a prompt, or one of each, with the moving average, in the precision of the weights.

        Args:
            frames, height, width: any size that the patch divides; by default the training size.
            seed, keys: the noise of prompt ``i`` is a function of ``seed`` and ``keys[i]`` (its index
                if None) alone, not of the other prompts.
            steps, guidance: by default those of the recipe; guidance is a spec, or the scale of plain guidance.
            progress: wraps the list of steps, for a progress bar.

        Returns:
            uint8 [frames height width 3], values 0 to 255; a list of them for a list of prompts.

        Raises:
            SoraError: a size that the patch does not divide, or impossible steps or guidance.
        """
        if isinstance(prompts, str):
            wanted = frames, height, width
            return self.sample(
                [prompts], *wanted, seed=seed, steps=steps, guidance=guidance, keys=keys, progress=progress
            )[0]
        native = self.native_size or (1, self.patch.height, self.patch.width)
        size = [n if asked is None else asked for asked, n in zip((frames, height, width), native, strict=True)]
        grid = TokenGrid.of(size[0], size[1], size[2], self.patch)
        if beyond := self.seen_sizes.beyond(size):
            log.warning("%s is beyond what this model has seen: samples may be worse", beyond)
        if "" in prompts:
            log.warning("a prompt is empty: what is sampled for it is what the model makes of none")
        times = time_schedule(self.steps if steps is None else steps, self.shift)
        layout = TokenLayout.uniform(grid, len(prompts))
        keys = keys if keys is not None else [(i,) for i in range(len(prompts))]
        sizes = [(grid.tokens, self.patch_size.volume * self.vae.latent_channels)] * len(prompts)
        noise = torch.stack(normal_per_clip(sizes, seed, "sample", keys)).to(self.device)
        with self.evaluating():
            denoise = self.denoiser(prompts, layout, guidance)
            return self.decode_rows(self.sampler(denoise, noise, times, progress), grid)

    def predict_step(self, batch: SpacetimeBatch, batch_idx: int) -> list[Video]:
        """A clip for each caption, of the size of its clip."""
        made = self.sample_captions(batch, range(len(batch)), "predict")
        return [made[i] for i in range(len(batch))]

    def sample_captions(
        self, batch: SpacetimeBatch, places: Iterable[int], purpose: str, seed: int = 0
    ) -> dict[int, Video]:
        """By their places, clips for some captions of a batch, expanded where the recipe says so.

        Args:
            purpose: the noise of each clip is keyed by it and the clip's id.
        """
        groups: dict[tuple[int, int, int], list[int]] = {}
        for place in places:
            groups.setdefault(batch.layout.grids[place].size(self.patch), []).append(place)
        made: dict[int, Video] = {}
        for size, members in sorted(groups.items()):
            prompts = self._expanded([batch.captions[i] for i in members])
            keys = [(purpose, batch.ids[i]) for i in members]
            made |= zip(members, self.sample(prompts, *size, seed=seed, keys=keys), strict=True)
        return made

    def denoiser(self, prompts: Sequence[str], layout: TokenLayout, guidance: float | str | None = None) -> Denoise:
        """``(x_t, t) -> x_0`` for these prompts, guided; the solver's state stays in float32.

        What the guide asks this model for at once is computed in one batch where that is faster (see
        :data:`~lightning_sora.diffusion.guidance.TOGETHER_TOKENS`).
        """
        asked = self.guidance if guidance is None else guidance_of(guidance)
        guide = asked.start()
        captions = {"conditional": list(prompts), "unconditional": [""] * len(prompts), "weak": list(prompts)}
        contexts: dict[tuple[str, ...], TextContext] = {}
        layouts = {1: layout}
        axis = int(layout.packed)  # along which clips are joined

        def context(model: GenerativeModule, kinds: tuple[str, ...]) -> TextContext:
            if kinds not in contexts:
                apart = [context(model, (kind,)) for kind in kinds] if len(kinds) > 1 else []
                contexts[kinds] = TextContext.join(apart) if apart else model.text(captions[kinds[0]])
            return contexts[kinds]

        def run(kinds: tuple[str, ...], x_t: Tensor, t: float) -> Sequence[Tensor]:
            model: GenerativeModule = self.weak(asked.weak) if "weak" in kinds else self
            at = layouts.setdefault(len(kinds), TokenLayout(layout.grids * len(kinds), layout.packed))
            rows = torch.cat([x_t] * len(kinds), dim=axis)
            times = torch.full((at.clips,), t, device=x_t.device)
            spread = at.per_token(times[:, None])
            prediction = model.dit(
                model.objective.input(rows, spread).to(model.dtype), times.to(model.dtype), context(model, kinds), at
            )
            return model.objective.x_0(prediction.float(), rows, spread).chunk(len(kinds), dim=axis)

        def denoise(x_t: Tensor, t: float) -> Tensor:
            def predict(*kinds: str) -> Sequence[Tensor]:
                if "weak" not in kinds and layout.total <= TOGETHER_TOKENS:
                    return run(kinds, x_t, t)
                return [run((kind,), x_t, t)[0] for kind in kinds]

            return guide(predict, x_t, t)

        return denoise

    def _expanded(self, prompts: Sequence[str]) -> list[str]:
        """What is sampled from: the prompts, expanded where the recipe says so."""
        expander = self.__dict__["expander"]
        return list(prompts) if expander is None else expander.expand(prompts, seed=self.seed)

    def weak(self, path: str) -> GenerativeModule:
        """The weaker model of autoguidance, loaded once.

        Raises:
            SoraError: no such checkpoint, or a model of other latents.
        """
        if self.__dict__["_weak"] is None:
            self.__dict__["_weak"] = self.load_weak(path)
        return self.__dict__["_weak"]

    def load_weak(self, path: str) -> GenerativeModule:
        """Reads the weaker model."""
        raise NotImplementedError

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, the moving average, and the precision of the weights."""
        training = self.training
        self.eval()
        try:
            with self.averaged(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.train(training)

    def gallery(self) -> tuple[dict[str, list[Tensor]], list[str]]:
        if not self.prompts:
            return {}, []
        # Validation scores what the gallery shows: the same clips, made once.
        key = (self.trainer.global_step, self.trainer.state.fn) if self._trainer is not None else None
        if key is None or self.__dict__["_shown"][0] != key:
            self.__dict__["_shown"] = key, self.sample(self.prompts, seed=self.seed)
        return {"generated": self.__dict__["_shown"][1]}, self.prompts
