"""Scores of two sets of clips from anywhere: which there are, what each needs, and the record that goes with them."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_means import ClipMeans
from lightning_sora.metrics.clip_score import VideoCLIPScore
from lightning_sora.metrics.distances import (
    ClipSetMetric,
    FrechetFrameDistance,
    FrechetVideoDistance,
    JEDi,
    KernelVideoDistance,
    MomentsMetric,
)
from lightning_sora.metrics.extractors import EXTRACTORS, Extractor
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.clip import CLIPEncoder
from lightning_sora.metrics.frechet import Estimate, Moments, clip_hash, divisible, jackknife, merged
from lightning_sora.metrics.kernel import jedi_distance, kernel_estimate
from lightning_sora.metrics.protocol import ClipProtocol, ProtocolCard
from lightning_sora.metrics.reference import ReferenceStatistics
from lightning_sora.metrics.temporal import motion_smoothness, temporal_flickering
from lightning_sora.registry import Spec


@dataclass(frozen=True)
class Measure:
    """What a metric is, and what it needs.

    Attributes:
        definition: for protocol cards.
        distance: between two sets of clips: it needs a real side and an extractor. Else a mean over single clips.
        sums: a distance that sums over clips suffice for, so that a reference can be its real side.
        captions: of the generated clips.
        frames: of a clip, at least.
    """

    definition: str
    distance: bool = False
    sums: bool = False
    captions: bool = False
    frames: int = 1


METRICS = {
    "fvd": Measure("Fréchet distance, covariances with divisor N - 1", distance=True, sums=True),
    "fid": Measure("Fréchet distance between single frames, covariances with divisor N - 1", distance=True),
    "kvd": Measure("MMD^2, kernel (x y / d + 1)^3, unbiased, all pairs", distance=True),
    "jedi": Measure("100 MMD^2, kernel (x y / d)^2, biased", distance=True, sums=True),
    "clip_score": Measure("mean over clips of the mean over frames of 100 cos(image, caption)", captions=True),
    "temporal_flickering": Measure("1 - mean |x_t - x_t+1| / 255", frames=2),
    "motion_smoothness": Measure("1 - mean |x_t - (x_t-1 + x_t+1) / 2| / 255, odd t, not VBench's AMT", frames=3),
}


def check_metrics(names: Sequence[str]) -> list[str]:
    """The names, each once.

    Raises:
        SoraError: an unknown one, or none.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        near = difflib.get_close_matches(unknown[0], METRICS, n=2, cutoff=0.5) if unknown else []
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise SoraError(f"unknown metric {', '.join(unknown) or '(none)'}; {hint}known: {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Scores:
    """The result: values by metric, with all that they mean.

    Attributes:
        values: per metric, named figures. A distance has ``value``, ``unbiased`` with ``low``, ``high`` and ``stderr``,
            ``halves`` (real against real) with ``halves_low`` and ``halves_high``, and fvd also ``infinity`` and
            ``bias``; see :class:`FrechetVideoDistance`. A mean over clips has ``value``, ``stderr``, and ``real`` with
            ``real_stderr``, the same of the real clips, if there are any.
        clips: per metric of single clips, the values by id of the generated clip.
        card: extractor, preprocessing, clip protocol, definitions, the real set and the numbers of clips.
        titles: what each metric is called in tables.
    """

    values: Mapping[str, Mapping[str, float]]
    clips: Mapping[str, Mapping[str, float]]
    card: ProtocolCard
    titles: Mapping[str, str]


@dataclass
class Scorer:
    """Adds clips of either side, in any order and in batches, and scores them.

    Making one checks what is asked for; :meth:`load` loads the networks.

    Args:
        metrics: of ``METRICS``.
        protocol: how the clips were cut; goes into the card.
        extractor: spec of the space of the distances.
        clip_model: name or directory of a CLIP.
        reference: the real side, computed before.
        device: that networks run on.

    Raises:
        SoraError: an unknown part, one that is missing, clips that are too short, or another protocol's reference.
    """

    metrics: Sequence[str]
    protocol: ClipProtocol
    extractor: str | None = None
    clip_model: str | None = None
    reference: ReferenceStatistics | None = None
    device: str = "cpu"
    network: Extractor | None = field(default=None, init=False)
    """The extractor of the distances, once loaded."""

    def __post_init__(self) -> None:
        self.metrics = check_metrics(self.metrics)
        self._sets: dict[str, ClipSetMetric] = {}
        self._means: dict[str, Callable[[Clip, str], float]] = {}
        self._clips: dict[bool, dict[str, dict[str, float]]] = {real: {} for real in (True, False)}
        self._contents: list[str] = []
        self._copies: Counter[tuple[bool, str]] = Counter()
        self._clip_score: VideoCLIPScore | None = None
        self._truncated = 0
        for name in self.metrics:
            if self.protocol.frames < METRICS[name].frames:
                raise SoraError(f"{name} needs clips of at least {METRICS[name].frames} frames; raise --frames")
        if self.distances:
            self._check_extractor()
        if "clip_score" in self.metrics and self.clip_model is None:
            raise SoraError("clip_score needs --clip-model: the name or the directory of a CLIP of transformers")
        if self.reference is not None:
            self._check_reference(self.reference)

    @property
    def distances(self) -> list[str]:
        """Those of the metrics that are distances."""
        return [name for name in self.metrics if METRICS[name].distance]

    def _check_extractor(self) -> None:
        if self.extractor is None:
            raise SoraError(
                f"{self.distances[0]} needs --extractor, such as \"i3d(weights='PATH')\" for FVD; "
                "`lightning-sora list extractor` names them"
            )
        EXTRACTORS.builder(Spec.parse(self.extractor).name)

    def _check_reference(self, reference: ReferenceStatistics) -> None:
        if not self.distances:
            raise SoraError("no metric asked for needs --reference; drop it, or add fvd or jedi to --metrics")
        kept_out = [name for name in self.distances if not METRICS[name].sums]
        if kept_out:
            raise SoraError(
                f"{kept_out[0]} needs the features of every real clip, which a reference does not keep; drop "
                f"{kept_out[0]}, or give --real instead of --reference"
            )
        self._check_clips(reference)

    def _check_clips(self, reference: ReferenceStatistics) -> None:
        mine, theirs = self.protocol.as_fields(), dict(reference.fields.get("clip", {}))
        if self.protocol.rate is None and not theirs.get("resampled"):  # to be told by the files
            mine["fps"] = theirs.get("fps")
        ProtocolCard({"clip": theirs}).check_same(ProtocolCard({"clip": mine}), "the reference and these clips")

    def recorded_at(self, fps: float | None) -> None:
        """Tells the rate of clips that are not resampled; None where it is not known.

        Raises:
            SoraError: the reference's clips have another.
        """
        self.protocol = replace(self.protocol, recorded=fps)
        if self.reference is not None:
            self._check_clips(self.reference)

    def load(self) -> None:
        """Loads the networks.

        Raises:
            SoraError: one cannot be loaded, is not the reference's, or does not take clips of this length.
        """
        if self.distances and self.extractor is not None:
            network = EXTRACTORS.create(self.extractor)
            if self.distances != ["fid"]:
                network.check_length(self.protocol.frames, self.protocol.rate)
            if "fid" in self.distances and not network.takes(1):
                raise SoraError(f"fid looks at single frames, which {network.title} does not take; give inception")
            network.to(self.device)
            self.network = network
            makers: dict[str, Callable[[], ClipSetMetric]] = {
                "fvd": lambda: FrechetVideoDistance(network, reference=self.reference),
                "fid": lambda: FrechetFrameDistance(network),
                "jedi": lambda: JEDi(network, reference=self.reference),
                "kvd": lambda: KernelVideoDistance(network),
            }
            self._sets = {name: makers[name]() for name in self.distances}
        if self.clip_model is not None and "clip_score" in self.metrics:
            encoder = CLIPEncoder(self.clip_model)
            encoder.to(self.device)
            self._clip_score = VideoCLIPScore(encoder)
        means: dict[str, Callable[[Clip, str], float]] = {
            "clip_score": self._clip_score_of,
            "temporal_flickering": lambda clip, _: float(temporal_flickering(clip)),
            "motion_smoothness": lambda clip, _: float(motion_smoothness(clip)),
        }
        self._means = {name: means[name] for name in self.metrics if name in means}

    def _clip_score_of(self, clip: Clip, caption: str) -> float:
        assert self._clip_score is not None
        self._clip_score.reset()
        self._clip_score.update([clip], [caption])
        self._truncated += int(self._clip_score.truncated)
        return float(self._clip_score.total)

    def add(
        self,
        clips: Sequence[Clip],
        ids: Sequence[str],
        *,
        real: bool,
        contents: Sequence[str] = (),
        captions: Sequence[str] = (),
    ) -> None:
        """Adds clips to a side.

        Args:
            clips: display values, as the extractor takes them.
            ids: one per clip; the same ids on both sides are taken for pairs, in the intervals of fvd and jedi.
            contents: a digest of each clip's content: they tell real sets apart.
            captions: of generated clips, for the CLIP score.

        Raises:
            SoraError: a clip that a network cannot take.
        """
        if self.network is not None:
            rate = self.protocol.rate
            fid = self._sets.get("fid")
            if isinstance(fid, FrechetFrameDistance):
                fid.update(clips, ids, real=real)
            whole = {name: metric for name, metric in self._sets.items() if name != "fid"}
            features = self.network(clips, None if rate is None else [rate] * len(clips)) if whole else None
            for name, metric in whole.items():
                assert features is not None
                # By content, where it is told, no name deals clips to halves, nor orders sums. The others tell pairs.
                metric.add(features, self._by_content(ids, contents, real) if name == "kvd" else ids, real=real)
        if real:
            self._contents += contents
        for name, measure in self._means.items():
            if not (real and METRICS[name].captions):
                texts = captions or [""] * len(clips)
                found = {i: measure(c, text) for i, c, text in zip(ids, clips, texts, strict=True)}
                self._clips[real].setdefault(name, {}).update(found)

    def _by_content(self, ids: Sequence[str], contents: Sequence[str], real: bool) -> Sequence[str]:
        found = []
        for content in contents:
            self._copies[real, content] += 1
            found.append(f"{content} {self._copies[real, content]}")
        return found or ids

    def statistics(self) -> ReferenceStatistics:
        """The real side, to be kept.

        Raises:
            SoraError: there is none.
        """
        sums = [metric for metric in self._sets.values() if isinstance(metric, MomentsMetric)]
        if not sums or not self._contents or self.network is None:
            raise SoraError(
                "reference statistics are made of real clips with the metric fvd or jedi; give --real and one"
            )
        fields = {"extractor": self.network.card(), "clip": self.protocol.as_fields()}
        return ReferenceStatistics(sums[0].groups("real"), content_ids(self._contents), fields)

    def result(self) -> Scores:
        """All scores of the clips added so far.

        Raises:
            SoraError: too few clips on a side, or clips given twice.
        """
        values: dict[str, dict[str, float]] = {}
        counts: dict[str, int] = {}
        for name, metric in self._sets.items():
            values[name] = _figures(metric)
            counts["real"] = len(self.reference.ids) if self.reference else metric.check_ids("real")
            counts["generated"] = metric.check_ids("generated")
        for name in self._means:
            values[name] = _mean(self._clips[False][name])
            if name in self._clips[True]:
                of_real = _mean(self._clips[True][name])
                values[name] |= {"real": of_real["value"]}
                values[name] |= {"real_stderr": of_real["stderr"]} if "stderr" in of_real else {}
            counts["generated"] = len(self._clips[False][name])
        if self._clip_score is not None:
            values["clip_score"]["truncated_captions"] = float(self._truncated)
        titles = {name: self._title(name) for name in values}
        return Scores(values, self._clips[False], ProtocolCard(self.fields(counts, self._contents)), titles)

    def _title(self, name: str) -> str:
        """What is not the published metric must not have its name."""
        if self.network is None or not METRICS[name].distance:
            return name.replace("_", " ")
        space = self.network.describe().get("name", type(self.network).__name__)
        if name == "fid":
            return self.network.frames_title or f"{space} Fréchet distance of frames (not FID)"
        if name == "kvd":
            return "KVD" if self.network.title == "FVD" else f"{space} MMD (not KVD)"
        return self.network.title if name == "fvd" else f"{space} MMD as in JEDi"

    def fields(self, counts: Mapping[str, int], contents: Sequence[str]) -> dict[str, Any]:
        """Of the protocol card.

        Args:
            counts: of clips; "real" is left out where no distance is asked for.
            contents: digests of the real clips; not needed with a reference.
        """
        sides = ("real", "generated") if self.distances else ("generated",)
        fields: dict[str, Any] = {
            "clip": self.protocol.as_fields(),
            "clips": {side: counts[side] for side in sides},
            "metrics": {name: METRICS[name].definition for name in self.metrics},
        }
        if self.network is not None:
            ids = self.reference.ids if self.reference is not None else content_ids(contents)
            # Names are no part of it: every dataset has a 000.mp4.
            fields["real"] = f"sha256:{hashlib.sha256(ids.numpy().tobytes()).hexdigest()}"
            fields["extractor"] = self.network.card()
        if self._clip_score is not None:
            fields["clip_score"] = self._clip_score.card()
        return fields


def content_ids(contents: Sequence[str]) -> Int[Tensor, " clips"]:
    """What stands for a set of clips, whatever they are called and in whatever order."""
    return torch.tensor([clip_hash(content) for content in contents], dtype=torch.int64).sort().values


def _figures(metric: ClipSetMetric) -> dict[str, float]:
    """Of a distance, with an interval, and real against real."""
    found = {name: float(value) for name, value in metric.compute().items()}
    if isinstance(metric, JEDi):
        real, generated = metric.checked_groups()
        found |= _named(_jedi_estimate(real, generated, paired=metric.paired()))
        halves = [[group for group in half if group.count] for half in (real[::2], real[1::2])]
        if all(divisible([group.count for group in half]) for half in halves):
            found |= _halves(_jedi_estimate(halves[0], halves[1]))
    if isinstance(metric, KernelVideoDistance):
        found["unbiased"] = found["value"]
        features = metric.features("real")  # in the order of hashes: every second one is a random half
        if len(features) >= 6:
            found |= _halves(kernel_estimate(features[::2], features[1::2]))
    return found


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


def _named(estimate: Estimate) -> dict[str, float]:
    return {name: getattr(estimate, name) for name in ("value", "unbiased", "stderr", "low", "high")}


def _halves(estimate: Estimate) -> dict[str, float]:
    return {"halves": estimate.unbiased, "halves_low": estimate.low, "halves_high": estimate.high}


def _mean(by_clip: Mapping[str, float]) -> dict[str, float]:
    mean = ClipMeans(["value"])
    # In the order of ids, so that no order of files changes the sum.
    mean.add({"value": torch.tensor([by_clip[name] for name in sorted(by_clip)], dtype=torch.float64)})
    return {name.replace("value_se", "stderr"): float(value) for name, value in mean.compute().items()}
