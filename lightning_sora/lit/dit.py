"""LitDiT: trains a text-guided diffusion transformer on the latents of a frozen VAE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_sora.diffusion.guidance import classifier_free
from lightning_sora.diffusion.paths import OBJECTIVES, interpolate
from lightning_sora.diffusion.samplers import SAMPLERS, Denoise, Progress, time_schedule
from lightning_sora.diffusion.timesteps import TIMESTEPS
from lightning_sora.errors import SoraError
from lightning_sora.lit.module import LitModule
from lightning_sora.lit.vae import LitVAE, to_uint8
from lightning_sora.metrics.adherence import WorldAdherence
from lightning_sora.models.dit import DiT
from lightning_sora.models.text import TEXT_ENCODERS, TextContext
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.randomness import initialize, normal_per_clip, uniform_per_clip
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout, patchify, unpatchify

Video = UInt8[Tensor, "frames height width 3"]

UNTRAINED = "untrained:"


class LitDiT(LitModule):
    """A diffusion transformer over spacetime patches.

    Args:
        vae: path of a checkpoint of a LitVAE run; "identity", for a model of pixels; or "untrained:" and a spec.
        patch_size: latent positions per token (frames, height, width).
        dim, depth, num_heads, mlp_ratio: of the transformer.
        attention: a block's spec, or a pattern over layers such as "spatial, temporal".
        kernel: how attention is computed, apart from what it computes.
        modulation: one projection of the condition for all layers, or one per layer.
        checkpoint: recompute layers in the backward pass, to save memory.
        text: spec of the text encoder.
        text_drop: fraction of training captions replaced by the empty one, for guidance.
        objective: spec: "velocity" or "x".
        timesteps: spec of the training timesteps.
        sampler, steps, guidance, shift: how samples are drawn when nothing else is asked.
        prompts: of the gallery that each validation adds to.
        val_timesteps: strata of t at which each validation clip is scored.
        optimizer, schedule, ema_decay, seed: see :class:`LitModule`.
    """

    boundary = ("dit.embed.*", "dit.unembed.*", "dit.*modulation*", "text.embedding.*")

    def __init__(
        self,
        vae: str,
        *,
        patch_size: Sequence[int] = (1, 1, 1),
        dim: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.67,
        attention: str | list[str] = "full",
        kernel: str = "sdpa",
        modulation: Literal["single", "per_block"] = "single",
        checkpoint: bool = False,
        text: str = "bytes(dim=128, depth=2)",
        text_drop: float = 0.1,
        objective: str = "velocity",
        timesteps: str = "logit_normal",
        sampler: str = "euler",
        steps: int = 20,
        guidance: float = 2.5,
        shift: float = 1.0,
        prompts: Sequence[str] = (),
        val_timesteps: int = 4,
        optimizer: str = "adamw(lr=1e-3, weight_decay=0.01)",
        schedule: str = "trapezoid(warmup=100)",
        ema_decay: float | None = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, ema_decay=ema_decay, seed=seed)
        self.save_hyperparameters()
        if not 0 <= text_drop < 1:
            raise SoraError(f"text_drop={text_drop} must lie in [0, 1)")
        if val_timesteps < 1:
            raise SoraError(f"val_timesteps={val_timesteps} must be at least 1")
        self.vae, self.vae_spec, self.vae_run_id = load_vae(vae, seed)
        self.vae.requires_grad_(False).eval()
        self.patch_size = PatchSize.of(patch_size)
        latent_dim = self.patch_size.volume * self.vae.latent_channels
        self.text = TEXT_ENCODERS.create(text)
        self.dit = DiT(
            latent_dim,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            text_dim=self.text.dim,
            attention=attention,
            modulation=modulation,
            kernel=kernel,
            checkpoint=checkpoint,
        )
        initialize(self.dit, seed, "dit.")
        if self.text.trainable:
            initialize(self.text, seed, "text.")
        self.objective = OBJECTIVES.create(objective)
        self.timesteps = TIMESTEPS.create(timesteps)
        self.text_drop, self.val_timesteps = text_drop, val_timesteps
        self.sampler, self.steps, self.guidance, self.shift = SAMPLERS.create(sampler), steps, guidance, shift
        time_schedule(steps, shift)  # refuses impossible ones now rather than at the first validation
        self.prompts = list(prompts)
        self.adherence = WorldAdherence()
        self._judged = False
        self._loss_of_size: dict[str, tuple[float, int]] = {}

    @property
    def patch(self) -> PatchSize:
        return self.vae.stride * self.patch_size

    @cached_property
    def vae_hash(self) -> str:
        """The frozen VAE's fingerprint."""
        return self.vae.fingerprint()

    def train(self, mode: bool = True) -> LitDiT:
        super().train(mode)
        self.vae.eval()
        return self

    # From pixels to rows of latents and back.
    def latent_rows(self, batch: SpacetimeBatch) -> Float[Tensor, "batch tokens latent_dim"]:
        """The data that diffusion sees: one row of scaled latents per token."""
        if batch.space == "latent":
            if batch.vae_hash != self.vae_hash:
                raise SoraError(
                    f"latents of VAE {batch.vae_hash} but this model's VAE is {self.vae_hash}; "
                    "make the latents anew with this VAE"
                )
            return batch.patches.to(self.dtype)
        with torch.no_grad():
            if not batch.layout.packed:
                latent = self.vae.encode_latent(self.videos(batch))
                return patchify(rearrange(latent, "b c t h w -> b t h w c"), self.patch_size)
            rows = []
            for video in batch.videos():
                pixels = (video.to(self.dtype) / 127.5 - 1).movedim(-1, 0)[None]
                latent = rearrange(self.vae.encode_latent(pixels), "b c t h w -> b t h w c")
                rows.append(patchify(latent, self.patch_size)[0])
            return batch.layout.join(rows)

    def decode_rows(self, rows: Float[Tensor, "clips tokens latent_dim"], grid: TokenGrid) -> list[Video]:
        """Videos of rows on one grid."""
        latent = rearrange(unpatchify(rows, grid, self.patch_size), "b t h w c -> b c t h w")
        return to_uint8(self.vae.decode_latent(latent.to(self.dtype)))

    # Training.
    def diffusion_loss(
        self,
        batch: SpacetimeBatch,
        x_0: Float[Tensor, "batch tokens latent_dim"],
        t: Float[Tensor, " clips"],
        noise: Float[Tensor, "batch tokens latent_dim"],
        captions: Sequence[str],
    ) -> Float[Tensor, " clips"]:
        """Each clip's mean squared error at timestep ``t``."""
        t = t.to(x_0)
        spread = batch.layout.per_token(t[:, None])
        x_t = interpolate(x_0, noise, spread)
        prediction = self.dit(x_t, t, self.text(captions), batch.layout)
        error = (prediction - self.objective.target(x_0, noise)).square().mean(dim=-1)
        return batch.layout.clip_mean(error.float())

    def noise_for(
        self, x_0: Float[Tensor, "batch tokens latent_dim"], layout: TokenLayout, purpose: str, keys: list[tuple]
    ) -> Float[Tensor, "batch tokens latent_dim"]:
        """Each clip's own noise, the same in any batch."""
        sizes = [(tokens, x_0.shape[-1]) for tokens in layout.lengths]
        return layout.join(normal_per_clip(sizes, self.seed, purpose, keys)).to(x_0)

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor:
        x_0 = self.latent_rows(batch)
        uniform = uniform_per_clip(self.seed, "timestep", batch.keys)
        t = self.timesteps(uniform, batch.layout.lengths)
        noise = self.noise_for(x_0, batch.layout, "noise", batch.keys)
        dropped = uniform_per_clip(self.seed, "text_drop", batch.keys) < self.text_drop
        captions = ["" if drop else c for c, drop in zip(batch.captions, dropped.tolist(), strict=True)]
        loss = self.diffusion_loss(batch, x_0, t, noise, captions).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    # Evaluation: the same noise and the same timesteps, every time and in every arm.
    def fixed_loss(self, batch: SpacetimeBatch, split: str) -> None:
        """Logs the loss at stratified timesteps and fixed noise, together, per stratum of t and per size."""
        with self.averaged():
            x_0 = self.latent_rows(batch)
            sizes = ["x".join(map(str, grid.size(self.patch))) for grid in batch.layout.grids]
            offsets = uniform_per_clip(self.seed, "fixed_timestep", [(i,) for i in batch.ids])
            for index in range(self.val_timesteps):
                t = self.timesteps((index + offsets) / self.val_timesteps, batch.layout.lengths)
                noise = self.noise_for(x_0, batch.layout, "fixed_noise", [(i, index) for i in batch.ids])
                losses = self.diffusion_loss(batch, x_0, t, noise, batch.captions)
                for name in (f"{split}/loss", f"{split}/loss_t{index}"):
                    bar = name == "val/loss"
                    self.log(name, losses.mean(), batch_size=len(batch), sync_dist=True, on_epoch=True, prog_bar=bar)
                for size, loss in zip(sizes, losses.tolist(), strict=True):
                    total, count = self._loss_of_size.get(size, (0.0, 0))
                    self._loss_of_size[size] = total + loss, count + 1

    def log_loss_of_sizes(self, split: str) -> None:
        """Logs the mean loss of each clip size; ranks may have met different ones."""
        everyone: list[Any] = [self._loss_of_size]
        if self.trainer.world_size > 1:
            everyone = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, self._loss_of_size)
        for size in sorted({size for one in everyone for size in one}):
            totals, counts = zip(*(one[size] for one in everyone if size in one), strict=True)
            self.log(f"{split}/loss_{size}", sum(totals) / sum(counts), rank_zero_only=True)
        self._loss_of_size.clear()

    def on_validation_epoch_end(self) -> None:
        self.log_loss_of_sizes("val")

    def validation_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self.fixed_loss(batch, "val")

    def test_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        """Generates for captions that were never trained on, and judges what can be judged."""
        self.fixed_loss(batch, "test")
        self._judged = batch.facts is not None
        if batch.facts is not None:
            frames, height, width = batch.layout.grids[0].size(self.patch)
            keys = [("test", i) for i in batch.ids]
            generated = self.sample(batch.captions, frames, height, width, seed=self.seed, keys=keys)
            self.adherence.update(generated, batch.facts, batch.fps)

    def on_test_epoch_end(self) -> None:
        self.log_loss_of_sizes("test")
        if self._judged:
            for name, value in self.adherence.compute().items():
                self.log(f"test/{name}", value)
        self.adherence.reset()

    def predict_step(self, batch: SpacetimeBatch, batch_idx: int) -> list[Video]:
        frames, height, width = batch.layout.grids[0].size(self.patch)
        return self.sample(batch.captions, frames, height, width, keys=[("predict", i) for i in batch.ids])

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        keys: Sequence[tuple[Any, ...]] | None = None,
        progress: Progress = iter,
    ) -> list[Video]:
        """Generates one video per prompt, with the moving average, in the precision of the weights.

        Args:
            frames, height, width: any size that the patch divides; by default the training size.
            seed, keys: the noise of prompt ``i`` is a function of ``seed`` and ``keys[i]`` (its index
                if None) alone, not of the other prompts.
            steps, guidance: by default those of the recipe.
            progress: wraps the list of steps, for a progress bar.

        Raises:
            SoraError: a size that the patch does not divide.
        """
        native = self.native_size or (1, self.patch.height, self.patch.width)
        size = [n if asked is None else asked for asked, n in zip((frames, height, width), native, strict=True)]
        grid = TokenGrid.of(size[0], size[1], size[2], self.patch)
        times = time_schedule(self.steps if steps is None else steps, self.shift)
        layout = TokenLayout.uniform(grid, len(prompts))
        keys = keys if keys is not None else [(i,) for i in range(len(prompts))]
        sizes = [(grid.tokens, self.patch_size.volume * self.vae.latent_channels)] * len(prompts)
        noise = torch.stack(normal_per_clip(sizes, seed, "sample", keys)).to(self.device)
        scale = self.guidance if guidance is None else guidance
        if not math.isfinite(scale):
            raise SoraError(f"guidance={scale} must be a finite number; 1 is none")
        with self.evaluating():
            denoise = self.denoiser(prompts, layout, scale)
            return self.decode_rows(self.sampler(denoise, noise, times, progress), grid)

    def denoiser(self, prompts: Sequence[str], layout: TokenLayout, guidance: float) -> Denoise:
        """``(x_t, t) -> x_0`` for these prompts, guided; the solver's state stays in float32."""
        text = self.text(list(prompts))
        empty = self.text([""] * len(prompts)) if guidance != 1 else None

        def predict(x_t: Tensor, t: float, context: TextContext) -> Tensor:
            times = torch.full((len(prompts),), t, device=x_t.device)
            prediction = self.dit(x_t.to(self.dtype), times.to(self.dtype), context, layout).float()
            return self.objective.x_0(prediction, x_t, layout.per_token(times[:, None]))

        def denoise(x_t: Tensor, t: float) -> Tensor:
            x_0 = predict(x_t, t, text)
            return x_0 if empty is None else classifier_free(x_0, predict(x_t, t, empty), guidance)

        return denoise

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
        return {"generated": self.sample(self.prompts, seed=self.seed)}, self.prompts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["vae"] = {"spec": self.vae_spec, "hash": self.vae_hash, "run_id": self.vae_run_id}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.vae_run_id = checkpoint["vae"]["run_id"]
        self.__dict__["vae_hash"] = checkpoint["vae"]["hash"]  # of the weights that are about to be loaded

    @classmethod
    def rebuild_arguments(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        # The VAE's weights are in the checkpoint: its own run need not be at hand.
        return {**super().rebuild_arguments(checkpoint), "vae": UNTRAINED + checkpoint["vae"]["spec"]}

    def lineage(self) -> dict[str, str]:
        """What this run stands on, for the record."""
        return {"vae.hash": self.vae_hash, "vae.run_id": self.vae_run_id or "none"}


def load_vae(source: str, seed: int) -> tuple[VideoVAE, str, str | None]:
    """A VAE from a LitVAE checkpoint or from a spec, its spec, and the mlflow run that trained it, if recorded.

    Raises:
        SoraError: a path that is no checkpoint, an unknown spec, or a VAE that would need training.
    """
    spec = source.removeprefix(UNTRAINED)
    if spec.endswith(".ckpt") or Path(spec).exists():
        module = LitVAE.load(spec)
        return module.vae, str(module.hparams["vae"]), module.run_id
    vae = VAES.create(spec)
    if any(True for _ in vae.parameters()) and not source.startswith(UNTRAINED):
        raise SoraError(
            f"model.vae={source!r} names a VAE without its weights; give the path of a checkpoint of a LitVAE run, "
            f"or '{UNTRAINED}{source}' if random weights are what you want"
        )
    initialize(vae, seed, "vae.")
    return vae, spec, None
