"""Consistency of world clips over time and across views, from what the evaluator reads and what was asked.

Each score is near its best on rendered clips, and is broken by some corruption that leaves others alone: frames out
of order break trajectories, a frozen or reversed clip breaks parallax and the asked camera, objects that vanish or
change break permanence and identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from lightning_sora.metrics.temporal import warping_error
from lightning_sora.testbench.evaluator.reading import ObjectReading, Reading
from lightning_sora.testbench.evaluator.vocabulary import FPS, FRAMES, SIDE, VOCABULARY
from lightning_sora.world import COLLISION, Facts
from lightning_sora.world.flow import exact_flow
from lightning_sora.world.motion import BOUNCE_PERIOD, FALL_SHARE, ORBIT_PERIOD, CameraPath, camera_path, positions
from lightning_sora.world.trajectory import trajectory

WORLD_SCORES = ("identity", "permanence", "trajectory_error", "parallax_error", "depth_error")
"""Higher is better for the first two, in [0, 1]; the errors are in percent of the stage, of the frame, of the depth."""

TRAVELLING = ("dolly", "orbit")  # cameras that go somewhere: turning and zooming shows no depth
PHASES = 16  # of a bounce, tried before the best is refined
VISIBLE = 0.5  # of an object's outline, from which it ought to be seen
END = 0.25  # of the clip, at either end


def world_scores(reading: Reading, facts: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one clip; those that it cannot be judged by are left out.

    Args:
        facts: ``Facts.as_dict()`` with the world's configuration under "config".
    """
    stage, true = facts["config"]["stage"], Facts.from_dict(facts)
    asked = {thing.color: number for number, thing in enumerate(true.objects)}
    seen = {thing.color: thing for thing in reading.objects}
    found: dict[str, list[float]] = {}

    def add(name: str, value: float | None) -> None:
        if value is not None:
            found.setdefault(name, []).append(value)

    for color, number in asked.items():
        add("permanence", permanence(seen.get(color), true, number))
        if color not in seen:
            add("identity", 0.0)
            continue
        thing = seen[color]
        add("identity", identity(thing))
        frames = len(thing.places)
        if int(thing.seen.sum()) < frames // 2:
            continue
        if true.objects[number].motion not in COLLISION:  # no one law: the path breaks where the two meet
            add("trajectory_error", 100 * trajectory_error(thing.places[thing.seen], _times(thing)[thing.seen]))
        if true.camera.motion.startswith(TRAVELLING):
            parallax, depth = view_errors(thing, true, number, stage)
            add("parallax_error", 100 * parallax)
            add("depth_error", 100 * depth)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _times(thing: ObjectReading) -> Float[Tensor, " frames"]:
    return torch.arange(len(thing.places)) / FPS


def identity(thing: ObjectReading) -> float:
    """The share of the frames that show the object in which it has the shape that it has most often."""
    shapes = thing.frame_shapes[thing.seen]
    if not len(shapes):
        return 0.0
    return float(shapes.bincount(minlength=len(VOCABULARY["shape"])).max()) / len(shapes)


def permanence(thing: ObjectReading | None, facts: Facts, number: int) -> float | None:
    """Whether an object that ought to be seen at the clip's beginning and its end is seen at both, with one shape.

    What happens between, behind a wall or outside the frame, is not judged. None where it ought not to be seen.
    """
    frames = FRAMES if thing is None else len(thing.seen)
    visible = trajectory(facts, frames, FPS, SIDE, SIDE).visibility
    end = max(2, round(END * frames))
    ought = visible[:, number] > VISIBLE
    if not (ought[:end].any() and ought[-end:].any()):
        return None
    if thing is None or not (thing.seen[:end].any() and thing.seen[-end:].any()):
        return 0.0
    first, last = thing.frame_shapes[:end][thing.seen[:end]], thing.frame_shapes[-end:][thing.seen[-end:]]
    return float(int(first.mode().values) == int(last.mode().values))


def trajectory_error(places: Float[Tensor, "frames 3"], times: Float[Tensor, " frames"]) -> float:
    """Root mean square distance to the closest path that a law of motion allows, in the units of the places.

    The laws are those of the world: rest, uniform straight motion on the ground, parabolic bounces, a circle at the
    world's pace, a fall from rest; each with free places and sizes, fitted by least squares.
    """
    return min(law(places.double(), times.double()) for law in LAWS.values())


def _residual(design: Tensor, values: Tensor) -> float:
    solution = torch.linalg.lstsq(design, values).solution
    return float((design @ solution - values).square().sum())


def _rms(total: float, frames: int) -> float:
    return math.sqrt(total / frames)


def _rest(places: Tensor, times: Tensor) -> float:
    return _rms(float((places - places.mean(0)).square().sum()), len(times))


def _line(places: Tensor, times: Tensor) -> float:
    design = torch.stack([torch.ones_like(times), times], dim=1)
    flat = _residual(design, places[:, :2])
    return _rms(flat + _residual(design[:, :1], places[:, 2:]), len(times))


def _hop(places: Tensor, times: Tensor) -> float:
    flat = _residual(torch.ones_like(times)[:, None], places[:, :2])

    def off(phase: float) -> float:
        part = (times / BOUNCE_PERIOD + phase) % 1.0
        return _residual(torch.stack([torch.ones_like(times), 4 * part * (1 - part)], 1), places[:, 2:])

    rough = min((step / PHASES for step in range(PHASES)), key=off)
    refined = minimize_scalar(off, bounds=(rough - 1 / PHASES, rough + 1 / PHASES), method="bounded")
    return _rms(flat + min(off(rough), float(refined.fun)), len(times))


def _circle(places: Tensor, times: Tensor) -> float:
    angle = 2 * math.pi * times / ORBIT_PERIOD
    zero, one = torch.zeros_like(times), torch.ones_like(times)
    across = torch.stack([one, zero, angle.cos(), -angle.sin()], 1)
    along = torch.stack([zero, one, angle.sin(), angle.cos()], 1)
    flat = _residual(torch.cat([across, along]), torch.cat([places[:, :1], places[:, 1:2]]))
    return _rms(flat + _residual(one[:, None], places[:, 2:]), len(times))


def _fall(places: Tensor, times: Tensor) -> float:
    flat = _residual(torch.ones_like(times)[:, None], places[:, :2])
    dropped = 1 - (times / (FALL_SHARE * 2.0)).clamp(max=1) ** 2
    design = torch.stack([torch.ones_like(times), dropped], 1)
    height = torch.linalg.lstsq(design, places[:, 2:]).solution
    if height[1] < 0:  # things do not fall upward
        return math.inf
    return _rms(flat + _residual(design, places[:, 2:]), len(times))


LAWS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "rest": _rest,
    "line": _line,
    "bounce": _hop,
    "orbit": _circle,
    "fall": _fall,
}


def view_errors(thing: ObjectReading, facts: Facts, number: int, stage: float) -> tuple[float, float]:
    """How far the object's picture is from any that the asked motion and the asked camera could give.

    One unknown place is triangulated from all frames by least squares (the asked motion moves it, the asked camera
    sees it). Returned are the root mean square distance of the picture from that place's projection, over the frame's
    width, and that of the depth that each frame shows, in logarithms.
    """
    times = _times(thing)
    camera = camera_path(facts.camera, times, facts.duration)
    path = positions(facts.objects[number], times, facts.duration)
    moved = path - path[:1]
    place = triangulate(thing.spots, moved, camera, thing.seen)
    spots, depth = camera.project(place + moved, 2, 2)
    off = (spots - 1 - thing.spots)[thing.seen].square().sum(1).mean().sqrt() / 2
    read = (thing.depths * stage).log()[thing.seen]
    true = depth.clamp(min=0.1).log()[thing.seen]
    return float(off), float((read - true).square().mean().sqrt())


def triangulate(
    spots: Float[Tensor, "frames 2"], moved: Float[Tensor, "frames 3"], camera: CameraPath, seen: Tensor
) -> Float[Tensor, " 3"]:
    """The place whose projections lie nearest to the spots, in the linear sense (Hartley and Zisserman, 12.2).

    Args:
        spots: right and down, in halves of the frame's shorter side.
        moved: displacement of the object since the first frame, world units.
    """
    rows, values = [], []
    for frame in seen.nonzero().flatten().tolist():
        right, up, forward = camera.axes[frame].double()
        offset = (moved[frame] - camera.position[frame]).double()
        tangent = float(camera.tangent[frame])
        for axis, spot in ((right, float(spots[frame, 0])), (up, -float(spots[frame, 1]))):
            row = axis - spot * tangent * forward
            rows.append(row)
            values.append(-row @ offset)
    solution = torch.linalg.lstsq(torch.stack(rows), torch.stack(values)[:, None]).solution
    return solution[:, 0].float()


def world_warping_errors(clips: Sequence[Tensor], facts: Mapping[str, Any], fps: float) -> list[float]:
    """The warping error of each of some clips along the exact flow of the clip that the facts describe.

    Args:
        clips: of one size, uint8 [frames height width 3]: the described clip itself, or what a VAE made of it.
    """
    frames, height, width = clips[0].shape[:3]
    flow = exact_flow(Facts.from_dict(facts), frames, height, width, fps)
    return [float(warping_error(clip, flow.forward, visible=flow.valid)) for clip in clips]
