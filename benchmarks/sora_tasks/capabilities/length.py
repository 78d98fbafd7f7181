"""Videos longer than the model's clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from benchmarks.sora_tasks.judge import Judge, find
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure, rolled
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.testbench.evaluator.vocabulary import code

GREY = 40  # of 255: less difference between a pixel's red, green and blue shows no colour
LASTING = ("still", "bounce", "spin", "orbit")  # motions that go on


@CAPABILITIES.register("length")
class Length(Capability):
    """Long videos of things that go on (spin, bounce, circle, rest), the camera at rest: do the last frames, as many as
    a clip has, still show the asked object, and the same ground (its correlation from the first frame to the last)?

    Args:
        task: "windows" or "rollout".
        times: how many clips long, of each group.
    """

    measures: ClassVar = {
        "identity": Measure(),
        "motion": Measure(),
        "ground kept": Measure(),
    }
    headline = ("identity", "ground kept")
    turns = 2
    control_told = "the next prompt's video up to its middle, then the one after that"

    def __init__(
        self, clips: int = 16, world: str = "simple", task: str = "windows", times: Sequence[int] = (1, 2, 3)
    ) -> None:
        super().__init__(clips, world)
        self.task, self.times = task, times

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world, motions=LASTING, cameras=("static",), objects=(1, 1))
        frames, found = scene.size.frames, []
        for times in self.times:
            extra = (times - 1) * (frames - 1)
            for f in scene.draw(world, self.clips):
                truth = scene.render(f, world, frames=frames + extra)
                alone = self.task == "windows" and not extra
                found.append(
                    Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), truth, scene.size,
                         f"{times}x", "text_to_video" if alone else self.task, {"extra": extra} if extra else {})
                )  # fmt: skip
        return found

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        once = rolled(cases, clips, turn)
        twice = rolled(cases, once, turn)
        return [torch.cat([a[: len(a) // 2], b[len(a) // 2 :]]) for a, b in zip(once, twice, strict=True)]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        ends = [clip[-case.size.frames :] for case, clip in zip(cases, clips, strict=True)]
        facts, readings = judge.facts(ends, [case.told() for case in cases]), judge.read(ends)
        found = []
        for case, clip, fact, reading in zip(cases, clips, facts, readings, strict=True):
            asked = case.facts.objects[0]
            thing, identity = find(reading, asked.color), 0.0
            if thing is not None:
                right = thing.seen & (thing.frame_shapes == code("shape", asked.shape))
                identity = float(right.double().mean())
            ground = _ground(clip)
            found.append({"identity": identity, "motion": fact["motion"], "ground kept": ground})
        return found


def _ground(clip: Clip) -> float:
    """The correlation of the first and the last frame where neither shows a colour; 0 at least."""
    ends = clip[[0, -1]].double()
    grey = ((ends.amax(-1) - ends.amin(-1)) < GREY).all(0)
    first, last = (end.mean(-1)[grey] for end in ends)
    if len(first) < 2 or float(first.std()) == 0 or float(last.std()) == 0:
        return 0.0
    return max(0.0, float(torch.corrcoef(torch.stack([first, last]))[0, 1]))
