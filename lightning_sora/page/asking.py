"""What a form holds, in words and back: tasks, what each takes, and what was typed."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning_sora.diffusion.samplers import SAMPLERS
from lightning_sora.errors import SoraError
from lightning_sora.exits import ending_of
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.page.bounds import Asked
from lightning_sora.tasks import INPUTS, TASKS
from lightning_sora.tasks.paint import Outpaint

log = logging.getLogger(__name__)
FIRST = "text_to_video"
WHOLE = ("seed", "steps", "frames", "height", "width", "extra", "times")
NUMERIC = (*WHOLE, "guidance", "fps", "strength")


def tasks(model: LatentDiffusion) -> list[tuple[str, str]]:
    """What every registered task is called, and its name: those that the model was trained on come first."""
    named = sorted(TASKS.list(), key=lambda name: (name != FIRST, _untrained(name, model), name))
    return [(_spoken(name) + (" (not trained)" if _untrained(name, model) else ""), name) for name in named]


def samplers(model: LatentDiffusion) -> list[str]:
    """The model's own sampler, and all that can be used here without options."""
    found = [str(model.sampling.sampler)]
    for name in SAMPLERS.list():
        try:
            SAMPLERS.create(name)
        except SoraError:
            continue  # it needs options, or a package that is not there
        found.append(name)
    return list(dict.fromkeys(found))


def described(name: str) -> tuple[str, dict[str, bool]]:
    """What a task is, and of each of :data:`INPUTS` whether it takes that."""
    kind: Any = TASKS.builder(name)
    filled = ("mask",) if issubclass(kind, Outpaint) else ()  # what lies around a video tells it
    told = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    if kind.takes:
        told += f" What may be left out: {'; '.join(INPUTS[one] for one in kind.takes)}."
    return told.strip(), {one: one in (*kind.needs, *kind.takes) and one not in filled for one in INPUTS}


def number_before(name: str, task: str) -> str:
    """What stands in the field of a number of frames: something where the task needs it."""
    kind: Any = TASKS.builder(task)
    return {"extra": "8", "times": "2"}[name] if name in kind.needs else ""


def asked_of(values: Mapping[str, Any]) -> Asked:
    """What a form asks for: of what is given, what the task takes.

    Raises:
        SoraError: a number that is none.
    """
    kind: Any = TASKS.builder(values["task"])
    taken = [name for name in values if name not in INPUTS or name in (*kind.needs, *kind.takes)]
    read = {name: _number(name, values[name]) if name in NUMERIC else values[name] for name in taken}
    fields = {name: value for name, value in read.items() if name not in INPUTS}
    inputs = {name: value for name, value in read.items() if name in INPUTS and value is not None}
    texts = {name: fields.get(name) or "" for name in ("prompt", "negative")}  # a field that was never touched is None
    return Asked(**fields | texts | {"seed": fields["seed"] or 0}, inputs=inputs)


def line_of(problem: Exception) -> str:
    """What the page says of an error, in one line; a bug is told whole on the terminal."""
    ended = ending_of(problem)
    if ended is None:
        log.error("the page met a fault", exc_info=problem)
        return f"A fault of this program ({type(problem).__name__}); the terminal that it runs in says more."
    return " ".join(ended[1].removeprefix("error: ").split())


def label(name: str) -> str:
    """What an input is called."""
    return INPUTS[name][0].upper() + INPUTS[name][1:]


def _spoken(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _untrained(name: str, model: LatentDiffusion) -> bool:
    return TASKS.builder(name).trained and name not in model.tasks  # type: ignore[attr-defined]


def _number(name: str, value: Any) -> float | int | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SoraError(f"{name}={value!r} must be a number")
    if name in WHOLE and number != int(number):
        raise SoraError(f"{name}={number:g} must be a whole number")
    return int(number) if name in WHOLE else number
