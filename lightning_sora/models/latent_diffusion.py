"""LatentDiffusion: a text-to-video model in the latents of a VAE, from training terms to samples, in plain torch."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.diffusion.guidance import guidance_of
from lightning_sora.diffusion.paths import OBJECTIVES, Objective, interpolate
from lightning_sora.diffusion.samplers import SAMPLERS, Denoise, Progress, time_schedule
from lightning_sora.errors import SoraError
from lightning_sora.models.conditioning import check_conditioning, condition_of_given
from lightning_sora.models.configs import DiTConfig, SamplingConfig
from lightning_sora.models.denoiser import DenoisingTerms, OnStep, SampleOptions, guided
from lightning_sora.models.denoisers import DENOISERS, Condition, Denoiser, DiT
from lightning_sora.models.digests import add_tensor
from lightning_sora.models.flops import CountedFlops, training_flops
from lightning_sora.models.given import Given, GivenRows, given_rows
from lightning_sora.models.hub import PretrainedModel
from lightning_sora.models.image import ImageEncoder
from lightning_sora.models.latent_space import LatentSpace
from lightning_sora.models.lora import merged
from lightning_sora.models.pixels import Clip
from lightning_sora.models.saved import read_model, rounded, save_model
from lightning_sora.models.seen_sizes import SeenSizes, check_rope
from lightning_sora.models.text import TEXT_ENCODERS, TextEncoder
from lightning_sora.models.text_fit import check_fit
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.nn.rope import Stretch
from lightning_sora.randomness import initialize, normal_per_clip
from lightning_sora.spacetime import TokenGrid, TokenLayout

log = logging.getLogger(__name__)

KIND = "latent_diffusion"


class LatentDiffusion(LatentSpace, PretrainedModel, pipeline_tag="text-to-video", tags=[KIND]):
    """A diffusion transformer on the latents of a frozen VAE (Rombach et al. 2022, arXiv:2112.10752), guided by text.

    Args:
        vae: frozen here.
        text: encodes captions.
        dit: the denoiser, of the channels of the VAE and of the text encoder's width.
        objective: what it predicts.
        sampling: how samples are drawn where nothing else is asked.
        image: embeds the first frame, for a denoiser that attends to it.

    Attributes:
        latent_dim: numbers per row.
        tasks: specs of what it was trained on.
        seen_sizes: the sizes of clips that it was trained on; the longest is the default size of samples.
        read_weak: reads the weaker model of autoguidance by its path.
        config: the specs that :meth:`create` was given, which :meth:`save` writes.

    Raises:
        SoraError: parts that do not fit each other, or impossible sampling.

    Example:
        >>> import lightning_sora as ls
        >>> dit = {"patch_size": (1, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
        >>> model = ls.LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit, sampling={"steps": 2})
        >>> model.sample("a red cube moves left", 3, 16, 16).shape
        torch.Size([3, 16, 16, 3])
        >>> ls.load(model.save("my_model"), "cpu").sampling.steps
        2
    """

    def __init__(
        self,
        vae: VideoVAE,
        text: TextEncoder,
        dit: Denoiser,
        objective: Objective,
        sampling: SamplingConfig | None = None,
        image: ImageEncoder | None = None,
    ) -> None:
        super().__init__(vae, dit.patch_size)
        check_fit(vae, text, dit)
        predicts = dit.facts.objective
        if predicts is not None and not isinstance(objective, OBJECTIVES.builder(predicts)):  # type: ignore[arg-type]
            raise SoraError(
                f"this denoiser's weights predict {predicts!r}, and the objective is {objective!r}; set "
                f"diffusion.objective={predicts}"
            )
        check_conditioning(vae, dit, image)
        self.text, self.dit, self.objective, self.image = text, dit, objective, image
        self.sampling = sampling or SamplingConfig()
        self.sampler, self.guidance = SAMPLERS.create(self.sampling.sampler), guidance_of(self.sampling.guidance)
        time_schedule(self.sampling.steps, self.sampling.shift)  # refuses impossible ones now
        check_rope(self.sampling.rope)
        self.seen_sizes = SeenSizes()
        self.tasks: tuple[str, ...] = (dit.task,)
        self.config: Mapping[str, Any] | None = None  # what `create` was given
        self.read_weak: Callable[[str], LatentDiffusion] = LatentDiffusion.load
        self._weak: dict[str, LatentDiffusion] = {}  # by path; no part of this one's weights
        self._count = CountedFlops()

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.dtype

    @property
    def device(self) -> torch.device:
        return next(self.dit.parameters()).device

    def fingerprint(self) -> str:
        """16 hexadecimal digits over its parts and their weights."""
        digest = hashlib.blake2b(repr([self.vae_hash, self.objective, self.patch_size]).encode(), digest_size=8)
        for name, value in sorted({**self.dit.state_dict(), **self.text.state_dict(prefix="text.")}.items()):
            add_tensor(digest, name, value)
        return digest.hexdigest()

    # Specs of its parts, made or read.
    @classmethod
    def create(
        cls,
        vae: str = "identity",
        text: str = "bytes(dim=128, depth=2)",
        dit: DiTConfig | Mapping[str, Any] | None = None,
        objective: str = "velocity",
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        *,
        denoiser: str | None = None,
        image: str | None = None,
        seed: int = 0,
        trained: VideoVAE | None = None,
    ) -> LatentDiffusion:
        """A model by specs of its parts, with initial values by seed and parameter name.

        Args:
            vae, text, objective: specs; see ``VAES``, ``TEXT_ENCODERS`` and ``OBJECTIVES``.
            dit, sampling: options, or mappings of some.
            denoiser: spec of another denoiser than the one of ``dit``; see ``DENOISERS``.
            image: folder of the image encoder, of a denoiser that attends to the first frame.
            seed: of initial values.
            trained: the VAE of that spec, with weights; None to draw them.

        Raises:
            SoraError: an unknown part or option, or parts that do not fit.
        """
        shape, drawn = DiTConfig.of(dit), SamplingConfig.of(sampling)
        if trained is None:
            trained = VAES.create(vae)
            vae = trained.spec_of_its_own(vae)
            if not trained.pretrained:
                initialize(trained, seed, "vae.")
        encoder = TEXT_ENCODERS.create(text)
        if encoder.trainable:
            initialize(encoder, seed, "text.")
        of = trained.latent_channels, encoder.dim
        network = DiT(*of, **shape.plain()) if denoiser is None else DENOISERS.create(denoiser, *of)
        network.draw(seed)
        seen = None if image is None else ImageEncoder(image)
        made = cls(trained, encoder, network, OBJECTIVES.create(objective), drawn, seen)
        shaped = {"dit": shape.plain()} if denoiser is None else {"denoiser": network.spec_of_its_own(denoiser)}
        specs = {"vae": vae, "text": text, **shaped, "objective": objective, "sampling": drawn.plain()}
        made.config = {**specs, "seed": seed, **({} if image is None else {"image": image})}
        return made

    def save(self, folder: str | Path, *, stored: str | None = None) -> Path:
        """Writes the model as safetensors and JSON, LoRA merged; see :mod:`lightning_sora.models.saved`.

        Args:
            stored: precision of the weights in the files: "float16" makes them half as large. None for their own.

        Raises:
            SoraError: its parts were made by hand, so that nothing could build them again; or nothing can be written.
        """
        if self.config is None:
            raise SoraError(
                "a model of parts made by hand has no specs to save; make it by LatentDiffusion.create(...)"
            )
        told = {
            "vae_hash": self.vae_hash if stored is None else rounded(self.vae, stored).fingerprint(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "clips": self.seen_sizes.state_dict(),
            "tasks": list(self.tasks),
            "run_id": self.run_id,
        }
        parts = {"vae": self.vae, "text": self.text, "dit": merged(self.dit)}
        parts |= {} if self.image is None else {"image": self.image}
        return save_model(folder, KIND, self.config, parts, stored=stored, **told)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> LatentDiffusion:
        """Reads what :meth:`save` wrote, frozen and in evaluation mode.

        Raises:
            SoraError: no such model, a damaged one, or one of a part that is missing here.
        """
        saved = read_model(folder, KIND)
        try:
            model = cls.create(**saved.config)
        except SoraError as problem:
            plugin = "; if a part of it is from a plugin, load that first" if "unknown " in str(problem) else ""
            raise SoraError(f"{folder} cannot be rebuilt: {problem}{plugin}") from problem
        for name in saved.weights:
            saved.fill(name, getattr(model, name))
        model.seen_sizes.load_state_dict(saved.metadata["clips"])
        model.vae_hash = saved.metadata["vae_hash"]
        model.tasks, model.run_id = tuple(saved.metadata.get("tasks", model.tasks)), saved.metadata.get("run_id")
        return model.to(device).eval().requires_grad_(False)

    # Training.
    def terms(
        self,
        layout: TokenLayout,
        x_0: Float[Tensor, "batch tokens latent_dim"],
        t: Float[Tensor, " clips"],
        noise: Float[Tensor, "batch tokens latent_dim"],
        captions: Sequence[str],
        strength: Float[Tensor, "batch tokens"] | None = None,
        condition: Condition | None = None,
    ) -> DenoisingTerms:
        """What the transformer makes of rows that are noised to timestep ``t`` (0 is data, 1 is noise).

        Args:
            strength: the level that each token is noised to at most; see :class:`~lightning_sora.models.given.Given`.
                What is noised to less than ``t`` is seen, and not counted. None where all is to be made.
            condition: what a denoiser of ``condition_channels`` is shown; see :func:`condition_of`.
        """
        t = t.to(x_0)
        spread = layout.per_token(t[:, None])
        levels, counted = t, None
        if strength is not None:
            counted = (strength >= spread[..., 0]).float()
            levels = torch.minimum(strength.to(x_0), spread[..., 0])
            spread = levels[..., None]
        x_t = interpolate(x_0, noise, spread)
        text = self.text(captions)
        prediction = self.dit(self.objective.input(x_t, spread), levels, text, layout, condition=condition)
        error = (prediction - self.objective.target(x_0, noise, spread)).square().mean(dim=-1).float()
        of_clips = layout.clip_mean(error if counted is None else error * counted)
        if counted is not None:
            of_clips = of_clips / layout.clip_mean(counted)
        return DenoisingTerms(t, of_clips, self.objective.x_0(prediction, x_t, spread))

    # Sampling.
    @overload
    def sample(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
        self,
        prompts: str,
        frames: int | None = ...,
        height: int | None = ...,
        width: int | None = ...,
        **options: Unpack[SampleOptions],
    ) -> Clip: ...

    @overload
    def sample(
        self,
        prompts: Sequence[str],
        frames: int | None = ...,
        height: int | None = ...,
        width: int | None = ...,
        **options: Unpack[SampleOptions],
    ) -> list[Clip]: ...

    @torch.no_grad()
    def sample(
        self,
        prompts: str | Sequence[str],
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        negative: str = "",
        given: Given | Sequence[Given | None] | None = None,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | str | None = None,
        rope: str | None = None,
        shift_by_size: bool | None = None,
        keys: Sequence[tuple[Any, ...]] | None = None,
        progress: Progress = iter,
        on_step: OnStep | None = None,
    ) -> Clip | list[Clip]:
        """Generates a video of a prompt, or one of each, in the precision of the weights.

        Args:
            frames, height, width: any size that the patch divides; by default the training size.
            negative: what guidance leads away from.
            given: what of the clips is there already, of all or of each; None for nothing. What is kept comes out as
                the VAE gives it back.
            seed, keys: the noise of prompt ``i`` is a function of ``seed`` and ``keys[i]`` (its index
                if None) alone, not of the other prompts.
            sampler, steps, guidance, rope, shift_by_size: by default those of ``sampling``; guidance is a spec, or the
                scale of plain guidance.
            progress: wraps the list of steps, for a progress bar.
            on_step: called after each guided prediction with its timestep and its ``x_0``, rows that :meth:`decode`
                shows.

        Returns:
            uint8 [frames height width 3], values 0 to 255; a list of them for a list of prompts.

        Raises:
            SoraError: a size that the patch does not divide, impossible steps or guidance, or what is given is of
                another size.
        """
        native = self.seen_sizes.native or (1, self.patch.height, self.patch.width)
        size = [n if asked is None else asked for asked, n in zip((frames, height, width), native, strict=True)]
        grid = TokenGrid.of(size[0], size[1], size[2], self.patch)
        self.vae.grid(*size)  # which may take fewer lengths
        if beyond := self.seen_sizes.beyond(size):
            log.warning("%s is beyond what this model has seen: samples may be worse", beyond)
        wanted = [prompts] if isinstance(prompts, str) else list(prompts)
        if "" in wanted:
            log.warning("a prompt is empty: what is sampled for it is what the model makes of none")
        by_size = self.sampling.shift_by_size if shift_by_size is None else shift_by_size
        shift = self.sampling.shift * (self.seen_sizes.shift(grid, self.patch) if by_size else 1.0)
        times = time_schedule(self.sampling.steps if steps is None else steps, shift)
        layout = TokenLayout.uniform(grid, len(wanted))
        keys = keys if keys is not None else [(i,) for i in range(len(wanted))]
        sizes = [(grid.tokens, self.latent_dim)] * len(wanted)
        noise = torch.stack(normal_per_clip(sizes, seed, "sample", keys)).to(self.device)
        of_each = [given] * len(wanted) if given is None or isinstance(given, Given) else list(given)
        with self.evaluating():
            shown = condition_of_given(self, layout, of_each)
            known = None if shown else given_rows(of_each, grid, self.patch, noise, self.encode_given)
            denoise = self.denoiser(wanted, layout, guidance, on_step, negative, known, rope, shown)
            solve = self.sampler if sampler is None else SAMPLERS.create(sampler)
            rows = solve(denoise, noise, times, progress)
            made = self.decode(rows if known is None else known.put_back(rows), grid)
        return made[0] if isinstance(prompts, str) else made

    def denoiser(
        self,
        prompts: Sequence[str],
        layout: TokenLayout,
        guidance: float | str | None = None,
        on_step: OnStep | None = None,
        negative: str = "",
        given: GivenRows | None = None,
        rope: str | None = None,
        condition: Condition | None = None,
    ) -> Denoise:
        """``(x_t, t) -> x_0`` for these prompts, guided; see :func:`~lightning_sora.models.denoiser.guided`."""
        asked = self.guidance if guidance is None else guidance_of(guidance)
        scaled = self.sampling.rope if rope is None else rope
        return guided(self, self.weak, prompts, layout, asked, on_step, negative, given, scaled, condition)

    def stretch(self, layout: TokenLayout, rope: str) -> Stretch | None:
        """See :meth:`SeenSizes.stretch`, of the clips of a layout."""
        return self.seen_sizes.stretch(layout.grids, self.patch, rope)

    def weak(self, path: str) -> LatentDiffusion:
        """The weaker model of autoguidance, loaded once.

        Raises:
            SoraError: no such model, or one of other latents.
        """
        if path not in self._weak:
            weak = self.read_weak(path).to(self.device)
            if weak.vae_hash != self.vae_hash:
                raise SoraError(
                    f"the weak model {path} works on latents of VAE {weak.vae_hash}, this one on those of "
                    f"{self.vae_hash}; autoguidance needs two models of one VAE"
                )
            self._weak[path] = weak
        return self._weak[path]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, and the precision of the weights."""
        training = self.training
        self.eval()
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.train(training)

    # Costs.
    def flops(
        self,
        layout: TokenLayout,
        *,
        text_tokens: int,
        pixels: bool = True,
        part: TokenLayout | None = None,
        per_token: bool = False,
    ) -> int:
        """FLOPs of one training step on clips of these grids: forward and backward of what learns, forward of the rest.

        See :func:`~lightning_sora.models.flops.training_flops`; ``part`` is what the denoiser sees, None for all.
        """
        return training_flops(self, self._count, layout, text_tokens, pixels, part or layout, per_token)
