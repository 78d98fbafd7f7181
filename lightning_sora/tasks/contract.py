"""The contract of a task: masks that leave something to learn, and samples that keep what was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_sora.contracts import Contract, no_global_draws, require
from lightning_sora.models.given import Given
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize
from lightning_sora.tasks.base import TASKS, Clip, Task, check_inputs

GRIDS = (TokenGrid(1, 1, 1), TokenGrid(1, 2, 3), TokenGrid(2, 1, 2), TokenGrid(3, 2, 2), TokenGrid(6, 3, 4))
SIZE = VideoSize(9, 16, 16)
DRAWS = 40
EACH_FRAME = PatchSize(1, 8, 8)


def make(spec: str) -> Task:
    return TASKS.create(spec)


CONTRACT = Contract(make)


@dataclass
class Painter:
    """In the place of a model: keeps what is given and paints the rest by prompt and key alone."""

    patch: PatchSize = EACH_FRAME
    tasks: tuple[str, ...] = ()
    asked: list[Given | None] = field(default_factory=list)

    def sample(
        self,
        prompts: Sequence[str],
        frames: int | None,
        height: int | None,
        width: int | None,
        *,
        keys: Sequence[tuple[Any, ...]] = (),
        given: Given | Sequence[Given | None] | None = None,
        **options: Any,
    ) -> list[Clip]:
        size = VideoSize(frames or SIZE.frames, height or SIZE.height, width or SIZE.width)
        TokenGrid.of(*size, self.patch)
        each = [given] * len(prompts) if given is None or isinstance(given, Given) else list(given)
        self.asked += each
        clips = []
        for prompt, key, one in zip(prompts, keys, each, strict=True):
            draw = coarse_generator(0, "painted", prompt, *key)
            clip = torch.randint(0, 256, (*size, 3), generator=draw, dtype=torch.uint8)
            if one is not None:
                require(
                    tuple(one.strength.shape) == tuple(size),
                    f"what is given is {tuple(one.strength.shape)} large, the clip {tuple(size)}",
                )
                clip = torch.where((one.strength == 0)[..., None], one.video, clip)
            clips.append(clip)
        return clips


def inputs_of(task: Task) -> dict[str, Any]:
    """One of each that a task takes."""
    draw = coarse_generator(1, "contract")
    mask = torch.zeros(1, *SIZE[1:], 3, dtype=torch.uint8)
    mask[:, :8] = 255
    every: dict[str, Any] = {"mask": mask, "strength": 0.0, "extra": 2 * SIZE.frames, "times": 2}
    for name, frames in (("image", 1), ("first", 1), ("last", 1), ("video", SIZE.frames), ("second", SIZE.frames)):
        every[name] = torch.randint(0, 256, (frames, *SIZE[1:], 3), generator=draw, dtype=torch.uint8)
    return {name: every[name] for name in (*task.needs, *task.takes)}


def sampled(
    spec: str, task: Task, painter: Painter, prompts: Sequence[str], first: int = 0, strength: float = 0.0
) -> list[Clip]:
    inputs = inputs_of(task)
    if "strength" in inputs:
        inputs["strength"] = strength
    keys = [(index,) for index in range(first, first + len(prompts))]
    return task.sample(painter, prompts, SIZE, check_inputs(spec, task, SIZE, inputs), keys=keys)


@CONTRACT.law
def something_is_left_to_make(spec: str) -> None:
    """Strengths are levels in [0, 1] of the tokens of what it trains on, and one at least is 1, whatever is drawn."""
    task = make(spec)
    for grid in GRIDS:
        part = task.grid(grid)
        require(
            1 <= part.frames <= grid.frames and (part.height, part.width) == (grid.height, grid.width),
            f"of {tuple(grid)} tokens it trains on {tuple(part)}, which are not so many of the first frames",
        )
        for index in range(DRAWS):
            strengths = task.strengths(part, coarse_generator(index, "contract"))
            require(
                tuple(strengths.shape) == tuple(part),
                f"strengths of shape {tuple(strengths.shape)} for {tuple(part)} tokens",
            )
            require(
                bool(((strengths >= 0) & (strengths <= 1)).all()),
                f"of {tuple(part)} tokens a strength is out of [0, 1]",
            )
            require(bool((strengths == 1).any()), f"of {tuple(part)} tokens all are given in draw {index}")


@CONTRACT.law
def all_chance_is_the_draws(spec: str) -> None:
    """The same draw gives the same strengths, made anew each time, and no other generator is used."""
    task = make(spec)
    grid = task.grid(GRIDS[-1])
    with no_global_draws("drawing strengths"):
        first = task.strengths(grid, coarse_generator(3, "contract")).clone()
    again = task.strengths(grid, coarse_generator(3, "contract"))
    require(torch.equal(first, again), "the same draw gives other strengths")
    again.fill_(0.5)
    require(
        torch.equal(first, task.strengths(grid, coarse_generator(3, "contract"))),
        "strengths that were changed come back changed; make new ones",
    )


@CONTRACT.law
def samples_what_it_trained_on(spec: str) -> None:
    """What a sampler is given is kept where a training clip's was, in some draw of many; a task that is not trained is
    let off."""
    task, painter = make(spec), Painter()
    if not task.trained:
        return
    sampled(spec, task, painter, ["one"])
    for given in painter.asked:
        grid = TokenGrid.of(*(SIZE if given is None else VideoSize(*given.strength.shape)), painter.patch)
        wanted = torch.ones(grid.tokens) if given is None else given.tokens(painter.patch)
        if bool((wanted == 1).all()):
            continue  # text alone, which any model can
        drawn = (task.strengths(grid, coarse_generator(index, "contract")).flatten() for index in range(60 * DRAWS))
        require(
            any(bool(((one == 0) == (wanted == 0)).all()) for one in drawn),
            f"of {tuple(grid)} tokens it samples with {int((wanted == 0).sum())} kept, where it never trained on any",
        )


@CONTRACT.law
def keeps_what_it_is_given(spec: str) -> None:
    """An image is one of the frames, a first one the first, a last one the last; a video and a second one come out
    whole and in order, every ``times``-th frame is the video's, and where a mask is black, or at strength 0, nothing
    changes."""
    task = make(spec)
    inputs = inputs_of(task)
    made = sampled(spec, task, Painter(), ["one"])[0]
    for name, frames in (("image", made), ("first", made[:1]), ("last", made[-1:])):
        if name in task.needs:
            there = any(torch.equal(frame, inputs[name][0]) for frame in frames)
            require(there, f"the {name} is not where it belongs among the frames")
    if "times" in inputs:
        require(
            made.shape == (2 * SIZE.frames - 1, *SIZE[1:], 3) and torch.equal(made[::2], inputs["video"]),
            "its frames are not those of the video with others between",
        )
    elif "mask" in inputs or "strength" in inputs:
        kept = torch.ones(SIZE[1:], dtype=torch.bool)
        if "mask" in inputs and "strength" not in inputs:
            kept = inputs["mask"][0, ..., 0] == 0
        require(torch.equal(made[:, kept], inputs["video"][:, kept]), "it changes what was to stay")
    else:
        start = 0
        for name in ("video", "second"):
            if name in inputs:
                starts = range(start, len(made) - len(inputs[name]) + 1)
                found = [at for at in starts if torch.equal(made[at : at + len(inputs[name])], inputs[name])]
                require(found, f"the {name} is not in what it makes, whole and in order")
                start = found[0] + len(inputs[name])


@CONTRACT.law
def each_clip_is_made_alone(spec: str) -> None:
    """A clip of a prompt is the same beside any others, and every prompt has its own."""
    task = make(spec)
    together = sampled(spec, task, Painter(), ["one", "two", "one"], strength=1.0)
    require(len(together) == 3, f"{len(together)} clips of 3 prompts")
    alone = sampled(spec, task, Painter(), ["two"], first=1, strength=1.0)
    require(torch.equal(together[1], alone[0]), "a clip depends on what it is made beside")
    require(
        not torch.equal(together[0], together[2]), "two clips of one prompt have the same noise; use each one's keys"
    )


@CONTRACT.law
def makes_as_much_as_is_asked(spec: str) -> None:
    """Clips have the asked height and width, and ``extra`` frames more than what they continue."""
    task = make(spec)
    inputs = inputs_of(task)
    for clip in sampled(spec, task, Painter(PatchSize(4, 8, 8)), ["one", "two"]):
        require(
            clip.dtype == torch.uint8 and clip.shape[1:] == (SIZE.height, SIZE.width, 3),
            f"a clip of shape {tuple(clip.shape)} and {clip.dtype}, not uint8 [frames {SIZE.height} {SIZE.width} 3]",
        )
        if "extra" in inputs:
            wanted = len(inputs.get("video", range(SIZE.frames))) + inputs["extra"]
            require(len(clip) == wanted, f"{len(clip)} frames, not {wanted}")
