"""What every task says of itself: what it is given, what it trains on, and how a sampler is asked for it.

A task is a mask of strengths (see :class:`~lightning_sora.models.given.Given`): in training over the tokens of a clip,
in sampling over pixels that a user brings. One model does all tasks; :mod:`.contract` says what each must keep.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given
from lightning_sora.registry import Registry
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize
from lightning_sora.specs import canonical

log = logging.getLogger(__name__)
Clip = UInt8[Tensor, "frames height width 3"]
Strengths = Float[Tensor, "frames height width"]
#: What a task may be given, and what it is.
INPUTS: dict[str, str] = {
    "image": "a still, of one frame",
    "first": "a still: the first frame",
    "last": "a still: the last frame",
    "video": "a clip",
    "second": "a clip that comes after the first",
    "mask": "a clip or a still that is white where a video is to be made anew",
    "strength": "how much may change, from 0, nothing, to 1, everything",
    "extra": "how many frames are to be made",
    "times": "how many times as many frames",
}
STILLS, CLIPS, NUMBERS = ("image", "first", "last"), ("video", "second", "mask"), ("strength", "extra", "times")
Inputs = Mapping[str, Any]


class SamplingModel(Protocol):
    """What a task asks of a model."""

    tasks: tuple[str, ...]

    @property
    def patch(self) -> PatchSize: ...

    @property
    def sample(self) -> Callable[..., Any]: ...


class Task(ABC):
    """What is given of a clip, and what is made.

    Attributes:
        needs, takes: names of :data:`INPUTS` that it cannot do without, and that it takes besides.
        trained: whether a model has to have been trained on it; what is only a way to sample has not.
        rests_on: the facts of a VAE (:class:`~lightning_sora.models.facts.VAEFacts`) without which it trains on latents
            that know what it is to make.

    Example:
        >>> import torch, lightning_sora as ls
        >>> task = ls.TASKS.create("image_to_video")
        >>> task.strengths(ls.TokenGrid(3, 1, 1), torch.Generator()).flatten()
        tensor([0., 1., 1.])
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    trained: ClassVar[bool] = True
    rests_on: ClassVar[tuple[str, ...]] = ()

    def grid(self, grid: TokenGrid) -> TokenGrid:
        """What of a clip's grid it trains on: so many of its first frames."""
        return grid

    @abstractmethod
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        """In training, the strength of each token: 0 is seen as it is, 1 is made, between is seen noised to that level.

        Some token has strength 1: the loss is of those.

        Args:
            draw: of this clip at this visit; the one source of chance.
        """

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given | None:
        """In sampling, what is given of a clip of this size, from checked inputs; None for nothing.

        Raises:
            SoraError: inputs that do not fit the size.
        """
        return None

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        """A clip of each prompt, from checked inputs (see :func:`sample_task`)."""
        given = self.given(size, model.patch, inputs)
        return model.sample(prompts, *size, given=given, **options)


TASKS: Registry[Task] = Registry("task", name="task", contract="lightning_sora.tasks.contract")
T = TypeVar("T", bound=type[Task])


def register_task(name: str) -> Callable[[T], T]:
    """Files a task under a name that recipes and ``lightning-sora sample --task`` know it by; a decorator.

    Raises:
        SoraError: a name that is taken, or inputs that no task may have.
    """

    def decorate(task: T) -> T:
        if unknown := [one for one in (*task.needs, *task.takes) if one not in INPUTS]:
            raise SoraError(f"the task {name!r} asks for {', '.join(unknown)}; inputs are {', '.join(INPUTS)}")
        return TASKS.register(name)(task)

    return decorate


def check_inputs(name: str, task: Task, size: VideoSize, inputs: Inputs) -> Inputs:
    """Returns what a task is given, checked, with stills as clips of one frame.

    Raises:
        SoraError: an input that is missing, not taken, of another shape or out of range.
    """
    for one in inputs:
        if one not in (*task.needs, *task.takes):
            taken = ", ".join((*task.needs, *task.takes)) or "nothing"
            raise SoraError(f"the task {name} does not take {one}; it takes {taken}")
    if missing := [one for one in task.needs if inputs.get(one) is None]:
        raise SoraError(f"the task {name} needs {', '.join(f'{one} ({INPUTS[one]})' for one in missing)}")
    checked: dict[str, Any] = {}
    for one, value in inputs.items():
        if value is None:
            continue
        if one in (*STILLS, *CLIPS):
            checked[one] = _clip(one, value, size)
        elif one == "strength":
            if not 0 <= value <= 1:
                raise SoraError(f"strength={value:g} must lie in [0, 1]: 0 changes nothing, 1 everything")
            checked[one] = float(value)
        else:
            if value < 1 or value != int(value):
                raise SoraError(f"{one}={value} must be a whole number of at least 1: {INPUTS[one]}")
            checked[one] = int(value)
    return checked


def _clip(name: str, value: Tensor, size: VideoSize) -> Clip:
    clip = value[None] if name in STILLS and value.ndim == 3 else value
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != torch.uint8:
        raise SoraError(f"{name} of shape {tuple(value.shape)} and {value.dtype} is no uint8 [frames height width 3]")
    if name in STILLS and len(clip) != 1:
        raise SoraError(f"{name} has {len(clip)} frames; give a still")
    if tuple(clip.shape[1:3]) != (size.height, size.width):
        raise SoraError(
            f"{name} is {clip.shape[1]}x{clip.shape[2]} and the clip {size.height}x{size.width}; bring it to that size"
        )
    return clip


def sample_task(
    model: SamplingModel, task: str, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
) -> list[Clip]:
    """Makes a clip of each prompt by a task.

    Args:
        task: a spec.
        size: of a clip, or of a window of one that is longer.
        inputs: by the names of :data:`INPUTS`: uint8 [frames height width 3] of that height and width, or numbers.
        options: of :meth:`~lightning_sora.models.latent_diffusion.LatentDiffusion.sample`.

    Returns:
        uint8 [frames height width 3] each.

    Raises:
        SoraError: an unknown task, or inputs that it does not take or that do not fit.
    """
    made = TASKS.create(task)
    checked = check_inputs(task, made, size, inputs)
    if made.trained and canonical(task) not in model.tasks:
        log.warning(
            "this model was not trained on %s (trained on %s): samples may be worse", task, ", ".join(model.tasks)
        )
    options.setdefault("keys", [(index,) for index in range(len(prompts))])
    return made.sample(model, prompts, size, checked, **options)


def blank(size: VideoSize) -> tuple[Clip, Strengths]:
    """A clip of which nothing is given, to be filled in."""
    return torch.zeros((*size, 3), dtype=torch.uint8), torch.ones(size)


def between(low: int, high: int, draw: torch.Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def anew(grid: TokenGrid) -> Strengths:
    """Strengths of a clip that is to be made whole."""
    return torch.ones(tuple(grid))
