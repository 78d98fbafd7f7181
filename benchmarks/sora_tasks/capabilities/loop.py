"""A clip that can be played round and round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from benchmarks.sora_tasks.capabilities.continuation import SEAM, STILL
from benchmarks.sora_tasks.judge import Judge, steps
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure, rolled
from benchmarks.sora_tasks.scene import Scene

CLOSED = 2.0  # steps


@CAPABILITIES.register("loop")
class Loop(Capability):
    """A loop of a prompt: is the step from the last frame to the first as any other, and is the object the same?

    The ceiling is the true clip played to its end and back.
    """

    measures: ClassVar = {
        "seam": Measure("median steps", "min"),
        f"closed: at most {CLOSED:g} steps": Measure(),
        "color": Measure(),
        "shape": Measure(),
    }
    headline = ("seam", "color")
    control_told = "the next prompt's clip without its way back"

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world)
        moving = scene.draw(world, self.clips, lambda f: all(thing.motion != "still" for thing in f.objects))
        return [
            Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), scene.render(f, world),
                 scene.size, task="loop")
            for f in moving
        ]  # fmt: skip

    def completed(self, case: Case, clip: Clip) -> Clip:
        return torch.cat([clip, clip[1:-1].flip(0)])

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        others = rolled(cases, clips, turn)
        return [clip[: case.size.frames] for case, clip in zip(cases, others, strict=True)]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        ends = [clip[-case.size.frames :] for case, clip in zip(cases, clips, strict=True)]
        facts = judge.facts(ends, [case.told() for case in cases])
        found = []
        for clip, fact in zip(clips, facts, strict=True):
            own = steps(clip)
            ratio = float(steps(torch.stack([clip[-1], clip[0]]))[0]) / max(STILL, float(own.median()))
            closed = {f"closed: at most {CLOSED:g} steps": float(ratio <= CLOSED)}
            found.append({"seam": min(SEAM, ratio), **closed, "color": fact["color"], "shape": fact["shape"]})
        return found
