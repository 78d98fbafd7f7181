"""One evaluation of generated videos: named metrics, shared networks, and the protocol that goes with the numbers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.asked import create_metric, default_metrics, named
from lightning_sora.metrics.base import METRICS, SIDES, Evaluated, Score, Side, VideoMetric
from lightning_sora.metrics.extractors import EXTRACTORS, Extractor
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.gathering import gathered
from lightning_sora.metrics.outputs import Outputs
from lightning_sora.metrics.protocol import ProtocolCard
from lightning_sora.metrics.reference import ReferenceStatistics
from lightning_sora.metrics.results import Results
from lightning_sora.metrics.seen import Seen, clip_digest, sizes_told
from lightning_sora.metrics.set_metrics import SumsDistance


class Evaluation:
    """Scores videos by named metrics, in any order of clips, batches and processes.

    Networks are loaded once, and what they make of a clip is shared by all metrics that ask for it. Making one checks
    what is asked for; :meth:`load`, or the first :meth:`update`, loads the networks.

    Args:
        metrics: specs, as ``lightning-sora list metric`` shows them, or metrics that are made already; one of your own
            is known once its file is imported, or given to :func:`lightning_sora.plugins.load_plugins`.
        extractor: spec of the network of the distances that name none, such as "i3d(weights='PATH')".
        clip_model: name or directory of a CLIP, or spec of an extractor that embeds captions, for ``clip_score``.
        device: that networks run on.
        reference: the real side of distances, computed before.
        protocol: what else moves the numbers and is to be in the card, such as how clips were cut from longer videos.

    Raises:
        SoraError: an unknown metric or extractor, or one that lacks what it needs.

    Example:
        >>> import lightning_sora as ls
        >>> world = ls.World("tiny")
        >>> clips = [world.render(world.facts(i), frames=9, height=32, width=32, fps=8) for i in range(16)]
        >>> evaluation = ls.Evaluation(["fvd(extractor='world')", "motion_smoothness"])
        >>> _ = evaluation.update([str(i) for i in range(8)], generated=clips[:8], real=clips[8:], fps=8)
        >>> results = evaluation.compute()
        >>> sorted(results), results["fvd"].clips, len(results.card.id)
        (['fvd', 'motion_smoothness'], 8, 12)
    """

    def __init__(
        self,
        metrics: Sequence[str | VideoMetric],
        *,
        extractor: str | None = None,
        clip_model: str | None = None,
        device: str | torch.device = "cpu",
        reference: ReferenceStatistics | None = None,
        protocol: Mapping[str, Any] | None = None,
    ) -> None:
        shared = {"extractor": extractor, "clip_model": clip_model}
        made = [one if isinstance(one, VideoMetric) else create_metric(one, **shared) for one in metrics]
        if not made:
            raise SoraError(f"no metric is asked for; choose some of: {', '.join(METRICS.list())}")
        self.metrics = named(made)
        self.device, self.reference, self.protocol = torch.device(device), reference, dict(protocol or {})
        for one in self.metrics.values():
            if one.needs.features is not None:
                EXTRACTORS.builder(EXTRACTORS.resolve(one.needs.features).name)
        if reference is not None:
            self._take_reference(reference)
        self._networks: dict[str, Extractor] = {}
        self._missing: dict[str, WeightsMissing] = {}  # of metrics whose networks were looked for
        self._seen: dict[Side, Seen] = {side: Seen() for one in self.metrics.values() for side in one.sides}
        if any(one.needs.pairs for one in self.metrics.values()):
            self._seen.setdefault("real", Seen())
        self._clips: dict[str, dict[str, float]] = {}
        self._given: set[str] = set()  # metrics that were told what they need of some clips
        self._loaded, self._lenient = False, False

    @classmethod
    def default(cls, of: Sequence[Side], *, extractor: str | None = None, clip_model: str | None = None) -> Evaluation:
        """All metrics that ask for no network that is not given; those that clips are not fit for are left out.

        Args:
            of: whose clips there will be, "generated" or "reconstructed".
            extractor, clip_model: as of an evaluation.
        """
        made = cls(default_metrics(extractor, clip_model, of), extractor=extractor, clip_model=clip_model)
        made._lenient = True
        return made

    @property
    def distances(self) -> list[str]:
        """Those that compare sets of clips."""
        return [name for name, metric in self.metrics.items() if metric.needs.real]

    def _take_reference(self, reference: ReferenceStatistics) -> None:
        if not self.distances:
            raise SoraError("no metric asked for needs --reference; drop it, or add fvd or jedi to the metrics")
        for name in self.distances:
            metric = self.metrics[name]
            if not isinstance(metric, SumsDistance):
                raise SoraError(
                    f"{name} needs the features of every real clip, which a reference does not keep; drop "
                    f"{name}, or give "
                    "the real clips instead of the reference"
                )
            metric.reference = reference

    def load(self) -> None:
        """Loads the networks, once.

        Raises:
            WeightsMissing: one is not where it is looked for; the others are loaded.
            SoraError: one cannot be loaded, or is not that of the reference.
        """
        if self._loaded:
            return
        self._missing = {}
        for name, metric in self.metrics.items():
            try:
                self._load(metric)
            except WeightsMissing as problem:
                self._missing[name] = problem
        if self._missing:
            told = dict.fromkeys(map(str, self._missing.values()))
            raise WeightsMissing("; ".join(told)) from next(iter(self._missing.values()))
        for seen in self._seen.values():
            seen.to(self.device)
        self._loaded = True

    def _load(self, metric: VideoMetric) -> None:
        metric.load()
        if (spec := metric.needs.features) is not None:
            if spec not in self._networks:
                self._networks[spec] = EXTRACTORS.create(spec).to(self.device)
            metric.bind(self._networks[spec])
        metric.to(self.device)

    def to(self, device: torch.device | str) -> None:
        """Moves the networks, and what is kept of clips."""
        self.device = torch.device(device)
        parts: list[Any] = [*self._networks.values(), *self.metrics.values(), *self._seen.values()]
        for part in parts:
            part.to(self.device)

    def of_prompts(self) -> Evaluation | None:
        """Another evaluation with the same networks, by what can be said of videos of which only the prompt is
        known; what asks for a network that :meth:`load` has not found is left out."""
        # Networks are shared, and not copied.
        parts = [part for metric in self.metrics.values() for part in vars(metric).values()]
        shared: dict[int, Any] = {id(p): p for p in parts if isinstance(p, nn.Module) and not isinstance(p, Metric)}
        metrics = [
            copy.deepcopy(metric, shared)
            for name, metric in self.metrics.items()
            if metric.of == "generated"
            and name not in self._missing
            and not (metric.needs.real or metric.needs.pairs or metric.needs.facts)
        ]
        if not metrics:
            return None
        made = Evaluation(metrics, device=self.device)
        made._lenient, made._networks = True, self._networks
        return made

    def check_length(self, frames: int, fps: float | None) -> None:
        """Refuses clips of a length that a metric cannot take, before any is made.

        Args:
            fps: frames per second; None where it is not known.

        Raises:
            SoraError: too few frames, or too many.
        """
        for name, metric in self.metrics.items():
            if self._lenient and (metric.needs.facts or metric.needs.features is None):
                continue  # left out of what it cannot take
            if frames < metric.needs.min_frames:
                raise SoraError(
                    f"{name} needs clips of at least {metric.needs.min_frames} frames, and these have "
                    f"{frames}; give longer "
                    f"ones, or leave {name} out"
                )
            network = metric.network
            if network is not None and (fps is not None or not network.by_seconds):
                per_frame = metric.needs.per == "frame"
                network.check_length(1 if per_frame else frames, fps)

    def update(
        self,
        ids: Sequence[str],
        *,
        generated: Sequence[Clip] | None = None,
        real: Sequence[Clip] | None = None,
        reconstructed: Sequence[Clip] | None = None,
        captions: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
        fps: float | Sequence[float | None] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Adds clips, one of each side that is given per id.

        Args:
            ids: one per clip, each given once per side; equal ids on several sides are pairs.
            generated, real, reconstructed: uint8 [frames height width 3], values 0 to 255, of any sizes.
            captions: that the clips were generated for.
            facts: of the world's clips that they were generated for.
            fps: frames per second, of all or of each.

        Returns:
            scores of single generated or reconstructed clips by metric and id.

        Raises:
            SoraError: no such clips, not one of each per id, what a network cannot take, or a metric that lacks what it
                needs.
        """
        self.load()
        given: dict[Side, Sequence[Clip] | None] = {
            "real": real, "generated": generated, "reconstructed": reconstructed,
        }  # fmt: skip
        sides = {side: list(clips) for side, clips in given.items() if clips is not None}
        rates = [fps] * len(ids) if fps is None or isinstance(fps, int | float) else list(fps)
        _check_lengths(
            len(ids),
            {**{str(side): clips for side, clips in sides.items()}, "captions": captions, "facts": facts, "fps": rates},
        )
        videos: dict[Side, list[Evaluated]] = {}
        for side, clips in sides.items():
            contents = [clip_digest(clip) for clip in clips]
            videos[side] = [
                Evaluated(
                    name,
                    clip,
                    None if rate is None else float(rate),
                    None if captions is None else captions[i],
                    None if facts is None else facts[i],
                    sides["real"][i] if "real" in sides else None,
                    content=content,
                )
                for i, (name, clip, rate, content) in enumerate(zip(ids, clips, rates, contents, strict=True))
            ]
            if side in self._seen and len(ids):
                self._seen[side].update(ids, clips, contents, [video.fps for video in videos[side]])
        found: dict[str, dict[str, float]] = {}
        outputs = Outputs(self._networks, videos)
        for name, metric in self.metrics.items():
            for side in metric.sides:
                if side not in videos or (side == "real" and self.reference is not None and metric.needs.real):
                    continue
                if self._lenient and outputs.lacking(metric, side):
                    continue
                if side == metric.of and len(ids):
                    self._given.add(name)
                some = list(outputs.of(name, metric, side))
                scores = metric.add(some, side)
                if scores and side == metric.of:
                    found[name] = dict(scores)
        for name, values in found.items():
            self._clips.setdefault(name, {}).update(values)
        return found

    def compute(self, *, synchronize: bool = True) -> Results:
        """All scores of the clips added so far.

        Args:
            synchronize: by all processes, each of which must call this; else by this one alone.

        Raises:
            SoraError: too few clips on a side, clips given twice, or none that a metric could judge.
        """
        states = [state for metric in self.metrics.values() for state in metric.states()]
        with gathered([*states, *self._seen.values()], synchronize):
            scores = {name: score for name in self.metrics if (score := self._score(name)) is not None}
            clips = {name: dict(values) for name, values in self._clips.items()}
            results = Results(scores, self._card(), clips, self.metrics)
            results.left_out = {name: _wanted(self.metrics[name]) for name in sorted(self._given - set(scores))}
            return results

    def _score(self, name: str) -> Score | None:
        score = self.metrics[name].compute()
        if score is None and not self._lenient:
            raise SoraError(
                f"{name} could judge none of the clips ({_wanted(self.metrics[name])}); give such clips, or leave "
                f"{name} out"
            )
        return score

    def card(self) -> ProtocolCard:
        """What scores are measured by: metrics, networks, numbers and sizes of clips, and which the real ones are.

        To be called by all processes.
        """
        self.load()
        with gathered(self._seen.values()):
            return self._card()

    def _card(self) -> ProtocolCard:
        seen = {side: self._seen[side].known() for side in SIDES if side in self._seen}
        seen = {side: told for side, told in seen.items() if len(told["ids"])}
        metrics = self.metrics
        clips = {str(side): len(told["ids"]) for side, told in seen.items()}
        if self.reference is not None:
            clips["real"] = len(self.reference.ids)
        fields: dict[str, Any] = {
            **self.protocol,
            "clips": clips,
            # Of the real ones the digest below tells.
            "sizes": {str(side): sizes_told(told["sizes"]) for side, told in seen.items() if side != "real"},
            "metrics": {name: metric.card() for name, metric in metrics.items()},
        }
        if self.reference is not None or "real" in seen:
            ids = self.reference.ids if self.reference is not None else seen["real"]["contents"].sort().values
            # By pixels: names are no part of it, as every dataset has a 000.mp4.
            fields["real"] = f"sha256:{hashlib.sha256(ids.numpy().tobytes()).hexdigest()}"
        labels = _labels(list(self._networks))
        for name, metric in metrics.items():
            if metric.needs.features is not None:
                fields["metrics"][name] = {**fields["metrics"][name], "extractor": labels[metric.needs.features]}
        if labels:
            fields["extractors"] = {labels[spec]: network.card() for spec, network in self._networks.items()}
        return ProtocolCard(fields)

    def statistics(self, fields: Mapping[str, Any]) -> ReferenceStatistics:
        """The real side, to be kept.

        Args:
            fields: how the clips were taken.

        Raises:
            SoraError: there is none.
        """
        sums = [metric for metric in self.metrics.values() if isinstance(metric, SumsDistance)]
        if not sums or not len(self._seen["real"].known()["ids"]) or sums[0].network is None:
            raise SoraError(
                "reference statistics are made of real clips with the metric fvd or jedi; give real clips and one"
            )
        contents = self._seen["real"].known()["contents"].sort().values
        return ReferenceStatistics(
            sums[0].state.groups("real"), contents, {"extractor": sums[0].network.card(), **fields}
        )

    def reset(self) -> None:
        """Forgets all clips; networks stay."""
        parts: list[Any] = [*self.metrics.values(), *self._seen.values()]
        for part in parts:
            part.reset()
        self._clips.clear()
        self._given.clear()


def _labels(specs: Sequence[str]) -> dict[str, str]:
    """Short names for networks: of their parts, numbered where one part is there with other options."""
    found: dict[str, str] = {}
    for spec in specs:
        name = EXTRACTORS.resolve(spec).name
        same = sum(label.split(" ")[0] == name for label in found.values())
        found[spec] = name if not same else f"{name} {same + 1}"
    return found


def _check_lengths(wanted: int, given: Mapping[str, Sequence[Any] | None]) -> None:
    for what, values in given.items():
        if values is not None and len(values) != wanted:
            raise SoraError(f"{wanted} ids are given with {len(values)} of {what}; give one for each")
    for side in ("real", "generated", "reconstructed"):
        for clip in given.get(side) or ():
            if not isinstance(clip, Tensor) or clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
                told = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
                raise SoraError(
                    f"a {side} clip of {told} cannot be scored; give display values 0 to 255 as uint8 [frames "
                    "height width 3]"
                )


def _wanted(metric: VideoMetric) -> str:
    needs = [f"clips of at least {metric.needs.min_frames} frames"] if metric.needs.min_frames > 1 else []
    if metric.network is not None and metric.network.min_frames > 1:
        needs.append(f"clips that {metric.network.title} takes")
    return f"it needs {' and '.join(needs)}" if needs else "it has a score for none of them"
