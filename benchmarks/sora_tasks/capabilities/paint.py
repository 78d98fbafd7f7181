"""A part of each frame is made anew, or what lies around it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from benchmarks.sora_tasks.judge import Judge, psnr
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure, rolled
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.testbench.adherence import FACTS

PSNR = "PSNR of the made part"


class Paint(Capability):
    """A video with a mask."""

    headline = (PSNR,)
    task: ClassVar[str]
    control_told = "what is given, and in the made part the next clip"

    @abstractmethod
    def white(self, scene: Scene) -> torch.Tensor:
        """What is made anew: bool [height width], in whole tokens."""

    def cases(self, scene: Scene) -> list[Case]:
        world, white = scene.make(self.world), self.white(scene)
        mask = (255 * white.byte())[None, ..., None].expand(1, *white.shape, 3).contiguous()
        found = []
        for f in scene.draw(world, self.clips):
            truth = scene.render(f, world)
            found.append(
                Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), truth, scene.size, "",
                     self.task, {"video": truth, "mask": mask}, also={"white": white})
            )  # fmt: skip
        return found

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        others = rolled(cases, clips, turn)
        return [
            torch.where(case.also["white"][None, ..., None], other, clip)
            for case, clip, other in zip(cases, clips, others, strict=True)
        ]

    def shown(self, case: Case) -> Clip:
        return torch.where(case.also["white"][None, ..., None], torch.full_like(case.truth, 255), case.truth)

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        facts = judge.facts(clips, [case.told() for case in cases])
        return [
            {name: fact[name] for name in self.measures if name in FACTS}
            | {PSNR: psnr(clip, case.truth, where=case.also["white"].expand(clip.shape[:3]))}
            for case, clip, fact in zip(cases, clips, facts, strict=True)
        ]


def _middle(scene: Scene, share: float) -> torch.Tensor:
    """The middle of the frame: so much of either side, in whole tokens."""
    inside = []
    for side, token in ((scene.size.height, scene.patch.height), (scene.size.width, scene.patch.width)):
        tokens = side // token
        edge = min((tokens - 1) // 2, round(tokens * (1 - share) / 2))
        along = torch.zeros(side, dtype=torch.bool)
        along[edge * token : (tokens - edge) * token] = True
        inside.append(along)
    return inside[0][:, None] & inside[1]


@CAPABILITIES.register("inpaint")
class Inpaint(Paint):
    """The middle of every frame is made anew from its surroundings and the prompt."""

    measures: ClassVar = {PSNR: Measure("dB"), "color": Measure(), "shape": Measure(), "motion": Measure()}
    task = "inpaint"

    def white(self, scene: Scene) -> torch.Tensor:
        return _middle(scene, 0.5)


@CAPABILITIES.register("outpaint")
class Outpaint(Paint):
    """The middle of every frame is given, and what lies around it is made."""

    measures: ClassVar = {PSNR: Measure("dB")}
    task = "outpaint"

    def white(self, scene: Scene) -> torch.Tensor:
        return ~_middle(scene, 0.5)
