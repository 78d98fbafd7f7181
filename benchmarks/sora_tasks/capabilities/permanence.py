"""An object goes behind a wall, and comes out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from benchmarks.sora_tasks.judge import SHOWN, Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure, rolled
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.testbench.evaluator.vocabulary import code
from lightning_sora.testbench.scores import END, world_scores

FURTHER = 0.15  # of the frame, at least, from one side of the wall to the other
HIDDEN = 0.5  # of what is seen of it at the ends, below which an object is hidden


@CAPABILITIES.register("permanence")
class Permanence(Capability):
    """An object passes behind a wall: is it there before and after with one shape (as the evaluator reads it), and was
    it hidden between and out on the other side (by its colour)?"""

    measures: ClassVar = {
        "permanence": Measure(),
        "hidden, and out on the other side": Measure(),
        "color": Measure(),
    }
    headline = ("hidden, and out on the other side",)
    control_told = "its first half, and then the second half of the next prompt's clip"

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world, motions=("behind",), cameras=("static",), objects=(1, 1))
        return [
            Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), scene.render(f, world), scene.size)
            for f in scene.draw(world, self.clips)
        ]

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        half = len(clips[0]) // 2
        return [torch.cat([a[:half], b[half:]]) for a, b in zip(clips, rolled(cases, clips, turn), strict=True)]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        facts, readings = judge.facts(clips, [case.told() for case in cases]), judge.read(clips)
        found = []
        for case, clip, fact, reading in zip(cases, clips, facts, readings, strict=True):
            one = {"color": fact["color"]}
            scores = world_scores(reading, case.told())
            if "permanence" in scores:
                one["permanence"] = scores["permanence"]
            one["hidden, and out on the other side"] = float(passes(judge, case, clip))
            found.append(one)
        return found


def passes(judge: Judge, case: Case, clip: Clip) -> bool:
    """Whether the object is seen at both ends, further along its way at the second, and hardly seen between; by colour
    alone."""
    thing = case.facts.objects[0]
    share, place = (told[:, code("color", thing.color)] for told in judge.places(clip))
    end = max(2, round(END * len(share)))
    first, last = int(share[:end].argmax()), len(share) - end + int(share[-end:].argmax())
    outside = min(float(share[first]), float(share[last]))
    hidden = float(share[end:-end].min()) < HIDDEN * outside
    along = float(place[last, 0] - place[first, 0]) * thing.heading[0] / 2
    return outside >= SHOWN and hidden and along >= FURTHER
