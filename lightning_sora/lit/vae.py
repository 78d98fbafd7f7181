"""LitVAE: trains a video VAE, and measures the latents that a DiT will see."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks.evaluate import evaluation_where_none_is
from lightning_sora.lit.evaluation_means import EvaluationMeans, of_all_ranks
from lightning_sora.lit.module import LitModule
from lightning_sora.lit.optimizers import create_optimizer
from lightning_sora.metrics.reconstruction import ReconstructionQuality, clip_quality
from lightning_sora.models.configs import Config
from lightning_sora.models.flops import FORWARD_AND_BACKWARD, CountedFlops
from lightning_sora.models.pixels import Clip, to_uint8
from lightning_sora.models.saved import is_saved
from lightning_sora.models.vae import VAES, ClipVAE, LatentStatistics, Posterior, VideoVAE
from lightning_sora.models.vae.losses import VAELoss, VAELossConfig, active_channels, are_active
from lightning_sora.randomness import generator, initialize, normal_per_clip
from lightning_sora.shipped import model_path
from lightning_sora.spacetime import PatchSize, SpacetimeBatch
from lightning_sora.specs import SpecText

STATISTICS_MEMORY = 0.98
"""Per step: the latent statistics forget what earlier weights made."""


class LitVAE(LitModule):
    """A video VAE under reconstruction, KL and, where asked for, perceptual and adversarial losses.

    Args:
        vae: spec of the VAE. Of one that comes with its weights, as ``diffusers(path='DIR')``, the latents are kept:
            the decoder alone is trained.
        loss: what it is trained to do; a mapping of options does too.
        permute_colors: train on each clip with its colour channels in a random order, so that what is seen
            in one colour is learned for others.
        latents_of: a trained VAE of which the latents are kept: the path of a checkpoint or of a saved model, or the
            name of one that comes with the package. Its encoder is taken over and frozen, and the decoder alone is
            trained, on from the trained one where its options are the same. A DiT of those latents can then take
            it: :meth:`LatentDiffusion.replace_vae`.
        gallery_clips: clips of the validation split that the gallery shows.
        optimizer, schedule, ema_decay, seed: see :class:`LitModule`.

    Example:
        >>> import torch, lightning_sora as ls
        >>> module = ls.LitVAE("causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8)")
        >>> latent = module.encode(torch.zeros(9, 32, 32, 3, dtype=torch.uint8))
        >>> latent.shape, module.decode(latent).shape
        (torch.Size([4, 3, 4, 4]), torch.Size([9, 32, 32, 3]))
    """

    evaluated_sides = ("reconstructed",)
    boundary = ("vae.encoder.input.*", "vae.encoder.output.*", "vae.decoder.input.*", "vae.decoder.output.*")
    groups: ClassVar[Mapping[str, type[Config]]] = {"loss": VAELossConfig}

    def __init__(
        self,
        vae: SpecText = "causal_conv(stride=(4, 8, 8), latent_channels=16)",
        *,
        loss: VAELossConfig = VAELossConfig(),
        permute_colors: bool = False,
        latents_of: SpecText | None = None,
        gallery_clips: int = 6,
        optimizer: SpecText = "adamw(lr=1e-3)",
        schedule: SpecText = "trapezoid(warmup=20)",
        ema_decay: float | None = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, ema_decay=ema_decay, seed=seed)
        loss = VAELossConfig.of(loss)
        self.save_hyperparameters()
        self.vae = VAES.create(vae)
        if not any(p.requires_grad for p in self.vae.parameters()):
            raise SoraError(f"the VAE {vae!r} has nothing to train; use it directly in a DiT recipe: model.vae={vae}")
        if not self.vae.pretrained:
            initialize(self.vae, seed, "vae.")
        self.keeps_latents = latents_of is not None or self.vae.pretrained
        if latents_of is not None:
            self.vae.adopt_latents(self.trained(latents_of)[0])
        if self.keeps_latents:
            for name, parameter in self.vae.named_parameters():
                parameter.requires_grad_(self.vae.decodes(name))
        self.loss = VAELoss(**loss.plain())
        if self.loss.discriminator is not None:
            initialize(self.loss.discriminator, seed, "loss.discriminator.")
            self.automatic_optimization = False
        self.permute_colors, self.gallery_clips = permute_colors, gallery_clips
        self.statistics = LatentStatistics(self.vae.latent_channels)
        self._unstepped = LatentStatistics(self.vae.latent_channels)  # of the batches that make the next step
        self.quality = ReconstructionQuality()
        # Of an evaluation: raw latents and scaled ones.
        self._means, self._latents = EvaluationMeans(), LatentStatistics(2 * self.vae.latent_channels)
        self._gallery_batches: list[SpacetimeBatch] = []
        self._count = CountedFlops()

    @classmethod
    def trained(cls, path: str) -> tuple[VideoVAE, str, str | None]:
        """A trained VAE, its spec and the run that trained it, if recorded: of a checkpoint, of a folder that it or a
        model of its latents was saved to, or of the model of that name that comes with the package.

        Raises:
            SoraError: no such file or folder, or one of another module.
        """
        if is_saved(folder := model_path(path)):
            saved = ClipVAE.load(folder)
            return saved.vae, saved.spec, None
        module = cls.load(path)
        return module.vae, str(module.hparams["vae"]), module.run_id

    @property
    def patch(self) -> PatchSize:
        return self.vae.stride

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._unstepped.sums.zero_()

    def check_batch(self, batch: SpacetimeBatch) -> None:
        """Refuses latents, and patches that are no multiple of the VAE's stride.

        Raises:
            SoraError: any of these.
        """
        if batch.space != "pixel":
            raise SoraError("a VAE trains on pixels, but this source yields latents; give a source of pixels")
        self.check_patch(batch.patch)

    def check_patch(self, patch: PatchSize) -> None:
        if any(b % s for b, s in zip(patch, self.patch, strict=True)):
            raise SoraError(
                f"data.patch={list(patch)} is no multiple of the VAE's stride {list(self.patch)}; "
                f"set data.patch to {list(self.patch)}, or to the stride times the patch size of the DiT to come"
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        return [*super().configure_callbacks(), *evaluation_where_none_is(self.trainer)]

    # Training.
    def training_flops(self, batch: SpacetimeBatch) -> int:
        """Counted on one clip per size; losses, perceptual network and discriminator are not included."""
        total = 0
        for grid in batch.layout.grids:
            size = grid.size(batch.patch)
            clip = torch.zeros((1, 3, *size), device=self.device).to(self.dtype)
            total += self._count(size, self.vae, lambda clip=clip: self.vae.decode(self.vae.encode(clip).mean))  # type: ignore[misc]
        return FORWARD_AND_BACKWARD * total

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor | None:
        step = self.trainer.global_step
        pairs: list[tuple[Tensor, Tensor]] = []
        latents: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for places, part in batch.split_by_grid():
            video = self._permuted(part) if self.permute_colors else self.videos(part)
            posterior = self.vae.encode(video)
            made = self.vae.decode(posterior.sample(self._noise(posterior, part)))
            own = self.loss(video, made, posterior, step, getattr(self.vae, "last_layer", None))
            own["active_channels"] = active_channels(posterior).sum().float()
            share = len(places) / len(batch)  # clips weigh the same, whatever their size
            terms = {name: terms.get(name, 0) + share * value for name, value in own.items()}
            latents.append(posterior.mean)
            pairs.append((video, made))
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "reconstruction", batch_size=len(batch))
        if bool(terms["loss"].isfinite()):  # else its step is not taken either
            for latent in latents:
                self._unstepped.update(latent)
        if self.automatic_optimization:
            return batch.weighed(terms["loss"][None], "clip")
        self._adversarial_step(pairs, batch.weighed(terms["loss"][None], "clip"), step)
        return None

    def _permuted(self, batch: SpacetimeBatch) -> Float[Tensor, "clips 3 frames height width"]:
        clips = batch.videos()
        permuted = clips[0].new_empty((len(clips), 3, *clips[0].shape[:-1]), dtype=self.vae.latent_mean.dtype)
        for place, (clip, key) in enumerate(zip(clips, batch.keys, strict=True)):
            for channel, drawn in enumerate(torch.randperm(3, generator=generator(self.seed, "colors", *key)).tolist()):
                permuted[place, channel] = clip[..., drawn]  # converted as it is copied
        return permuted.div_(127.5).sub_(1)

    def _noise(self, posterior: Posterior, batch: SpacetimeBatch) -> Float[Tensor, "clips channels t h w"]:
        sizes = [tuple(posterior.mean.shape[1:])] * len(batch)
        return torch.stack(normal_per_clip(sizes, self.seed, "posterior", batch.keys)).to(posterior.mean)

    def _adversarial_step(self, pairs: list[tuple[Tensor, Tensor]], loss: Tensor, step: int) -> None:
        """One step of the VAE, then one of the discriminator on the same clips.

        Args:
            pairs: real and reconstructed clips, of one grid each.
        """
        both: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        (optimizer, discriminator_optimizer), (schedule, discriminator_schedule) = both, schedules
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        schedule.step()
        self.update_average()
        if self.loss.adversarial(step):
            # Lightning would count this one too, and end the run at half of max_steps.
            discriminator_optimizer._on_before_step = discriminator_optimizer._on_after_step = lambda: None
            self.toggle_optimizer(discriminator_optimizer)
            clips = sum(len(video) for video, _ in pairs)
            terms: dict[str, Tensor] = {}
            for video, made in pairs:
                for name, value in self.loss.discriminator_loss(video, made).items():
                    terms[name] = terms.get(name, 0) + len(video) / clips * value
            discriminator_optimizer.zero_grad()
            self.manual_backward(terms["loss"])
            discriminator_optimizer.step()
            self.untoggle_optimizer(discriminator_optimizer)
            for name, value in terms.items():
                self.log(f"train/discriminator_{name}", value.detach(), batch_size=clips)
        with warnings.catch_warnings():  # before the first step of the discriminator torch takes this for a slip
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            discriminator_schedule.step()

    def configure_optimizers(self) -> Any:
        def optimizer(prefix: str) -> Any:
            named = [(n, p) for n, p in self.named_parameters() if n.startswith(prefix) and p.requires_grad]
            return self.scheduled(create_optimizer(self._optimizer_spec, named, self.boundary))

        if self.automatic_optimization:
            return optimizer("vae.")
        return [optimizer("vae."), optimizer("loss.discriminator.")]

    def update_average(self) -> None:
        super().update_average()
        if self._unstepped.count:
            self.statistics.sums *= STATISTICS_MEMORY
            self.statistics.merge(self._unstepped)
            self._unstepped.sums.zero_()
        if not self.keeps_latents:
            self.adopt_statistics()  # at every step, so that every checkpoint is scaled

    def adopt_statistics(self) -> None:
        """Scales the latent by what recent training batches measured, over all ranks.

        Raises:
            SoraError: a latent channel is constant.
        """
        total = LatentStatistics(self.vae.latent_channels)
        total.sums = self.trainer.strategy.reduce(self.statistics.sums.to(self.device), reduce_op="sum").cpu()
        if not total.count:  # no loss was finite so far
            return
        self.vae.set_latent_statistics(total)

    # Evaluation.
    def on_validation_epoch_start(self) -> None:
        self._gallery_batches.clear()

    def on_test_epoch_start(self) -> None:
        self._gallery_batches.clear()

    def validation_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SpacetimeBatch, batch_idx: int) -> dict[str, list[Tensor]]:
        return {"reconstructed": self._evaluate(batch, "test")}

    def _evaluate(self, batch: SpacetimeBatch, split: str) -> list[Tensor]:
        """Logs a batch's scores; its reconstructions, uint8 [frames height width 3]."""
        found: dict[int, Tensor] = {}
        for places, part in batch.split_by_grid():
            found |= zip(places, self._evaluate_part(part, split), strict=True)
        if sum(map(len, self._gallery_batches)) < self.gallery_clips:
            self._gallery_batches.append(batch)
        return [found[i] for i in range(len(batch))]

    def _evaluate_part(self, batch: SpacetimeBatch, split: str) -> list[Tensor]:
        with self.averaged():
            video = self.videos(batch)
            posterior = self.vae.encode(video)
            made = self.vae.decode(posterior.mean)
        psnr, ssim = clip_quality(made, video)
        self.quality.add(psnr, ssim)
        for source, value in zip(batch.sources, psnr.tolist(), strict=False):  # none where there is one source only
            self._means.add(f"{split}/psnr_{source}", [value])
        self.score_clips(f"{split}/psnr", batch.ids, psnr.tolist())
        self.score_clips(f"{split}/ssim", batch.ids, ssim.tolist())
        self._means.add(f"{split}/l1", (made - video).abs().flatten(1).mean(dim=1))
        if not self.vae.facts.deterministic_posterior:
            for i, kl in enumerate(posterior.kl().mean(dim=(2, 3, 4)).unbind(dim=1)):
                self._means.add(f"kl/{split}_channel_{i:02d}", kl)
        self._latents.update(torch.cat([posterior.mean, self.vae.scale(posterior.mean)], dim=1))
        return to_uint8(made)

    def on_validation_epoch_end(self) -> None:
        self._log_quality("val")

    def on_test_epoch_end(self) -> None:
        self._log_quality("test")

    def _log_quality(self, split: str) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in self.quality.compute().items()}, prog_bar=True)
        self.quality.reset()
        means = self._means.log(self)
        everyone = of_all_ranks(self.trainer, self._latents)
        latents, self._latents = (LatentStatistics(2 * self.vae.latent_channels) for _ in range(2))
        for one in everyone:
            latents.merge(one)
        self._log_latents(latents, means, split)

    def _log_latents(self, latents: LatentStatistics, means: dict[str, float], split: str) -> None:
        """Logs how many channels carry anything, and the spread of scaled latents, over all clips of an evaluation."""
        channels = self.vae.latent_channels
        kl = torch.tensor([means.get(f"kl/{split}_channel_{i:02d}", 0.0) for i in range(channels)])
        self.log(f"{split}/active_channels", are_active(latents.std[:channels].square().cpu(), kl).sum().float())
        mean = latents.mean[channels:]
        square = latents.std[channels:].square() + mean.square()
        self.log(f"{split}/latent_std", (square.mean() - mean.mean().square()).clamp(min=0).sqrt().float())

    @torch.no_grad()
    def predict_step(self, batch: SpacetimeBatch, batch_idx: int) -> list[Tensor]:
        """Reconstructions, uint8 [frames height width 3]."""
        found: dict[int, Tensor] = {}
        with self.averaged():
            for places, part in batch.split_by_grid():
                made = self.vae.decode(self.vae.encode(self.videos(part)).mean)
                found |= zip(places, to_uint8(made), strict=True)
        return [found[i] for i in range(len(batch))]

    # By hand, of display values: uint8 [frames height width 3].
    @property
    def clips(self) -> ClipVAE:
        """The VAE for single clips of display values."""
        made = ClipVAE(self.vae, str(self.hparams["vae"]))
        made.run_id = self.run_id
        return made

    def encode(self, clip: Clip) -> Float[Tensor, "channels t h w"]:
        """The latent of a clip, with the moving average; see :meth:`ClipVAE.encode`.

        Example:
            >>> latent = ls.load("outputs/world_vae").encode(clip)  # doctest: +SKIP
        """
        with self.averaged():
            return self.clips.encode(clip)

    def decode(self, latent: Float[Tensor, "channels t h w"]) -> Clip:
        """The clip of a latent, with the moving average; see :meth:`ClipVAE.decode`."""
        with self.averaged():
            return self.clips.decode(latent)

    def save(self, folder: str | Path) -> Path:
        """Writes the VAE, with the moving average, as safetensors and JSON that need no Lightning."""
        with self.averaged():
            return self.clips.save(folder)

    @torch.no_grad()
    def gallery(self) -> tuple[dict[str, list[Tensor]], list[str]]:
        real: list[Tensor] = []
        made: list[Tensor] = []
        captions: list[str] = []
        for batch in self._gallery_batches:
            real += [video.cpu() for video in batch.videos()]
            made += self.predict_step(batch, 0)
            captions += batch.captions
        shown = slice(self.gallery_clips)
        return {"real": real[shown], "reconstruction": made[shown]}, captions[shown]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["latent_sums"] = self.statistics.sums
        checkpoint["vae_spec"] = self.vae.spec_of_its_own(str(self.hparams["vae"]))
        for name in self._borrowed():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.statistics.sums = checkpoint["latent_sums"]
        checkpoint["state_dict"] |= self._borrowed()

    def _borrowed(self) -> dict[str, Tensor]:
        """Weights that a file of their own holds, and the checkpoint does not."""
        return {name: value for name, value in self.state_dict().items() if name.startswith("loss.perceptual.")}

    @classmethod
    def rebuild_arguments(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        # The trained model needs no perceptual loss, nor the VAE that it began as: their weights may be elsewhere.
        arguments = super().rebuild_arguments(checkpoint)
        loss = {**arguments.get("loss", {}), "perceptual_weight": 0.0}
        vae = checkpoint.get("vae_spec", arguments["vae"])  # none in checkpoints of before
        return {**arguments, "vae": vae, "loss": loss, "latents_of": None}

    def lineage(self) -> dict[str, str]:
        """What the run is, for the record."""
        return {"vae.spec": str(self.hparams["vae"])}
