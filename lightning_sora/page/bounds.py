"""What the page lets be asked for; more goes by ``lightning-sora sample``, which waits for nobody else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lightning_sora.data.decode import is_image, probe
from lightning_sora.errors import SoraError
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.seen_sizes import check_rope
from lightning_sora.spacetime import TokenGrid, VideoSize
from lightning_sora.tasks import TASKS

#: Of a clip: samplers settle within a hundred steps, and others wait meanwhile.
STEPS = 200
#: Of all passes of a task together: an hour at about a second each.
STEPS_IN_ALL = 4000
#: Each axis, as a multiple of what the model was trained on: positions further out were never seen.
TIMES_TRAINED = 4
#: Of a clip: every token sees every other, so that time grows by the square.
TOKENS = 2**14
#: Of a clip, frames x height x width: about 65 frames of 720p, in float32 0.7 GB before the decoder widens them.
PIXELS = 2**26
#: Of a clip that is given, once it is brought to the size of what is made: 400 MB as bytes.
GIVEN_PIXELS = 2**27
#: Frames to be made besides: ten seconds and more at the rates of films.
EXTRA = 256
#: Times as many frames: at more, there is nothing to go by.
TIMES = 8
#: Above it samples burn out.
GUIDANCE = 30.0
FPS = 120.0
#: Seeds are whole numbers that every JSON reader keeps.
SEED = 2**53
#: Bytes of a file that is given: minutes of film, of which a clip sees seconds.
UPLOAD = 64 * 2**20
#: Requests that wait for their turn; who comes later is told.
WAITING = 8
ELSEWHERE = "`lightning-sora sample` has no such bound"


@dataclass(frozen=True)
class Asked:
    """What a form holds: a task by name, and options as :func:`lightning_sora.sample` takes them."""

    task: str
    prompt: str
    seed: int = 0
    negative: str = ""
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    rope: str | None = None
    inputs: Mapping[str, str | float] = field(default_factory=dict)


class Range(NamedTuple):
    """Values of a slider, from the least in steps to the most."""

    least: int
    most: int
    step: int
    value: int


def trained_size(model: LatentDiffusion) -> VideoSize:
    """The size of clips where none is asked for."""
    return VideoSize(*(model.seen_sizes.native or (1, model.patch.height, model.patch.width)))


def ranges(model: LatentDiffusion) -> dict[str, Range]:
    """Sizes to choose from, by axis: those that the model's patches divide."""
    frames, height, width = trained_size(model)
    patch = model.patch
    most = 1 + TIMES_TRAINED * max(frames - 1, patch.frames) // patch.frames * patch.frames
    sides = {"height": (height, patch.height), "width": (width, patch.width)}
    return {
        "frames": Range(1, most, patch.frames, frames),
        **{name: Range(one, TIMES_TRAINED * side // one * one, one, side) for name, (side, one) in sides.items()},
    }


def size_of(asked: Asked, model: LatentDiffusion) -> VideoSize:
    """The size that is asked for."""
    wanted = (asked.frames, asked.height, asked.width)
    return VideoSize(*(own if one is None else one for one, own in zip(wanted, trained_size(model), strict=True)))


def check(asked: Asked, model: LatentDiffusion) -> None:
    """Raises SoraError for what is out of bounds, before a file is read or the model is asked."""
    if asked.task not in TASKS.list():
        raise SoraError(f"there is no task {asked.task!r}; choose one of {', '.join(TASKS.list())}")
    if not asked.prompt.strip():
        raise SoraError("there is no prompt; say in a few words what is to be seen")
    if abs(asked.seed) >= SEED:
        raise SoraError(f"seed={asked.seed} must be smaller than {SEED}")
    for name, value, least, most in (
        ("steps", asked.steps, 1, STEPS),
        ("guidance", asked.guidance, 0, GUIDANCE),
        ("fps", asked.fps, 0.1, FPS),
        ("extra", asked.inputs.get("extra"), 1, EXTRA),
        ("times", asked.inputs.get("times"), 1, TIMES),
    ):
        if value is None:
            continue
        if not isinstance(value, int | float) or not least <= value <= most:
            raise SoraError(f"{name}={value} must lie between {least:g} and {most:g}; {ELSEWHERE}")
    if asked.rope is not None:
        check_rope(asked.rope)
    size, offered = size_of(asked, model), ranges(model)
    for name, value in zip(offered, size, strict=True):
        if value > offered[name].most:
            raise SoraError(f"{name}={value} must be {offered[name].most} at most; {ELSEWHERE}")
    tokens = TokenGrid.of(*size, model.patch).tokens
    if tokens > TOKENS or math.prod(size) > PIXELS:
        told = f"{size.frames} frames of {size.height} x {size.width}"
        raise SoraError(
            f"{told} are {tokens:,} tokens and {math.prod(size):,} pixels, of {TOKENS:,} and {PIXELS:,} at most; make "
            f"the clip smaller or shorter ({ELSEWHERE})"
        )


def check_given(name: str, file: Path, size: VideoSize, fps: float) -> None:
    """Raises SoraError for a clip that is given and too long."""
    if is_image(file):
        return
    info = probe(file)
    frames = round(info.frames / info.fps * fps)
    if frames * size.height * size.width > GIVEN_PIXELS:
        most = GIVEN_PIXELS // (size.height * size.width)
        raise SoraError(
            f"the {name} has {frames} frames at {fps:g} a second, and {most} of {size.height} x {size.width} may be "
            f"given; cut it ({ELSEWHERE})"
        )


def check_passes(task: str, passes: int, steps: int) -> None:
    """Raises SoraError for a task that asks the model too often."""
    if passes * steps > STEPS_IN_ALL:
        raise SoraError(
            f"the task {task} would take {passes} clips of {steps} steps each, and {STEPS_IN_ALL} steps are the most; "
            f"ask for less ({ELSEWHERE})"
        )
