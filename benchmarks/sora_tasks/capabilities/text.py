"""From text: does the clip show what the prompt says, fact by fact?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.testbench.adherence import FACTS


class Facts(Capability):
    """The facts that prompts tell."""

    measures: ClassVar = {name: Measure() for name in (*FACTS, "mean", "all")}
    headline = ("mean",)
    turns = 4

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        return [
            {**one, "mean": sum(one.values()) / len(one), "all": float(min(one.values()) == 1)}
            for one in (asked(case, fact) for case, fact in zip(cases, facts_of(judge, cases, clips), strict=True))
        ]


def facts_of(judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
    """The share of each fact of each clip."""
    return judge.facts(clips, [case.told() for case in cases])


def asked(case: Case, facts: Judged) -> Judged:
    """The facts that prompts of the case's world tell apart."""
    least, most = case.config.objects
    return {name: value for name, value in facts.items() if name != "count" or least != most}


@CAPABILITIES.register("text")
class Text(Facts):
    """Prompts of held-out combinations of colour and shape: each fact that they tell."""

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world)
        return [
            Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), scene.render(f, world), scene.size)
            for f in scene.draw(world, self.clips)
        ]
