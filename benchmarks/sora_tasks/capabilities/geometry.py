"""A scene that stands still while the camera goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.metrics.temporal import warping_error
from lightning_sora.randomness import generator
from lightning_sora.testbench.evaluator.vocabulary import FPS
from lightning_sora.testbench.scores import TRAVELLING, world_scores
from lightning_sora.world.flow import exact_flow

TEXT, IMAGE = "from text", "from the first frame"
MOST = 100.0  # percent: an error above counts as this


@CAPABILITIES.register("geometry")
class Geometry(Capability):
    """Cameras that travel (dolly, orbit): do the pictures fit one place in space, seen by the asked camera?

    From text, places and depths are the evaluator's. From the first frame the true flow of every pixel is known.
    """

    measures: ClassVar = {
        "camera": Measure(),
        "parallax error": Measure("% of the frame", "min"),
        "depth error": Measure("% of the depth", "min"),
        "change explained by the true flow": Measure(),
    }
    headline = ("parallax error", "change explained by the true flow")
    control_told = "the same frames in another order"

    def cases(self, scene: Scene) -> list[Case]:
        cameras = tuple(c for c in scene.make(self.world).config.cameras if c.startswith(TRAVELLING))
        world, found = scene.make(self.world, cameras=cameras), []
        for group in (TEXT, IMAGE):
            for f in scene.draw(world, self.clips):
                truth = scene.render(f, world)
                how = {} if group == TEXT else {"task": "image_to_video", "inputs": {"image": truth[:1]}}
                found.append(
                    Case(f"{self.world}-{f.index}", f, world.config, scene.prompt(f, world), truth, scene.size, group,
                         **how, made=None if group == TEXT else tuple(range(1, len(truth))))
                )  # fmt: skip
        return found

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        return [shuffled(case, clip, turn) for case, clip in zip(cases, clips, strict=True)]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        facts, readings = judge.facts(clips, [case.told() for case in cases]), judge.read(clips)
        found = []
        for case, clip, fact, reading in zip(cases, clips, facts, readings, strict=True):
            scores = world_scores(reading, case.told())
            one = {"camera": fact["camera"]}
            one |= {
                f"{n} error": min(MOST, scores[f"{n}_error"]) for n in ("parallax", "depth") if f"{n}_error" in scores
            }
            if case.group == IMAGE:
                one["change explained by the true flow"] = explained(case, clip)
            found.append(one)
        return found


def explained(case: Case, clip: Clip) -> float:
    """The share of the squared differences of neighbouring frames that goes away where one is warped to the other along
    the flow of the true clip, over pixels that both show; 0 at least, as of a blur that hardly changes."""
    frames, height, width, _ = clip.shape
    flow = exact_flow(case.facts, frames, height, width, FPS)
    along = float(warping_error(clip, flow.forward, visible=flow.valid))
    at_rest = float(warping_error(clip, torch.zeros_like(flow.forward), visible=flow.valid))
    return max(0.0, 1 - along / max(at_rest, 1e-6))


def shuffled(case: Case, clip: Clip, turn: int) -> Clip:
    """The frames in an order of the case's key."""
    return clip[torch.randperm(len(clip), generator=generator(turn, "frames", case.key))]
