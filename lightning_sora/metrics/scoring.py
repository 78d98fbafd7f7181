"""Scores of two sets of clips from anywhere: which there are, what each needs, and the record that goes with them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_means import ClipMeans
from lightning_sora.metrics.clip_score import VideoCLIPScore
from lightning_sora.metrics.consistency import MotionSmoothness, TemporalFlickering
from lightning_sora.metrics.distances import FrechetVideoDistance, JEDi, KernelVideoDistance, MomentsMetric
from lightning_sora.metrics.extractors import EXTRACTORS, Extractor
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.clip import CLIPEncoder
from lightning_sora.metrics.frechet import clip_hash, merged
from lightning_sora.metrics.protocol import ClipProtocol, ProtocolCard
from lightning_sora.metrics.reference import ReferenceStatistics

DISTANCES = {
    "fvd": "Fréchet distance, covariances with divisor N - 1",
    "kvd": "MMD^2, (x y / d + 1)^3, unbiased, all pairs",
    "jedi": "100 MMD^2, (x y / d)^2, biased",
}
OF_CLIPS = {
    "clip_score": "mean over clips of the mean over frames of 100 cos(image, caption)",
    "temporal_flickering": "1 - mean |x_t - x_t+1| / 255",
    "motion_smoothness": "1 - mean |x_t - (x_t-1 + x_t+1) / 2| / 255",
}
METRICS = {**DISTANCES, **OF_CLIPS}


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
        values: per metric, named figures; a distance has ``value``, interval, floors and counts.
        clips: per metric of single clips, the values by clip id.
        card: extractor, preprocessing, clip protocol, definitions and counts.
        titles: what each metric is called in tables.
    """

    values: Mapping[str, Mapping[str, float]]
    clips: Mapping[str, Mapping[str, float]]
    card: ProtocolCard
    titles: Mapping[str, str]


@dataclass
class Scorer:
    """Adds clips of either side, in any order and in batches, and scores them.

    Args:
        metrics: of ``METRICS``.
        protocol: how the clips were cut; goes into the card.
        extractor: spec of the space of the distances.
        clip_model: name or directory of a CLIP.
        reference: the real side, computed before.
        device: that networks run on.

    Raises:
        SoraError: an unknown part, one that is missing, or clips too short for the extractor.
    """

    metrics: Sequence[str]
    protocol: ClipProtocol
    extractor: str | None = None
    clip_model: str | None = None
    reference: ReferenceStatistics | None = None
    device: str = "cpu"
    _network: Extractor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.metrics = check_metrics(self.metrics)
        distances = [name for name in self.metrics if name in DISTANCES]
        self._sets: dict[str, Any] = {}
        if distances:
            self._network = self._load_extractor()
            if self.reference is not None:
                self._check_reference(self.reference)
                if "kvd" in distances:
                    raise SoraError(
                        "kvd needs the features of every real clip, which a reference does not keep; drop kvd or give "
                        "--real instead of --reference"
                    )
            makers: dict[str, Any] = {
                "fvd": lambda: FrechetVideoDistance(self._network, reference=self.reference),
                "jedi": lambda: JEDi(self._network, reference=self.reference),
                "kvd": lambda: KernelVideoDistance(self._network),
            }
            self._sets = {name: makers[name]() for name in distances}
        self._means: dict[str, ClipMeans] = {}
        if "temporal_flickering" in self.metrics:
            self._means["temporal_flickering"] = TemporalFlickering()
        if "motion_smoothness" in self.metrics:
            self._means["motion_smoothness"] = MotionSmoothness()
        if "clip_score" in self.metrics:
            if self.clip_model is None:
                raise SoraError("clip_score needs --clip-model: the name or the directory of a CLIP of transformers")
            encoder = CLIPEncoder(self.clip_model)
            encoder.to(self.device)
            self._means["clip_score"] = VideoCLIPScore(encoder)
        self._clips: dict[str, dict[str, float]] = {name: {} for name in self._means}
        self._real_ids: list[str] = []

    def _load_extractor(self) -> Extractor:
        if self.extractor is None:
            raise SoraError(
                "a distance needs --extractor, such as \"i3d(weights='PATH')\" for FVD; "
                "`lightning-sora list extractor` names them"
            )
        network = EXTRACTORS.create(self.extractor)
        network.check_length(self.protocol.frames)
        network.to(self.device)
        return network

    def _check_reference(self, reference: ReferenceStatistics) -> None:
        mine = ProtocolCard({"clip": self.protocol.as_fields()})
        ProtocolCard({"clip": reference.fields.get("clip")}).check_same(mine, "the reference and these clips")

    @property
    def needs_real(self) -> bool:
        """Whether real clips must be added."""
        return bool(self._sets) and self.reference is None

    @property
    def network(self) -> Extractor | None:
        """The extractor of the distances."""
        return self._network

    def add(self, clips: Sequence[Clip], ids: Sequence[str], captions: Sequence[str], *, real: bool) -> None:
        """Adds clips to a side; captions are read for the generated side's CLIP score alone."""
        if self._network is not None and self._sets:
            features = self._network(clips)
            for metric in self._sets.values():
                metric.add(features, ids, real=real)
        if real:
            self._real_ids += ids
            return
        for name, metric in self._means.items():
            for clip, clip_id, caption in zip(clips, ids, captions, strict=True):
                before = metric.total.clone()
                if isinstance(metric, VideoCLIPScore):
                    metric.update([clip], [caption])
                else:
                    metric.update([clip])
                self._clips[name][clip_id] = float(metric.total - before)

    def statistics(self) -> ReferenceStatistics:
        """The real side, to be kept.

        Raises:
            SoraError: there is none.
        """
        sums = [metric for metric in self._sets.values() if isinstance(metric, MomentsMetric)]
        if not sums or not self._real_ids or self._network is None:
            raise SoraError(
                "reference statistics are made of real clips with the metric fvd or jedi; give --real and one"
            )
        ids = torch.tensor([clip_hash(name) for name in self._real_ids], dtype=torch.int64).sort().values
        fields = {"extractor": self._network.card(), "clip": self.protocol.as_fields()}
        return ReferenceStatistics(sums[0].groups("real"), ids, fields)

    def result(self) -> Scores:
        """All scores of the clips added so far."""
        values: dict[str, dict[str, float]] = {}
        titles: dict[str, str] = {}
        counts: dict[str, int] = {}
        for name, metric in self._sets.items():
            values[name] = {key: float(value) for key, value in metric.compute().items()}
            title = self._network.title if self._network is not None else name
            titles[name] = title if name == "fvd" else f"{name.upper() if name == 'kvd' else 'JEDi form'} on {title}"
            counts = {"generated": metric.check_ids("generated")}
            counts["real"] = merged(self.reference.groups).count if self.reference else metric.check_ids("real")
        for name, means in self._means.items():
            values[name] = {key.removeprefix(f"{name}_"): float(v) for key, v in means.compute().items()}
            values[name]["value"] = values[name].pop(name)
            titles[name] = name.replace("_", " ")
            counts["generated"] = len(self._clips[name])
        return Scores(values, self._clips, ProtocolCard(self.fields(counts)), titles)

    def fields(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Of the protocol card, with the numbers of clips."""
        fields: dict[str, Any] = {"clip": self.protocol.as_fields(), "clips": dict(counts)}
        fields["metrics"] = {name: METRICS[name] for name in self.metrics}
        if self._network is not None:
            fields["extractor"] = self._network.card()
        if "clip_score" in self._means:
            fields["clip_score"] = self._means["clip_score"].card()  # type: ignore[operator]
        if self.reference is not None:
            fields["reference"] = self.reference.digest
        return fields
