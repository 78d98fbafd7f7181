"""Distances between sets of clips as metrics of an evaluation: FVD, rFVD, FID, KVD and JEDi, on any extractor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import Evaluated, Needs, Score, Side, VideoMetric, register_metric
from lightning_sora.metrics.distances import (
    ClipSetMetric,
    FrechetFrameDistance,
    FrechetVideoDistance,
    JEDi,
    KernelVideoDistance,
    MomentsMetric,
)
from lightning_sora.metrics.extractors.base import Extractor
from lightning_sora.metrics.frechet import Estimate, Moments, divisible, jackknife, merged
from lightning_sora.metrics.kernel import jedi_distance, kernel_estimate
from lightning_sora.metrics.reference import ReferenceStatistics

EXAMPLE = "\"i3d(weights='PATH')\""


class SetDistance(VideoMetric):
    """A distance between a set of clips and the real ones, in the space of an extractor.

    Args:
        extractor: spec of the network, as ``lightning-sora list extractor`` shows them.

    Attributes:
        sums: whether sums over clips suffice for it, so that a reference can be its real side.

    Raises:
        SoraError: no extractor.
    """

    higher_is_better = False
    sums: ClassVar[bool] = False
    per: ClassVar[str] = "clip"
    state: ClipSetMetric
    reference: ReferenceStatistics | None = None

    def __init__(self, extractor: str | None = None) -> None:
        if extractor is None:
            raise SoraError(
                f"{self.name} needs an extractor: write {self.name}(extractor={EXAMPLE}), or give one for all metrics "
                "(--extractor; evaluation.extractor in a recipe); `lightning-sora list extractor` names them"
            )
        self.needs = Needs(real=True, features=extractor, per=self.per)

    def bind(self, network: Extractor) -> None:
        super().bind(network)
        self.state = self._state(network)

    @abstractmethod
    def _state(self, network: Extractor) -> ClipSetMetric:
        """Where clips are added to."""

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        if videos:
            rows = torch.stack([video.features for video in videos])
            self.state.add(rows, [video.id for video in videos], real=side == "real")
        return {}

    def _figures(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.state.compute().items()}

    def compute(self) -> Score | None:
        figures = self._figures()
        own = {name: figures.pop(name, None) for name in ("value", "stderr", "low", "high")}
        for name in SIDES_COUNTED:
            figures.pop(name, None)
        value = own.pop("value")
        assert value is not None
        return Score(value, self.state.check_ids("generated"), **own, figures=figures)

    def card(self) -> dict[str, Any]:
        return {"definition": DEFINITIONS[self.name]}


SIDES_COUNTED = ("real", "generated")
DEFINITIONS = {
    "fvd": "Fréchet distance, covariances with divisor N - 1",
    "rfvd": "Fréchet distance of reconstructions, covariances with divisor N - 1",
    "fid": "Fréchet distance between single frames, covariances with divisor N - 1",
    "kvd": "MMD^2, kernel (x y / d + 1)^3, unbiased, all pairs",
    "jedi": "100 MMD^2, kernel (x y / d)^2, biased",
}


class SumsDistance(SetDistance):
    """One that sums over clips suffice for."""

    sums = True
    state: MomentsMetric


@register_metric("fvd")
class FVDMetric(SumsDistance):
    """The Fréchet distance between features of real and generated clips (Unterthiner et al. 2018, arXiv:1812.01717).

    It is FVD with the extractor "i3d" and the published weights; with any other it is that extractor's own distance.

    Args:
        extractor: spec of the network.
    """

    automatic = "fvd"

    def _state(self, network: Extractor) -> MomentsMetric:
        return FrechetVideoDistance(network, reference=self.reference)

    @property
    def title(self) -> str:
        return "FVD" if self.network is None else self.network.title


@register_metric("rfvd")
class ReconstructionFVD(FVDMetric):
    """The Fréchet distance between features of real clips and of what a VAE gives back of them.

    No generation from its latents is expected closer.

    Args:
        extractor: spec of the network.
    """

    of = "reconstructed"
    automatic = "rfvd"

    @property
    def title(self) -> str:
        return f"{super().title} of reconstructions"


@register_metric("fid")
class FID(SetDistance):
    """The Fréchet distance between features of single frames (Heusel et al. 2017, arXiv:1706.08500).

    It is FID with the extractor "inception" and the published weights. The frames of a clip are not independent:
    intervals are over clips.

    Args:
        extractor: spec of the network.
    """

    per = "frame"
    state: FrechetFrameDistance

    def _state(self, network: Extractor) -> FrechetFrameDistance:
        return FrechetFrameDistance(network)

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        if videos:
            counts = [len(video.features) for video in videos]
            rows = torch.cat([video.features for video in videos])
            self.state.add_frames(rows, [video.id for video in videos], counts, real=side == "real")
        return {}

    @property
    def title(self) -> str:
        if self.network is None:
            return "FID"
        return self.network.frames_title or f"{_space(self.network)} Fréchet distance of frames (not FID)"


@register_metric("kvd")
class KVDMetric(SetDistance):
    """The kernel distance between features of real and generated clips: cubic MMD^2 (Binkowski et al. 2018).

    Unlike FVD it has no bias of few clips.

    Args:
        extractor: spec of the network.
        paired: whether a clip and the real one of its id belong together, such as one generated for that one's caption:
            they are not compared with each other, which would say that alike pairs are alike distributions.
    """

    automatic = "kvd(paired=True)"
    state: KernelVideoDistance

    def __init__(self, extractor: str | None = None, paired: bool = False) -> None:
        super().__init__(extractor)
        self.paired = paired

    def _state(self, network: Extractor) -> KernelVideoDistance:
        return KernelVideoDistance(network, paired=self.paired)

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        if videos:
            # By content no name orders the sums; pairs are told by names.
            order = None if self.paired else [video.content for video in videos]
            rows = torch.stack([video.features for video in videos])
            self.state.add(rows, [video.id for video in videos], real=side == "real", order=order)
        return {}

    def _figures(self) -> dict[str, float]:
        found = super()._figures()
        found["unbiased"] = found["value"]
        real = self.state.features("real")  # in the order of hashes: every second one is a random half
        if len(real) >= 6:
            found |= _real_vs_real(kernel_estimate(real[::2], real[1::2]))
        return found

    @property
    def title(self) -> str:
        return "KVD" if self.network is None or self.network.title == "FVD" else f"{_space(self.network)} MMD (not KVD)"

    def card(self) -> dict[str, Any]:
        apart = " but of a clip and the one made for its caption" if self.paired else ""
        return {"definition": DEFINITIONS["kvd"] + apart}


@register_metric("jedi")
class JEDiMetric(SumsDistance):
    """JEDi's distance (Luo et al. 2024, arXiv:2410.05203): 100 MMD^2 with a squared kernel, in any space.

    Args:
        extractor: spec of the network; V-JEPA's is the paper's, others give their own distance.
    """

    def _state(self, network: Extractor) -> MomentsMetric:
        return JEDi(network, reference=self.reference)

    def _figures(self) -> dict[str, float]:
        found = super()._figures()
        real, generated = self.state.checked_groups()
        estimate = _jedi_estimate(real, generated, paired=self.state.paired())
        found |= {name: getattr(estimate, name) for name in ("value", "unbiased", "stderr", "low", "high")}
        halves = [[group for group in half if group.count] for half in (real[::2], real[1::2])]
        if all(divisible([group.count for group in half]) for half in halves):
            found |= _real_vs_real(_jedi_estimate(halves[0], halves[1]))
        return found

    @property
    def title(self) -> str:
        return "JEDi" if self.network is None else f"{_space(self.network)} MMD as in JEDi"


def _space(network: Extractor) -> str:
    return str(network.describe().get("name", type(network).__name__))


def _jedi_estimate(real: Sequence[Moments], generated: Sequence[Moments], paired: bool = False) -> Estimate:
    whole, made = merged(real), merged(generated)
    value = float(jedi_distance(whole, made))
    if paired:
        both = [(a, b) for a, b in zip(real, generated, strict=True) if a.count]
        without = [float(jedi_distance(whole - a, made - b)) for a, b in both]
        return jackknife(value, [([a.count for a, _ in both], without)])
    real, generated = ([group for group in side if group.count] for side in (real, generated))
    sides = [
        ([g.count for g in real], [float(jedi_distance(whole - g, made)) for g in real]),
        ([g.count for g in generated], [float(jedi_distance(whole, made - g)) for g in generated]),
    ]
    return jackknife(value, sides)


def _real_vs_real(estimate: Estimate) -> dict[str, float]:
    return {
        "real_vs_real": estimate.unbiased,
        "real_vs_real_low": estimate.low,
        "real_vs_real_high": estimate.high,
    }
