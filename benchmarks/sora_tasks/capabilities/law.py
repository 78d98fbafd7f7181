"""Laws of motion: a fall, a bounce and a collision, as trained and beyond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.sora_tasks.capabilities.continuation import held, pasted
from benchmarks.sora_tasks.capabilities.geometry import shuffled
from benchmarks.sora_tasks.judge import SEEN, SHOWN, Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged, Measure
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.testbench.evaluator.vocabulary import FPS, code
from lightning_sora.testbench.scores import LAWS
from lightning_sora.world.config import COLLIDE
from lightning_sora.world.motion import HIT_SHARE, collision, struck_path

MOTIONS = ("fall", "bounce")
#: How facts are changed, beyond what training shows: of the height, and of the seconds that a fall takes.
BEYOND = {"as trained": (1.0, 1.0), "from higher": (1.4, 1.0), "from lower": (0.6, 1.0), "slower": (1.0, 1.5)}
#: The same of collisions: of the speed, and the size of both.
COLLISIONS: dict[str, tuple[float, str | None]] = {
    "as trained": (1.0, None),
    "faster": (1.5, None),
    "slower": (0.6, None),
    "of medium size": (1.0, "medium"),
}
MOVES = 0.01  # of the frame: what stays within it does not move


@CAPABILITIES.register("law")
class Law(Capability):
    """Things fall and bounce: from text, by the law's own form; and continued from the first frames of a true motion,
    which may be higher, lower or slower than any that training shows.

    Args:
        given: frames of the true motion that are given.
    """

    measures: ClassVar = {
        "motion by the law": Measure(),
        "path error": Measure("% of the frame", "min"),
    }
    headline = ("motion by the law", "path error")
    control_told = "from text, the frames in another order; continued, the last given frame held"

    def __init__(self, clips: int = 12, world: str = "simple", given: int = 5) -> None:
        super().__init__(clips, world)
        self.given = given

    def cases(self, scene: Scene) -> list[Case]:
        found = []
        given = 1 + (self.given - 1) // scene.patch.frames * scene.patch.frames
        made = tuple(range(given, scene.size.frames))
        for motion in MOTIONS:
            world = scene.make(self.world, motions=(motion,), cameras=("static",), objects=(1, 1))
            some = scene.draw(world, self.clips)
            for f in some:
                prompt, truth = scene.prompt(f, world), scene.render(f, world)
                key = f"{motion}-{f.index}"
                found.append(Case(key, f, world.config, prompt, truth, scene.size, f"{motion}, from text"))
            for name, (height, seconds) in BEYOND.items():
                if seconds != 1 and motion != "fall":  # the pace of a bounce is no fact
                    continue
                for f in some:
                    thing = replace(f.objects[0], travel=height * f.objects[0].travel)
                    changed = replace(f, objects=(thing,), duration=seconds * f.duration)
                    truth = scene.render(changed, world)
                    inputs = {"video": truth[:given], "extra": len(made)}
                    found.append(
                        Case(f"{motion}-{f.index}", changed, world.config, scene.prompt(f, world), truth, scene.size,
                             f"{motion}, continued, {name}", "extend_forward", inputs, made)
                    )  # fmt: skip
        return found

    def completed(self, case: Case, clip: Clip) -> Clip:
        return clip if case.made is None else pasted(case, case.truth, clip)

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        return [
            shuffled(case, clip, turn) if case.made is None else held(case, clip)
            for case, clip in zip(cases, clips, strict=True)
        ]

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        found: list[Judged] = []
        for case, clip in zip(cases, clips, strict=True):
            if case.made is None:
                found.append({"motion by the law": lawful(judge, case, clip)})
            else:
                off = judge.path_error(clip, case.truth, case.facts.objects[0].color, case.made)
                found.append({} if off is None else {"path error": off})
        return found


def lawful(judge: Judge, case: Case, clip: Clip) -> float:
    """The share of the variance of an object's places in the picture that the asked law of motion explains.

    0 of an object that hardly moves, or is seen in less than half of the frames.
    """
    thing = case.facts.objects[0]
    share, place = (told[:, code("color", thing.color)].double() for told in judge.places(clip))
    seen = (share >= SHOWN) & (share >= SEEN * share.median())
    if int(seen.sum()) * 2 < len(clip):
        return 0.0
    right, down = (place[seen] / 2).unbind(1)  # in shares of the frame
    places = torch.stack([right, torch.zeros_like(right), -down], dim=1)
    times = (torch.arange(len(clip)) / FPS)[seen].double()
    rest, off = LAWS["rest"](places, times), LAWS[thing.motion](places, times)
    return 0.0 if rest < MOVES else max(0.0, 1 - min(1.0, off / rest) ** 2)


@CAPABILITIES.register("collision")
class Collision(Law):
    """Of two things one strikes the other, which rests: from text, by the velocities that momentum and energy give; and
    continued from the frames before they meet, which may be faster or slower, or the things of a size, than training
    shows.

    Args:
        given: frames of the true motion that are given; cut to those before the two meet.
    """

    def cases(self, scene: Scene) -> list[Case]:
        found = []
        before = int(HIT_SHARE * scene.make(self.world).config.duration * FPS)
        given = 1 + (min(self.given, before) - 1) // scene.patch.frames * scene.patch.frames
        made = tuple(range(given, scene.size.frames))
        for name, (speed, size) in COLLISIONS.items():
            world = scene.make(
                self.world, motions=(COLLIDE,), cameras=("static",), objects=(2, 2), occluder=0.0,
                **({} if size is None else {"sizes": (size,)}),
            )  # fmt: skip
            for f in scene.draw(world, self.clips):
                things = tuple(replace(thing, travel=speed * thing.travel) for thing in f.objects)
                changed = replace(f, objects=things)
                truth, prompt = scene.render(changed, world), scene.prompt(f, world)
                key = f"collision-{size}-{f.index}"
                if name == "as trained":
                    found.append(Case(key, f, world.config, prompt, truth, scene.size, "from text"))
                inputs = {"video": truth[:given], "extra": len(made)}
                found.append(
                    Case(key, changed, world.config, prompt, truth, scene.size, f"continued, {name}",
                         "extend_forward", inputs, made)
                )  # fmt: skip
        return found

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        found: list[Judged] = []
        for case, clip in zip(cases, clips, strict=True):
            if case.made is None:
                found.append({"motion by the law": collided(judge, case, clip)})
                continue
            off = [judge.path_error(clip, case.truth, thing.color, case.made) for thing in case.facts.objects]
            seen = [one for one in off if one is not None]
            found.append({"path error": sum(seen) / len(seen)} if seen else {})
        return found


def collided(judge: Judge, case: Case, clip: Clip) -> float:
    """The share of the variance of two things' places across the picture that a collision by the law explains.

    Where each begins, how fast the one comes, and when they meet are free; that the one comes the asked way, and both
    velocities after it, are not. 0 where nothing moves, or one of them is seen in less than half of the frames.
    """
    one, other = case.facts.objects
    times = torch.arange(len(clip)) / FPS
    rows: list[Tensor] = []
    for thing in (one, other):
        share, place = (told[:, code("color", thing.color)].double() for told in judge.places(clip))
        seen = (share >= SHOWN) & (share >= SEEN * share.median())
        if int(seen.sum()) * 2 < len(clip):
            return 0.0
        rows.append(torch.stack([times[seen].double(), place[seen, 0] / 2]))
    across = torch.cat([row[1] - row[1].mean() for row in rows])
    rest = float(across.square().sum())
    if (rest / len(across)) ** 0.5 < MOVES:
        return 0.0
    best, (_, pushed) = rest, collision(one.radius, other.radius)
    for hit in torch.linspace(0.1, 0.9, 33) * float(times[-1]):
        came = struck_path(rows[0][0], float(hit), "strike", one.rebound)
        went = pushed * struck_path(rows[1][0], float(hit), "struck", 0.0)
        path = torch.cat([came - came.mean(), went - went.mean()])
        speed = float(path @ across / path.square().sum())
        if speed * one.heading[0] > 0:
            best = min(best, float((across - speed * path).square().sum()))
    return 1 - best / rest
