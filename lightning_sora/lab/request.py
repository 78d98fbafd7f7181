"""What is asked of a model that makes videos."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.given_files import check_files, check_rates, task_for
from lightning_sora.shipped import model_path

#: Longest prompt, in letters: no text encoder reads as much.
LONGEST = 5000


@dataclass(frozen=True)
class Request:
    """What is asked of a model, as a sidecar file holds it; nothing else decides the pixels.

    Attributes:
        model: path of the checkpoint, the run or the saved folder, or the name of a model of the package.
        prompts: one per clip.
        seeds: of the noise of each clip.
        negative: what guidance leads away from.
        task: a spec; None for that which the inputs tell.
        inputs: paths of files, or numbers, by the names that tasks know.
        frames, height, width, fps: None for as trained; sizes in pixels.
        sampler, steps, guidance, rope, shift_by_size: None for those of the recipe.
        expand: what makes prompts rich first.
        plugins: files that register parts.
    """

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative: str = ""
    task: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: str | float | None = None
    rope: str | None = None
    shift_by_size: bool | None = None
    expand: str | None = None
    plugins: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises SoraError for what can be told without the model."""
        from lightning_sora.diffusion.guidance import guidance_of
        from lightning_sora.diffusion.samplers import SAMPLERS, time_schedule
        from lightning_sora.media import check_rate
        from lightning_sora.models.seen_sizes import check_rope
        from lightning_sora.tasks import TASKS

        for name, value in self.inputs.items():
            if not isinstance(value, str | int | float):
                raise SoraError(
                    f"{name} is a {type(value).__name__}, by which nothing could be made again; give the path of a "
                    "file, or take tensors to sample_task"
                )
        if self.fps is not None:
            check_rate(self.fps)
        if not self.prompts:
            raise SoraError("nothing to sample; give --prompt TEXT or --prompts FILE")
        for text in (*self.prompts, self.negative):
            if len(text) > LONGEST:
                raise SoraError(f"a prompt has {len(text)} letters, beginning {text[:40]!r}; give {LONGEST} at most")
        if not os.path.exists(model_path(self.model)):
            raise SoraError(
                f"no checkpoint at {self.model}; give the path of a .ckpt file that `lightning-sora fit` wrote, or of "
                "its run's folder"
            )
        TASKS.create(self.task or task_for(self.inputs))
        if self.steps is not None:
            time_schedule(self.steps)
        if self.guidance is not None:
            guidance_of(self.guidance)
        if self.sampler is not None:
            SAMPLERS.create(self.sampler)
        if self.rope is not None:
            check_rope(self.rope)
        check_files(self.inputs)
        check_rates(self.inputs, self.fps)
