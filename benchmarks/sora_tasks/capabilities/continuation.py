"""Frames are given and the others are made: from an image, forward, backward, between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from benchmarks.sora_tasks.judge import Judge, psnr, steps
from benchmarks.sora_tasks.protocol import (
    CAPABILITIES,
    Capability,
    Case,
    Clip,
    Judged,
    Measure,
    given_frames,
    rolled,
)
from benchmarks.sora_tasks.scene import Scene

STILL = 0.5  # of 255: the least median step by which a seam is measured
MOVING = 25.0  # dB: an image held still is nearer than that to a clip in which hardly anything moves
SEAM = 20.0  # ratios above count as this


class Continuation(Capability):
    """Part of a true clip is given, with its prompt, and its other frames are made.

    Attributes:
        task: of the model.
        phases: motions whose course what is given does not tell.
    """

    measures: ClassVar = {
        "identity": Measure(),
        "path error": Measure("% of the frame", "min"),
        "PSNR of made frames": Measure("dB"),
        "seam": Measure("median steps", "min"),
    }
    headline: ClassVar = ("identity", "path error", "seam")
    control_told = "what is given, and then the frames that were made for the next"
    task: ClassVar[str]
    phases: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def split(self, scene: Scene) -> tuple[int, int]:
        """How many frames are given at the beginning and at the end."""

    def made(self, frames: int, first: int, last: int) -> tuple[int, ...]:
        """Which frames are made."""
        return tuple(range(first, frames - last))

    @abstractmethod
    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        """What the task is given."""

    def answer(self, clip: Clip, first: int, last: int) -> Clip:
        """What a perfect model would make, from a clip of the world."""
        return clip

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world)
        first, last = self.split(scene)
        made = self.made(scene.size.frames, first, last)
        found = []
        for f in scene.draw(world, self.clips):
            truth = self.answer(scene.render(f, world), first, last)
            found.append(
                Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), truth, scene.size, "",
                     self.task, self.inputs(truth, first, last), made)
            )  # fmt: skip
        return found

    def completed(self, case: Case, clip: Clip) -> Clip:
        """What is given comes back as it was."""
        return pasted(case, case.truth, clip)

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        others = rolled(cases, clips, turn)
        return [pasted(*three) for three in zip(cases, clips, others, strict=True)]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        judge.read(clips)  # together
        return [followed(judge, case, clip, self.phases) for case, clip in zip(cases, clips, strict=True)]


def followed(judge: Judge, case: Case, clip: Clip, phases: Sequence[str] = ()) -> Judged:
    """Of the made frames: whether the objects are kept, where they are, and how the seams look."""
    assert case.made is not None, "of every case of this kind"
    one: Judged = {}
    objects, frames = case.facts.objects, case.made
    kept = [judge.kept(clip, case.truth, thing.color, thing.shape, frames) for thing in objects]
    if known := [value for value in kept if value is not None]:
        one["identity"] = sum(known) / len(known)
    if all(thing.motion not in phases for thing in objects):
        off = [judge.path_error(clip, case.truth, thing.color, frames) for thing in objects]
        if known := [value for value in off if value is not None]:
            one["path error"] = sum(known) / len(known)
        one["PSNR of made frames"] = psnr(clip, case.truth, frames)
    if ratios := [seam(clip, case.truth, t) for t in range(1, len(clip)) if (t in frames) != (t - 1 in frames)]:
        one["seam"] = sum(ratios) / len(ratios)
    return one


def seam(clip: Clip, truth: Clip, t: int) -> float:
    """The step to frame ``t`` over the median step of the truth."""
    usual = max(STILL, float(steps(truth).median()))
    return min(SEAM, float(steps(clip[t - 1 : t + 1])[0]) / usual)


def pasted(case: Case, given: Clip, made: Clip) -> Clip:
    """The given frames of one clip and the made ones of another."""
    clip, frames = made.clone(), given_frames(case)
    clip[frames] = given[frames]
    return clip


class FromImages(Continuation):
    """Images are given, and what a prompt says of them is made: its motion and its camera are judged as well.

    Attributes:
        gain: the measure that says by how much a clip is nearer to the truth than one without a model.
    """

    phases = ("bounce", "orbit")
    gain: ClassVar[str]

    @abstractmethod
    def without_model(self, case: Case) -> Clip:
        """What the images give by themselves."""

    @abstractmethod
    def keeps(self, case: Case, clip: Clip) -> Judged:
        """How well what is given is kept."""

    def completed(self, case: Case, clip: Clip) -> Clip:
        return clip

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        return rolled(cases, clips, turn)

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        found = super().judge(judge, cases, clips)
        facts = judge.facts(clips, [case.told() for case in cases])
        for one, case, clip, fact in zip(found, cases, clips, facts, strict=True):
            one.pop("seam", None)
            one |= {**self.keeps(case, clip), "motion": fact["motion"], "camera": fact["camera"]}
            if "PSNR of made frames" in one:
                still = psnr(self.without_model(case), case.truth, case.made)
                if still < MOVING:
                    one[self.gain] = one["PSNR of made frames"] - still
        return found


@CAPABILITIES.register("image")
class Image(FromImages):
    """An image is brought to life: is it kept, is the prompt's motion obeyed, and does what is made come true?"""

    gain = "gain over the image held still"
    measures: ClassVar = {
        "kept": Measure("dB"),
        "motion": Measure(),
        "camera": Measure(),
        **{name: one for name, one in Continuation.measures.items() if name != "seam"},
        gain: Measure("dB"),
    }
    headline = ("kept", "motion", "path error")
    control_told = "the clip that was made of the next image and prompt"
    task = "image_to_video"

    def split(self, scene: Scene) -> tuple[int, int]:
        return 1, 0

    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        return {"image": truth[:1]}

    def without_model(self, case: Case) -> Clip:
        return case.truth[:1].expand(case.truth.shape)

    def keeps(self, case: Case, clip: Clip) -> Judged:
        return {"kept": psnr(clip, case.truth, [0])}


@CAPABILITIES.register("first_and_last")
class FirstAndLast(FromImages):
    """A first and a last image are given: are both kept, is the prompt's motion obeyed, and does what is made between
    them come true?

    The task holds the last image for as many frames as a token has. So does the truth: of a clip of the world all is
    as it was until the first of them, and stands then.
    """

    gain = "gain over a blend of both"
    measures: ClassVar = {
        "first kept": Measure("dB"),
        "last kept": Measure("dB"),
        "motion": Measure(),
        "camera": Measure(),
        **{name: one for name, one in Continuation.measures.items() if name != "seam"},
        gain: Measure("dB"),
    }
    headline = ("first kept", "last kept", "motion", "path error")
    control_told = "the clip that was made of the next two images and prompt"
    task = "first_and_last"

    def split(self, scene: Scene) -> tuple[int, int]:
        return 1, scene.patch.frames

    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        return {"first": truth[:1], "last": truth[-1:]}

    def answer(self, clip: Clip, first: int, last: int) -> Clip:
        reached = len(clip) - last
        return torch.cat([clip[:reached], clip[reached : reached + 1].expand(last, -1, -1, -1)])

    def without_model(self, case: Case) -> Clip:
        """The first image fades into the last."""
        assert case.made, "some frame is"
        part = (torch.arange(len(case.truth)) / (case.made[-1] + 1)).clamp(max=1)[:, None, None, None]
        first, last = (case.truth[t].float() for t in (0, -1))
        return ((1 - part) * first + part * last).round().to(torch.uint8)

    def shown(self, case: Case) -> Clip:
        return case.truth[[0, -1]]

    def keeps(self, case: Case, clip: Clip) -> Judged:
        return {"first kept": psnr(clip, case.truth, [0]), "last kept": psnr(clip, case.truth, [len(clip) - 1])}


@CAPABILITIES.register("forward")
class Forward(Continuation):
    """A clip's first half is given, and goes on: does the motion continue, without a seam, with the same object?"""

    task = "extend_forward"

    def split(self, scene: Scene) -> tuple[int, int]:
        return _first(scene, scene.size.frames // 2 + 1), 0

    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        return {"video": truth[:first], "extra": len(truth) - first}


@CAPABILITIES.register("backward")
class Backward(Continuation):
    """A clip's second half is given: what came before it?"""

    task = "extend_backward"

    def split(self, scene: Scene) -> tuple[int, int]:
        return 0, _last(scene, scene.size.frames // 2)

    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        return {"video": truth[-last:], "extra": len(truth) - last}


@CAPABILITIES.register("connect")
class Between(Continuation):
    """A clip's beginning and end are given: what leads from one to the other?"""

    task = "connect"

    def split(self, scene: Scene) -> tuple[int, int]:
        return _first(scene, round(0.3 * scene.size.frames)), _last(scene, round(0.3 * scene.size.frames))

    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        return {"video": truth[:first], "second": truth[-last:]}


@CAPABILITIES.register("interpolate")
class Interpolate(Continuation):
    """Every second frame of a clip is given: what lies between them?"""

    measures: ClassVar = {name: one for name, one in Continuation.measures.items() if name != "seam"}
    headline = ("identity", "path error")
    control_told = "the clip that was made for the next"
    task = "interpolate"

    def split(self, scene: Scene) -> tuple[int, int]:
        return 1, 1

    def made(self, frames: int, first: int, last: int) -> tuple[int, ...]:
        return tuple(range(1, frames, 2))

    def inputs(self, truth: Clip, first: int, last: int) -> Mapping[str, Any]:
        return {"video": truth[::2], "times": 2}

    def completed(self, case: Case, clip: Clip) -> Clip:
        return clip

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        return rolled(cases, clips, turn)

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        return [
            {name: value for name, value in one.items() if name in self.measures}
            for one in super().judge(judge, cases, clips)
        ]


def _first(scene: Scene, frames: int) -> int:
    """So many frames at the beginning as whole tokens hold: the first token holds one."""
    return 1 + max(0, frames - 1) // scene.patch.frames * scene.patch.frames


def _last(scene: Scene, frames: int) -> int:
    return max(1, frames // scene.patch.frames) * scene.patch.frames


def held(case: Case, clip: Clip) -> Clip:
    """What is given at the beginning, and then its last frame held."""
    last = len(given_frames(case)) - 1
    return torch.cat([case.truth[: last + 1], case.truth[last : last + 1].expand(len(clip) - last - 1, -1, -1, -1)])
