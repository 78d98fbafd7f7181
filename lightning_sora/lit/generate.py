"""What a trained latent diffusion model does with prompts: samples, predictions, and the gallery of a validation."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.lit.expander import create_expander
from lightning_sora.lit.given import first_frame_of
from lightning_sora.lit.module import LitModule
from lightning_sora.models.denoiser import SampleOptions
from lightning_sora.models.expander import Expander
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import Clip
from lightning_sora.spacetime import PatchSize, SpacetimeBatch


class Asked(ABC):
    """A batch of a prediction that is no clips: who asks says what is made of the model."""

    @abstractmethod
    def answer(self, model: LatentDiffusion, run_id: str | None) -> list[Clip]:
        """Makes what is asked for, and returns it.

        Args:
            model: with its moving average.
            run_id: of its training.
        """


class GenerativeModule(LitModule):
    """A module around a :class:`LatentDiffusion`; a subclass trains it.

    Args:
        prompts: of the gallery that each validation adds to; None for none.
        expander: checkpoint or spec of what turns captions into rich prompts before a test or a prediction samples from
            them; None to take them as they are.
    """

    model: LatentDiffusion

    def __init__(self, *, prompts: Sequence[str] | None, expander: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.prompts = list(prompts or ())
        self.expander: Expander | None = (
            None if expander is None else self.awaited.make(lambda: create_expander(expander), "test", "predict")
        )
        self._shown: tuple[Any, list[Tensor]] = None, []  # videos of the gallery, and when they were made

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":  # now, rather than at the first clip whose caption an encoder lacks
            data = self.data_spec()
            own = data.captions() if data is not None and data.captions is not None else ()
            self.model.text.check_captions(itertools.chain(("",), self.prompts, own))

    @property
    def patch(self) -> PatchSize:
        return self.model.patch

    def check_patch(self, patch: PatchSize) -> None:
        vae = self.model.vae
        if patch.frames != self.patch.frames and vae.images:
            raise SoraError(
                f"data.patch={list(patch)} joins {patch.frames} frames, but model.vae is a VAE of images, which takes "
                f"each frame by itself; set data.patch to {list(self.patch)}, or take a VAE of videos"
            )
        super().check_patch(patch)

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

    def sample(
        self,
        prompts: str | Sequence[str],
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Clip | list[Clip]:
        """Generates a video of a prompt, or one of each, with the moving average.

        Args:
            prompts, frames, height, width, options: see :meth:`LatentDiffusion.sample`.

        Returns:
            uint8 [frames height width 3], values 0 to 255; a list of them for a list of prompts.
        """
        with self.averaged():
            return self.model.sample(prompts, frames, height, width, **options)

    def save(self, folder: str | Path, *, stored: str | None = None) -> Path:
        """Writes the model, with the moving average, as safetensors and JSON that need no Lightning.

        Args:
            stored: precision of the weights in the files: "float16" makes them half as large. None for their own.
        """
        self.model.run_id = self.run_id
        with self.averaged():
            return self.model.save(folder, stored=stored)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not isinstance(batch, Asked):
            super().on_predict_batch_start(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: SpacetimeBatch | Asked, batch_idx: int) -> list[Clip]:
        """A clip for each caption, of the size of its clip; or what is asked for."""
        if isinstance(batch, Asked):
            with self.averaged():
                return batch.answer(self.model, self.run_id)
        made = self.sample_captions(batch, range(len(batch)), "predict")
        return [made[i] for i in range(len(batch))]

    def sample_captions(
        self, batch: SpacetimeBatch, places: Iterable[int], purpose: str, seed: int = 0
    ) -> dict[int, Clip]:
        """By their places, clips for some captions of a batch, expanded where the recipe says so.

        Args:
            purpose: the noise of each clip is keyed by it and the clip's id.
        """
        groups: dict[tuple[int, int, int], list[int]] = {}
        for place in places:
            groups.setdefault(batch.layout.grids[place].size(self.patch), []).append(place)
        made: dict[int, Clip] = {}
        for size, members in sorted(groups.items()):
            prompts = self._expanded([batch.captions[i] for i in members])
            keys = [(purpose, batch.ids[i]) for i in members]
            # What makes clips of their first frame is given that of its clip.
            shown = self.model.dit.condition_channels > 0
            given = [first_frame_of(batch.videos()[i], self.model) for i in members] if shown else None
            made |= zip(members, self.sample(prompts, *size, seed=seed, keys=keys, given=given), strict=True)
        return made

    def _expanded(self, prompts: Sequence[str]) -> list[str]:
        """What is sampled from: the prompts, expanded where the recipe says so."""
        return list(prompts) if self.expander is None else self.expander.expand(prompts, seed=self.seed)

    def gallery(self) -> tuple[dict[str, list[Tensor]], list[str]]:
        if not self.prompts:
            return {}, []
        # Validation scores what the gallery shows: the same clips, made once.
        key = (self.trainer.global_step, self.trainer.state.fn) if self._trainer is not None else None
        if key is None or self._shown[0] != key:
            self._shown = key, self.sample(self.prompts, seed=self.seed)
        return {"generated": self._shown[1]}, self.prompts
