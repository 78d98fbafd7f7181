"""A video changed by a prompt (SDEdit)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.randomness import generator
from lightning_sora.testbench.adherence import FACTS

KEPT = ("shape", "size", "motion", "camera")


@CAPABILITIES.register("edit")
class Edit(Capability):
    """A true clip and its prompt with another colour: is the colour changed, and all else kept, by strength?

    The truth is the same scene rendered in the other colour.

    Args:
        strengths: of the groups.
    """

    measures: ClassVar = {
        "asked colour": Measure(),
        "other facts kept": Measure(),
        "path error": Measure("% of the frame", "min"),
    }
    headline = ("asked colour", "other facts kept")
    control_told = "the clips that were made of other videos and prompts"
    turns = 4

    def __init__(
        self, clips: int = 16, world: str = "simple", strengths: Sequence[float] = (0.4, 0.6, 0.8, 0.9, 1.0)
    ) -> None:
        super().__init__(clips, world)
        self.strengths = strengths

    def cases(self, scene: Scene) -> list[Case]:
        world, found = scene.make(self.world), []
        for f in scene.draw(world, self.clips):
            spare = [c for c in world.config.colors if c not in [thing.color for thing in f.objects]]
            draw = generator(scene.seed, "edit", self.world, f.index)
            color = spare[int(torch.randint(len(spare), (), generator=draw))]
            changed = replace(f, objects=(replace(f.objects[0], color=color), *f.objects[1:]))
            video, truth, prompt = scene.render(f, world), scene.render(changed, world), scene.prompt(changed, world)
            for strength in self.strengths:
                inputs = {"video": video, "strength": float(strength)}
                found.append(
                    Case(f"{self.world}-{f.index}", changed, world.config, prompt, truth, scene.size,
                         f"strength {strength:g}", "edit", inputs)
                )  # fmt: skip
        return sorted(found, key=lambda case: case.inputs["strength"])

    def shown(self, case: Case) -> Clip:
        return case.inputs["video"]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        facts = judge.facts(clips, [case.told() for case in cases])
        found = []
        for case, clip, fact in zip(cases, clips, facts, strict=True):
            assert set(KEPT) < set(FACTS)
            one = {"asked colour": fact["color"], "other facts kept": sum(fact[name] for name in KEPT) / len(KEPT)}
            off = judge.path_error(clip, case.truth, case.facts.objects[0].color, range(len(clip)))
            found.append(one if off is None else {**one, "path error": off})
        return found
