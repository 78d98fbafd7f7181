"""LitDiT: trains a text-guided diffusion transformer on the latents of a frozen VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.diffusion.timesteps import TIMESTEPS
from lightning_sora.diffusion.weighting import WEIGHTINGS
from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks.evaluate import evaluation_where_none_is
from lightning_sora.lit.checkpoint import check_module
from lightning_sora.lit.clip_cache import ClipCache
from lightning_sora.lit.evaluation_means import EvaluationMeans
from lightning_sora.lit.fitting import check_step_fits
from lightning_sora.lit.generate import GenerativeModule
from lightning_sora.lit.given import check_tasks, first_frame_shown, what_is_given
from lightning_sora.lit.initial import Weights
from lightning_sora.lit.latent_memory import LatentMemory
from lightning_sora.lit.moved import found_again
from lightning_sora.lit.older import under_model
from lightning_sora.lit.pretrained import load_vae
from lightning_sora.lit.tuned import Tuned, clip_distance
from lightning_sora.metrics.reconstruction import ReconstructionQuality, clip_quality
from lightning_sora.models.configs import Config, DiffusionConfig, DiTConfig, SamplingConfig
from lightning_sora.models.denoiser import DenoisingTerms
from lightning_sora.models.denoisers.base import asked_denoiser
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import Clip, from_uint8, to_uint8
from lightning_sora.models.saved import is_saved
from lightning_sora.randomness import normal_per_clip, uniform_per_clip
from lightning_sora.spacetime import SpacetimeBatch, TokenLayout
from lightning_sora.specs import SPEC, SpecText
from lightning_sora.tasks import TaskMixture


class LitDiT(GenerativeModule):
    """Trains a :class:`LatentDiffusion`: a diffusion transformer on the latents of a frozen VAE, guided by text.

    Args:
        vae: path of a checkpoint of a LitVAE run, or of a folder that it was saved to; "diffusers(path='DIR')", a
            pretrained one; "identity", for a model of pixels; or "spec:" and a spec.
        text: spec of the text encoder.
        dit: the package's own transformer; of this and the next two, a mapping of options does too.
        diffusion: the training objective.
        sampling: how samples are drawn when nothing else is asked.
        denoiser: spec of another denoiser, such as "diffusers(path='DIR')", a pretrained one; None for the one of
            ``dit``.
        attention: of that other denoiser: a block's spec, or a pattern over layers; None for its own.
        image: folder of the image encoder, of a denoiser that attends to embeddings of the first frame.
        init_from: path of a checkpoint of a LitDiT run, of a folder that such a model was saved to, or the name of one
            that comes with the package, whose transformer and text encoder this training begins with; None for fresh
            weights. They must be of the same shapes, latents and objective: "weights(path='PATH', strict=False)" takes
            what fits of other shapes and names, and says what does not.
        tuning: which parameters learn: "full", all; "fresh", those of blocks that were put into a pretrained denoiser;
            "lora(rank=16)", low-rank adapters. See ``TUNINGS``.
        prompts, expander: see :class:`GenerativeModule`.
        optimizer, schedule, ema_decay, seed: see :class:`LitModule`.

    Example:
        >>> import lightning_sora as ls
        >>> dit = ls.DiTConfig(patch_size=(1, 8, 8), dim=32, depth=1, num_heads=2)
        >>> module = ls.LitDiT("identity", text="bytes(dim=16)", dit=dit, diffusion={"objective": "x"})
        >>> module.sample("a red cube moves left", 3, 16, 16, steps=2).shape
        torch.Size([3, 16, 16, 3])
    """

    evaluated_sides = ("generated", "reconstructed")
    boundary = ("model.dit.embed.*", "model.dit.unembed.*", "model.dit.*modulation*", "model.text.embedding.*")
    groups: ClassVar[Mapping[str, type[Config]]] = {
        "dit": DiTConfig,
        "diffusion": DiffusionConfig,
        "sampling": SamplingConfig,
    }

    def __init__(
        self,
        vae: SpecText,
        *,
        text: SpecText = "bytes(dim=128, depth=2)",
        dit: DiTConfig = DiTConfig(),
        diffusion: DiffusionConfig = DiffusionConfig(),
        sampling: SamplingConfig = SamplingConfig(),
        denoiser: SpecText | None = None,
        attention: SpecText | list[SpecText] | None = None,
        image: SpecText | None = None,
        init_from: SpecText | None = None,
        tuning: SpecText = "full",
        prompts: Sequence[str] | None = None,
        expander: SpecText | None = None,
        optimizer: SpecText = "adamw(lr=1e-3, weight_decay=0.01)",
        schedule: SpecText = "trapezoid(warmup=100)",
        ema_decay: float | None = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__(
            prompts=prompts,
            expander=expander,
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=ema_decay,
            seed=seed,
        )
        dit, sampling = DiTConfig.of(dit), SamplingConfig.of(sampling)
        diffusion = self.diffusion = DiffusionConfig.of(diffusion)
        self.save_hyperparameters()
        self.weighting = WEIGHTINGS.create(diffusion.weighting)
        self.timesteps = TIMESTEPS.create(diffusion.timesteps)
        self.tasks = TaskMixture(diffusion.tasks or {"text_to_video": 1.0})
        asked = asked_denoiser(denoiser, attention)
        if asked is not None and dit.plain() != DiTConfig().plain():
            raise SoraError(
                f"model.dit describes the package's own transformer, and model.denoiser={denoiser!r} names another; "
                "drop one of them"
            )
        trained, self.vae_spec, self.vae_run_id = load_vae(vae, seed)
        self.model = LatentDiffusion.create(
            self.vae_spec, text, dit, diffusion.objective, sampling,
            denoiser=asked, image=image, seed=seed, trained=trained,
        )  # fmt: skip
        self.model.seen_sizes, self.model.read_weak = self.seen_sizes, read_model
        self.model.tasks = tuple(self.tasks.tasks)
        check_tasks(self.model, self.tasks, self.prompts)
        self.taken = None if init_from is None else Weights.asked(init_from).put_into(self.model, read_model)
        self.tuned = Tuned(self.model, tuning, seed, () if self.taken is None else self.taken.of("dit"))
        self.reconstruction = ReconstructionQuality()
        self._clip_cache: ClipCache | None = None
        self._fits = False  # of its training step, whether that was asked
        self._latents = LatentMemory()  # of the fit that runs
        self._sizes = set[str]()  # of the clips of the test
        self._means = EvaluationMeans()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.data_spec()
        if data is not None and data.vae_hash is not None:
            self.model.check_latents(data.vae_hash)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [*super().configure_callbacks(), *evaluation_where_none_is(self.trainer)]

    # Training.
    def latent_rows(
        self, batch: SpacetimeBatch, memory: LatentMemory | None = None
    ) -> Float[Tensor, "batch tokens latent_dim"]:
        """The data that diffusion sees: one row of scaled latents per token, those in ``memory`` not made anew."""
        if batch.space == "latent" or memory is None:
            return self.model.encode(batch)
        return batch.layout.join(memory.rows(batch, self.model.encode_clips))

    def weighted(self, terms: DenoisingTerms) -> Float[Tensor, " clips"]:
        """The loss of each clip: its error, weighted by the timestep."""
        return terms.error * self.weighting(terms.t.float(), self.model.objective)

    def captions_of(self, batch: SpacetimeBatch) -> list[str]:
        """The captions that a batch is trained with: some are dropped, for guidance."""
        dropped = uniform_per_clip(self.seed, "text_drop", batch.keys) < self.diffusion.text_drop
        return ["" if drop else c for c, drop in zip(batch.captions, dropped.tolist(), strict=True)]

    def training_flops(self, batch: SpacetimeBatch) -> int:
        """See :meth:`LatentDiffusion.flops`; of the captions and the tasks that the batch is trained with."""
        drawn = self.tasks.draw(batch.layout, self.seed, batch.keys)
        return self.model.flops(
            batch.layout,
            text_tokens=self.model.text.length(self.captions_of(batch)),
            pixels=batch.space == "pixel",
            part=drawn.layout,
            per_token=drawn.strength is not None,
        )

    def noise_for(
        self, x_0: Float[Tensor, "batch tokens latent_dim"], layout: TokenLayout, purpose: str, keys: list[tuple]
    ) -> Float[Tensor, "batch tokens latent_dim"]:
        """Each clip's own noise, the same in any batch."""
        sizes = [(tokens, x_0.shape[-1]) for tokens in layout.lengths]
        return layout.join(normal_per_clip(sizes, self.seed, purpose, keys)).to(x_0)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._latents.clear()
        self._fits = False
        self.tuned.begin()
        if self.taken is not None:
            self.taken.keep(self.trainer)

    def on_train_batch_start(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if not self._fits:
            average = self.ema is not None and not self.ema.shadow
            check_step_fits(self, self.model.dit, batch, self._optimizer_spec, average)
            self._fits = True

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor:
        drawn = self.tasks.draw(batch.layout, self.seed, batch.keys)
        x_0 = drawn.rows(self.latent_rows(batch, self._latents), batch.layout)
        uniform = uniform_per_clip(self.seed, "timestep", batch.keys)
        t = self.timesteps(uniform, drawn.layout.lengths)
        noise = self.noise_for(x_0, drawn.layout, "noise", batch.keys)
        strength, shown = what_is_given(self.model, batch, drawn)
        captions = self.captions_of(batch)
        with self.tuned.drawing(self.seed, batch.keys):
            losses = self.weighted(self.model.terms(drawn.layout, x_0, t, noise, captions, strength, shown))
        self.log("train/loss", losses.mean(), prog_bar=True, batch_size=len(batch))
        self.log_by_source("train/loss", losses.detach(), batch)
        return batch.weighed(losses, self.diffusion.weigh)

    # Evaluation: the same noise and the same timesteps, every time and in every arm.
    def fixed_loss(self, batch: SpacetimeBatch, split: str) -> None:
        """Logs the errors at fixed noise and stratified noise levels, together, per stratum and per size.

        ``loss`` is the objective's own; ``denoising_error`` is the mean squared error of the ``x_0`` that the
        prediction implies. Levels are even in ``t``, whatever timesteps the recipe trains on, and equal ``t``
        is equal signal-to-noise ratio on every path: so the second can be compared between objectives. Of the
        objective "x" under uniform weighting the two are one number.
        """
        with self.averaged():
            x_0 = self.latent_rows(batch)
            sizes = ["x".join(map(str, grid.size(self.patch))) for grid in batch.layout.grids]
            offsets = uniform_per_clip(self.seed, "fixed_timestep", [(i,) for i in batch.ids])
            shown = first_frame_shown(self.model, batch)
            totals = {name: torch.zeros(len(batch)) for name in ("loss", "denoising_error")}
            for index in range(self.diffusion.val_timesteps):
                t = (index + offsets) / self.diffusion.val_timesteps
                noise = self.noise_for(x_0, batch.layout, "fixed_noise", [(i, index) for i in batch.ids])
                compute = partial(self.model.terms, batch.layout, x_0, t, noise, batch.captions, None, shown)
                terms = compute()
                if index == self.diffusion.val_timesteps // 2 and not self.tuned.whole:
                    distance = self.tuned.prediction_distance(terms, compute, batch.layout)
                    self._means.add(f"{split}/prediction_distance_from_base", distance)
                errors = batch.layout.clip_mean((terms.x_0 - x_0).float().square().mean(dim=-1))
                for name, values in (("loss", self.weighted(terms)), ("denoising_error", errors)):
                    totals[name] += values.cpu() / self.diffusion.val_timesteps
                    self._means.add(f"{split}/{name}_t{index}", values)
            for name, values in totals.items():
                self._means.add(f"{split}/{name}", values)
                self.score_clips(f"{split}/{name}", batch.ids, values.tolist())
            for division, group in (("sizes", sizes), ("sources", batch.sources)):
                for name, loss in zip(group, totals["loss"].tolist(), strict=bool(group)):
                    self._means.add(f"{split}/loss_{name}", [loss], division)

    def protocol(self, split: str) -> dict[str, Any]:
        fixed = {
            "timesteps": f"{self.diffusion.val_timesteps} even strata of t",
            "noise": "fixed per clip",
            "vae": self.model.vae_hash,
        }
        drawn = self.model.sampling
        sampling = {"sampler": str(drawn.sampler), "steps": drawn.steps, "shift": drawn.shift}
        sampling |= {"guidance": str(drawn.guidance)}
        # Named where they are chosen: cards of before there was a choice stay what they are.
        sampling |= {"rope": drawn.rope} if drawn.rope != "none" else {}
        sampling |= {"shift_by_size": True} if drawn.shift_by_size else {}
        if self.expander is not None:
            sampling |= {"expander": self.expander.fingerprint()}
        if split == "test":
            sampling |= {"sizes": sorted(self._sizes)}
        return super().protocol(split) | (fixed if split == "val" else fixed | sampling)

    def on_validation_epoch_end(self) -> None:
        self._means.log(self, prog_bar=("val/loss",))
        if self.native_size is not None and "base" in (versions := self.gallery()[0]):
            self.log("val/distance_from_base", clip_distance(versions["generated"], versions["base"]))

    def gallery(self) -> tuple[dict[str, list[Tensor]], list[str]]:
        """The same, beside what the base makes of the same noise where only a part learns."""
        versions, prompts = super().gallery()
        if versions and not self.tuned.whole:
            base = self.tuned.shown(self.native_size, lambda: self.model.sample(prompts, seed=self.seed))
            versions = {"base": base, **versions}
        return versions, prompts

    def validation_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self.fixed_loss(batch, "val")

    def on_test_start(self) -> None:
        self._sizes = set()
        with self.averaged():
            self._clip_cache = ClipCache(self.trainer.default_root_dir, self, self.protocol("generation"))

    def test_step(self, batch: SpacetimeBatch, batch_idx: int) -> dict[str, list[Clip]]:
        """Generates for captions that were never trained on.

        What the VAE alone makes of the clips is given beside it: no generation can be sharper.
        """
        self.fixed_loss(batch, "test")
        reconstructed = self._score_vae(batch) if batch.space == "pixel" else []
        sizes = zip(batch.layout.grids, batch.fps, strict=True)
        self._sizes |= {f"{'x'.join(map(str, grid.size(self.patch)))} at {fps:g} fps" for grid, fps in sizes}
        return {"generated": self.generate(batch), "reconstructed": reconstructed}

    def generate(self, batch: SpacetimeBatch) -> list[Clip]:
        """A clip for each caption, of the size of its clip; those of an interrupted test are taken up."""
        cache = self._clip_cache
        sizes = [grid.size(self.patch) for grid in batch.layout.grids]
        # What a clip is made from, beside the model and the protocol.
        keys = [repr(key) for key in zip(batch.ids, batch.captions, sizes, strict=True)]
        made = {key: cache.get(key) for key in keys} if cache is not None else {}
        missing = [i for i, key in enumerate(keys) if made.get(key) is None]
        for i, video in self.sample_captions(batch, missing, "test", self.seed).items():
            made[keys[i]] = video
            if cache is not None:
                cache.put(keys[i], video)
        return [clip for key in keys if (clip := made[key]) is not None]

    def _score_vae(self, batch: SpacetimeBatch) -> list[Clip]:
        found: list[Clip] = []
        for video in batch.videos():
            pixels = from_uint8([video], self.dtype)
            with torch.no_grad():
                made = self.model.vae.decode_latent(self.model.vae.encode_latent(pixels))
            self.reconstruction.add(*clip_quality(made, pixels))
            found += to_uint8(made)
        return found

    def on_test_epoch_end(self) -> None:
        self._means.log(self, prog_bar=("test/loss",))
        if int(self.reconstruction.clips):
            for name, value in self.reconstruction.compute().items():
                self.log(f"test/vae_{name}", value)
        self.reconstruction.reset()

    def on_test_end(self) -> None:
        if self._clip_cache is not None and self.trainer.is_global_zero:
            self._clip_cache.clear()
        self._clip_cache = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["vae"] = {"spec": self.vae_spec, "hash": self.model.vae_hash, "run_id": self.vae_run_id}
        checkpoint["denoiser"] = (self.model.config or {}).get("denoiser")
        self.tuned.leave_out(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        under_model(checkpoint, ("vae.", "text.", "dit."))
        check_module(checkpoint, type(self).__name__)
        self.tuned.check(checkpoint)
        super().on_load_checkpoint(checkpoint)
        self.tuned.put_back(checkpoint)
        self.vae_run_id = checkpoint["vae"]["run_id"]
        self.model.vae_hash = checkpoint["vae"]["hash"]

    @classmethod
    def rebuild_arguments(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        # What the checkpoint holds need not be at hand elsewhere.
        own = {"expander": None, "tuning": checkpoint.get("tuning", "full")}
        if not checkpoint.get("base", {}).get("vae"):
            own |= {"vae": SPEC + checkpoint["vae"]["spec"]}
        if "base" not in checkpoint:  # it holds all weights
            own |= {"init_from": None}
            if checkpoint.get("denoiser") is not None:
                own |= {"denoiser": checkpoint["denoiser"], "attention": None}
        arguments = {**super().rebuild_arguments(checkpoint), **own}
        if (begun := arguments.get("init_from")) is not None and "vae" in own:  # the VAE of the checkpoint comes later
            arguments["init_from"] = Weights.asked(begun).upon(checkpoint["vae"]["hash"])
        return arguments

    @classmethod
    def relocated(
        cls, arguments: dict[str, Any], checkpoint: dict[str, Any], base: str | Path | None
    ) -> dict[str, Any]:
        parts = ("vae", "text", "denoiser", "image", "init_from")
        named = {name: arguments[name] for name in parts if arguments.get(name) is not None}
        directory = checkpoint.get("directory")
        found = found_again(named, directory, base)
        if base is not None and found == found_again(named, directory):
            raise SoraError(
                f"base={str(base)!r}: all that this checkpoint stands on is found where it was; leave it out"
            )
        return {**arguments, **found}

    def lineage(self) -> dict[str, str]:
        """What this run stands on, for the record."""
        told = {"vae.hash": self.model.vae_hash, "vae.run_id": self.vae_run_id or "none"}
        if self.taken is not None:
            told |= {"init_from.hash": self.taken.fingerprint}
            told |= {"init_from.differences": differ} if (differ := self.taken.differences()) else {}
        return told | ({} if self.tuned.fingerprint is None else {"base.hash": self.tuned.fingerprint})


def read_model(path: str) -> LatentDiffusion:
    """The model of a checkpoint of a LitDiT, or of a folder that it was saved to.

    Raises:
        SoraError: no such file, not a checkpoint, or one of another module.
    """
    return LatentDiffusion.load(path) if is_saved(path) else LitDiT.load(path).model
