"""What a capability is: cases with a known truth, a judge, and a control that must move each score to its floor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry
from lightning_sora.spacetime import VideoSize
from lightning_sora.tasks import TASKS, sample_task
from lightning_sora.tasks.base import Task, check_inputs
from lightning_sora.world import Facts, WorldConfig

Clip = Tensor  # uint8 [frames height width 3]
AT_ONCE = 16  # clips of one sampling


@dataclass(frozen=True)
class Case:
    """One clip that is asked for, and its truth.

    Attributes:
        key: of its noise; cases of several groups that share it start from the same.
        facts: what the prompt tells.
        config: of its world.
        truth: what a perfect model would make.
        size: of the clip, or of a window of one that is longer.
        group: a line of its own in the table.
        task: the spec of a task of ``lightning_sora.tasks``, with its inputs.
        made: which frames of the truth are made, the others are given; None for all.
        also: further facts that a judge needs.
    """

    key: str
    facts: Facts
    config: WorldConfig
    prompt: str
    truth: Clip
    size: VideoSize
    group: str = ""
    task: str = "text_to_video"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    made: tuple[int, ...] | None = None
    also: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """The facts as judges of the world take them."""
        return {**self.facts.as_dict(), "config": asdict(self.config)}


@dataclass(frozen=True)
class Measure:
    """A number that is judged of each clip.

    Attributes:
        unit: "%" for shares in [0, 1], which are told in percent; else what stands behind the number.
        better: "max" or "min".
    """

    unit: str = "%"
    better: str = "max"


Judged = dict[str, float]  # by measure; what a clip cannot be judged by is left out


class Capability(ABC):
    """A capability of a model; its docstring's first line says what is asked.

    Args:
        clips: how many of each group.
        world: one of the recipe's.

    Attributes:
        measures: what ``judge`` gives.
        headline: those of them that the page's first table shows.
        control_told: what the control is, in words.
        contrasts: pairs of groups of which the difference is a line: the first less the second, case by case.
        turns: how many controls are made of each clip.
    """

    measures: ClassVar[Mapping[str, Measure]]
    headline: ClassVar[tuple[str, ...]]
    control_told: ClassVar[str] = "judged by the next prompts"
    turns: ClassVar[int] = 1

    def __init__(self, clips: int = 32, world: str = "simple") -> None:
        if clips < 2:
            raise SoraError(f"clips={clips}: a control takes the clip of another prompt; ask for 2 at least")
        self.clips, self.world = clips, world

    @property
    def contrasts(self) -> Sequence[tuple[str, str]]:
        return ()

    @abstractmethod
    def cases(self, scene: Scene) -> list[Case]:
        """What is asked for: ``clips`` of each group."""

    @abstractmethod
    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        """Each clip, as the answer to its case."""

    def make(self, model: Any, cases: Sequence[Case], seed: int) -> list[Clip]:
        """What the model answers."""
        return sampled(model, cases, seed)

    def completed(self, case: Case, clip: Clip) -> Clip:
        """The VAE's reconstruction of the truth, as the task would return it."""
        return clip

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        """What a model that ignores what it is given would answer."""
        return rolled(cases, clips, turn)

    def shown(self, case: Case) -> Clip | None:
        """What the contact sheet shows as given; None of a case of which nothing is."""
        return None if case.made is None else case.truth[given_frames(case)]


CAPABILITIES: Registry[Capability] = Registry("capability")


def given_frames(case: Case) -> list[int]:
    """The frames of the truth that are given."""
    return [] if case.made is None else [t for t in range(len(case.truth)) if t not in case.made]


def rolled(cases: Sequence[Case], clips: Sequence[Clip], turn: int = 0) -> list[Clip]:
    """To each case the clip of another of its group and size."""
    answer = list(clips)
    for group in dict.fromkeys(case.group for case in cases):
        own = [i for i, case in enumerate(cases) if case.group == group]
        step = 1 + turn * max(1, len(own) // 5)
        step = step if step % len(own) else 1
        for place, i in enumerate(own):
            answer[i] = clips[own[(place + step) % len(own)]]
    return answer


def sampled(model: Any, cases: Sequence[Case], seed: int) -> list[Clip]:
    """Clips of the cases, those of one task and one size together where the task can."""
    made: dict[int, Clip] = {}
    together: dict[Any, list[int]] = {}
    for i, case in enumerate(cases):
        numbers = tuple(sorted((name, v) for name, v in case.inputs.items() if not isinstance(v, Tensor)))
        alone = len(numbers) < len(case.inputs) and type(TASKS.create(case.task)).sample is not Task.sample
        together.setdefault((case.task, case.size, numbers, i if alone else -1), []).append(i)
    for (spec, size, _, _), members in together.items():
        for start in range(0, len(members), AT_ONCE):
            some = members[start : start + AT_ONCE]
            prompts, keys = [cases[i].prompt for i in some], [(cases[i].key,) for i in some]
            inputs = [cases[i].inputs for i in some]
            if len(some) == 1 or not any(isinstance(v, Tensor) for v in inputs[0].values()):
                clips = sample_task(model, spec, prompts, size, inputs[0], keys=keys, seed=seed)
            else:
                task = TASKS.create(spec)
                given = [task.given(size, model.patch, check_inputs(spec, task, size, one)) for one in inputs]
                clips = model.sample(prompts, *size, given=given, keys=keys, seed=seed)
            made |= zip(some, (clip.cpu() for clip in clips), strict=True)
    return [made[i] for i in range(len(cases))]
