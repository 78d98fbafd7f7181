"""From text: does the clip, or the image, show what the prompt says, fact by fact?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.testbench.adherence import FACTS
from lightning_sora.testbench.evaluator.vocabulary import FPS, MIN_FRAMES
from lightning_sora.world import DIRECTIONS, measure

PATH = "motion by its path"


class Facts(Capability):
    """The facts that prompts tell."""

    measures: ClassVar = {name: Measure() for name in (*FACTS, "mean", "all")}
    headline = ("mean",)
    turns = 4

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        found = []
        for case, facts in zip(cases, facts_of(judge, cases, clips), strict=True):
            one = {name: value for name, value in asked(case, facts).items() if name in self.measures}
            found.append({**one, "mean": sum(one.values()) / len(one), "all": float(min(one.values()) == 1)})
        return found


def facts_of(judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
    """The share of each fact of each clip."""
    return judge.facts(clips, [case.told() for case in cases])


def asked(case: Case, facts: Judged) -> Judged:
    """The facts that prompts of the case's world tell apart."""
    least, most = case.config.objects
    return {name: value for name, value in facts.items() if name != "count" or least != most}


@CAPABILITIES.register("text")
class Text(Facts):
    """Prompts of held-out combinations of colour and shape: each fact that they tell.

    Of one thing that moves straight or rests, its path is measured as well, with no learned part: which of the eight
    ways its centre moves on the ground, or none, by a line through all frames. The evaluator reads motion from the
    picture as it is, and mistakes what trembles.
    """

    measures: ClassVar = {**Facts.measures, PATH: Measure()}

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        found = super().judge(judge, cases, clips)
        for case, clip, one in zip(cases, clips, found, strict=True):
            motions = [thing.motion for thing in case.facts.objects]
            if len(motions) == 1 and motions[0] in (*DIRECTIONS, "still"):
                one[PATH] = float(measure(clip, case.config, FPS).motion == motions[0])
        return found

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world)
        return [
            Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), scene.render(f, world), scene.size)
            for f in scene.draw(world, self.clips)
        ]


@CAPABILITIES.register("text_to_image")
class TextToImage(Facts):
    """Single images of prompts of held-out combinations of colour and shape: what an image can tell of what they say.

    Things stand still before a camera at rest. An image tells no motion; and where things or the camera come nearer
    later on, a big thing that is far is in the first frame as large as a small one that is near.
    """

    measures: ClassVar = {name: one for name, one in Facts.measures.items() if name not in ("motion", "camera")}

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world, motions=("still",), cameras=("static",))
        return [
            Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world),
                 scene.render(f, world, frames=1), scene.size, task="text_to_image")
            for f in scene.draw(world, self.clips)
        ]  # fmt: skip

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        """As clips in which nothing moves: the evaluator reads no fewer frames."""
        return super().judge(judge, cases, [clip.expand(MIN_FRAMES, -1, -1, -1) for clip in clips])
