"""What a batch gives a denoiser to see: known tokens at their own noise level, or frames in channels of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.conditioning import condition_of
from lightning_sora.models.denoisers.base import Condition
from lightning_sora.models.given import Given
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import Clip
from lightning_sora.randomness import generator
from lightning_sora.spacetime import SpacetimeBatch, TokenGrid, TokenLayout
from lightning_sora.tasks import Drawn, Task, TaskMixture


def check_tasks(model: LatentDiffusion, tasks: TaskMixture, prompts: Sequence[str]) -> None:
    """Refuses tasks that a model cannot train.

    Raises:
        SoraError: the VAE or the denoiser does not allow one.
    """
    dit = model.dit
    if dit.image_frames > 1:
        for spec, task in tasks.tasks.items():
            if not _gives_the_ends(task):
                raise SoraError(
                    f"this denoiser makes what is between a first and a last frame, and {spec} does not give both; set "
                    "diffusion.tasks={first_and_last: 1.0}"
                )
    if not dit.condition_channels:
        tasks.check_vae(model.vae.facts)
        if not dit.facts.token_times and not tasks.alone:
            raise SoraError(
                f"the tasks {', '.join(tasks.tasks)} give frames, and this denoiser takes one timestep for a whole "
                "clip; train it on text_to_video alone, or take one of its family that is shown frames"
            )
        return
    if "text_to_video" in tasks.tasks:
        raise SoraError(
            "this denoiser makes clips from their first frame, and text_to_video gives none; set "
            "diffusion.tasks={image_to_video: 1.0}"
        )
    if prompts:
        raise SoraError("this denoiser makes clips from their first frame, and prompts give none; leave them out")


def what_is_given(
    model: LatentDiffusion, batch: SpacetimeBatch, drawn: Drawn
) -> tuple[Float[Tensor, "batch tokens"] | None, Condition | None]:
    """The strengths of the tokens of a batch that is trained on, or what the denoiser is shown instead."""
    if model.dit.condition_channels:
        return None, condition_of(model, drawn.layout, _videos(batch), drawn.strength)
    return (None if drawn.strength is None else drawn.strength.to(model.device, model.dtype)), None


def first_frame_shown(model: LatentDiffusion, batch: SpacetimeBatch) -> Condition | None:
    """What a denoiser that is shown frames sees of a batch in evaluation: the first frame of each clip, and the last
    where it attends to that."""
    if not model.dit.condition_channels:
        return None
    return condition_of(model, batch.layout, _videos(batch), _between(batch.layout, model.dit.image_frames > 1))


def first_frame_of(video: Clip, model: LatentDiffusion) -> Given:
    """The first frame of a clip, for the rest to be made; and the last, for a denoiser that attends to that."""
    strength = torch.ones(video.shape[:3])
    strength[0] = 0.0
    if model.dit.image_frames > 1:
        strength[-model.patch.frames :] = 0.0
    return Given(video.cpu(), strength)


def _gives_the_ends(task: Task) -> bool:
    drawn = [task.strengths(task.grid(TokenGrid(5, 1, 1)), generator(0, "given", index)) for index in range(8)]
    return all(float(one[0].max()) == float(one[-1].max()) == 0 for one in drawn)


def _between(layout: TokenLayout, last: bool) -> Float[Tensor, "batch tokens"]:
    """Strengths that make all but the first frame, or all but the first and the last."""
    frames = [layout.clip(index).coordinates()[:, 1] for index in range(layout.clips)]
    return layout.join([((of > 0) & (of < of.max()) if last else of > 0).float() for of in frames])


def _videos(batch: SpacetimeBatch) -> list[Clip]:
    if batch.space != "pixel":
        raise SoraError(
            "this denoiser is shown frames that the VAE encodes by themselves, which cached latents do not have; train "
            "it from clips: data.source of videos, and not of latents"
        )
    return batch.videos()
