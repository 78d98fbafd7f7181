"""What can be said of clips whose facts are known, as metrics of an evaluation: see :mod:`.adherence`,
:mod:`.scores`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_sora.metrics.base import Evaluated, Needs, PerVideoMetric, Score, Side, VideoMetric, register_metric
from lightning_sora.testbench.adherence import PromptAdherence, agreement, asked_codes, read_codes
from lightning_sora.testbench.scores import world_scores, world_warping_errors

READ = Needs(facts=True, fps=True, features="world", per="reading")


@register_metric("adherence")
class Adherence(VideoMetric):
    """The share of the facts of its caption that a clip shows, as the world's evaluator reads it, in [0, 1].

    By fact as well; "shuffled" is the same for captions of other clips: what chance gives; "all" is the share of clips
    with every fact right.
    """

    needs = READ
    higher_is_better = True
    automatic = "adherence"

    def __init__(self) -> None:
        self.state = PromptAdherence()

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        if not videos:
            return {}
        readings, facts, ids = zip(*((v.features, v.facts, v.id) for v in videos), strict=True)
        self.state.update(readings, facts, ids)
        rows = agreement(read_codes(readings), asked_codes(facts)).nanmean(dim=1)
        return dict(zip(ids, rows.tolist(), strict=True))

    def compute(self) -> Score | None:
        figures = {name: float(value) for name, value in self.state.compute().items()}
        clips = int(figures.pop("clips"))
        if not clips:
            return None
        return Score(figures.pop("mean"), clips, figures=figures)


class _WorldScore(PerVideoMetric):
    """One of the scores that go by where the evaluator sees things; a cut picture does not tell where they were."""

    needs = READ

    def score(self, video: Evaluated) -> float | None:
        facts = video.facts
        assert facts is not None
        if facts.get("cropped"):
            return None
        return video.once("world_scores", lambda: world_scores(video.features, facts)).get(self.name)


@register_metric("identity")
class Identity(_WorldScore):
    """The share of the frames in which an object has the shape that it has most often, in [0, 1]."""

    higher_is_better = True
    automatic = "identity"


@register_metric("permanence")
class Permanence(_WorldScore):
    """The share of objects seen at the clip's beginning and at its end, with one shape, in [0, 1]."""

    higher_is_better = True
    automatic = "permanence"


@register_metric("trajectory_error")
class TrajectoryError(_WorldScore):
    """The distance of objects to the closest path that a law of motion allows, in percent of the world's stage."""

    higher_is_better = False
    automatic = "trajectory_error"


@register_metric("parallax_error")
class ParallaxError(_WorldScore):
    """The distance of objects to where the asked camera would see them, in percent of the frame."""

    higher_is_better = False
    automatic = "parallax_error"


@register_metric("depth_error")
class DepthError(_WorldScore):
    """The distance of objects' depths from those that the asked camera implies, in percent."""

    higher_is_better = False
    automatic = "depth_error"


@register_metric("world_warping_error")
class WorldWarpingError(PerVideoMetric):
    """The squared error of each next frame of a reconstruction, warped back by the exact flow of the world's clip.

    "real" is that of the real clips, which is not zero where light and shadow change.
    """

    needs = Needs(facts=True, fps=True, pairs=True, min_frames=2)
    higher_is_better = False
    of = "reconstructed"
    automatic = "world_warping_error"
    parts = ("real",)

    def score(self, video: Evaluated) -> Mapping[str, float] | None:
        facts: Mapping[str, Any] | None = video.facts
        assert facts is not None
        assert video.fps is not None
        assert video.real is not None
        if facts.get("cropped"):
            return None
        made, real = world_warping_errors([video.clip, video.real], facts, video.fps)
        return {"value": made, "real": real}
