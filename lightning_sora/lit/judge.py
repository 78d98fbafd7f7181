"""What `test` says about generated clips, and the floors beside it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_sora.errors import SoraError
from lightning_sora.lit.awaited import Awaited
from lightning_sora.metrics.adherence import PromptAdherence, asked_codes, judge, read_codes
from lightning_sora.metrics.clip_means import ClipMeans
from lightning_sora.metrics.clip_score import ChanceCLIPScore, VideoCLIPScore
from lightning_sora.metrics.distances import FrechetVideoDistance, KernelVideoDistance
from lightning_sora.metrics.evaluator.reading import TrainedEvaluator, frames_read, load_evaluator
from lightning_sora.metrics.evaluator.vocabulary import FPS, MIN_FRAMES
from lightning_sora.metrics.extractors import EXTRACTORS, Extractor
from lightning_sora.metrics.extractors.clip import CLIPEncoder
from lightning_sora.metrics.temporal import motion_smoothness, temporal_flickering
from lightning_sora.metrics.world_scores import WORLD_SCORES, world_scores, world_warping_error
from lightning_sora.spacetime import SpacetimeBatch

log = logging.getLogger(__name__)

WORLD = "world"
KERNEL = "(x y / d + 1)^3, unbiased, all pairs but of a clip and the one made for its caption"
LEAST_CLIPS = 16
"""For a distance: with fewer, it is all bias."""
ALWAYS = ("temporal_flickering", "motion_smoothness")


class ReconstructionJudge(nn.Module):
    """Scores a VAE's reconstructions beyond PSNR and SSIM.

    On the world, whose flow is known exactly, also how steady they are along it: the warping error, to be read beside
    that of the real clips, which is not zero where light and shadow change.

    Args:
        extractor: spec of the space of the reconstruction FVD; None for none.
        awaited: takes note of missing weights, without which there is no test.
    """

    def __init__(self, extractor: str | None, awaited: Awaited) -> None:
        super().__init__()
        made = None if extractor is None else awaited.make(lambda: EXTRACTORS.create(extractor), "test")
        self.spec = None if made is None else extractor
        if made is not None:
            self.__dict__["extractor"] = made
            self.rfvd = FrechetVideoDistance(self.__dict__["extractor"])
        self.means = ClipMeans(("warping_error", "warping_error_real"))
        self._rates: set[float] = set()  # of the clips of the test

    def place(self, device: torch.device) -> None:
        """Moves the extractor, which is hidden from the module that the trainer moves."""
        if self.spec is not None:
            self.__dict__["extractor"].to(device)

    def check(self, clips: int) -> None:
        """Refuses too few clips as a test begins; see :meth:`GenerationJudge.check`."""
        _check_count(self.spec, clips)
        self._rates.clear()

    def check_length(self, frames: int, fps: float | None) -> None:
        """Refuses clips that are too short; see :meth:`GenerationJudge.check_length`."""
        if self.spec is not None:
            _check_length(self.__dict__["extractor"], frames, fps)

    def card(self) -> dict[str, Any]:
        """What moves the scores, for the protocol."""
        if self.spec is None:
            return {}
        return {"extractor": self.__dict__["extractor"].card(), "fps": sorted(self._rates)}

    def update(self, batch: SpacetimeBatch, made: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        """Adds clips; returns scores of single clips by name and clip id."""
        real = [video.cpu() for video in batch.videos()]
        if self.spec is not None:
            extractor = self.__dict__["extractor"]
            taken = [i for i, clip in enumerate(real) if extractor.takes(len(clip), batch.fps[i])]
            names, rates = [batch.ids[i] for i in taken], [batch.fps[i] for i in taken]
            self.rfvd.add(extractor([real[i] for i in taken], rates), names, real=True)
            self.rfvd.add(extractor([made[i] for i in taken], rates), names, real=False)
            self._rates |= {round(rate, 3) for rate in rates}
        scores: dict[str, dict[str, float]] = {}
        for name, clip, other, fact, fps in zip(
            batch.ids, real, made, batch.facts or (), batch.fps, strict=batch.facts is not None
        ):
            if len(clip) < 2 or fact.get("cropped"):
                continue
            for score, video in (("warping_error", other), ("warping_error_real", clip)):
                scores.setdefault(score, {})[name] = world_warping_error(video, fact, fps)
        self.means.add({name: torch.tensor(list(values.values())) for name, values in scores.items()})
        return {name: values for name, values in scores.items() if not name.endswith("_real")}

    def compute(self) -> dict[str, Tensor]:
        """``rfvd`` with its interval, and the warping errors."""
        found: dict[str, Tensor] = dict(self.means.compute())
        if self.spec is not None:
            distances = self.rfvd.compute()
            found["rfvd"] = distances["value"]
            names = {"floor": "bias", **{name: name for name in ("unbiased", "low", "high", "infinity")}}
            found |= {f"rfvd_{name}": distances[key] for name, key in names.items() if key in distances}
        return found

    def reset(self) -> None:
        """Forgets all clips."""
        for child in self.children():
            child.reset()  # type: ignore[operator]


class GenerationJudge(nn.Module):
    """Scores clips generated for the captions of real ones.

    Args:
        extractor: spec of the space of the Fréchet and kernel distances; None for no distances.
        clip: "world" for the evaluator's text tower, or the name or directory of a CLIP; None for no CLIP score.
        awaited: takes note of missing weights, without which there is no test.
    """

    def __init__(self, extractor: str | None, clip: str | None, awaited: Awaited) -> None:
        super().__init__()
        made = None if extractor is None else awaited.make(lambda: EXTRACTORS.create(extractor), "test")
        self.spec = None if made is None else extractor
        if made is not None:
            # Hidden from the module tree: neither trained, nor saved with the model.
            self.__dict__["extractor"] = made
            self.fvd, self.fvd_vae = (FrechetVideoDistance(self.__dict__["extractor"]) for _ in range(2))
            # A clip and the one that was made for its caption are alike: no pair of independent clips.
            self.kvd = KernelVideoDistance(self.__dict__["extractor"], paired=True)
        encoder = None if clip in (None, WORLD) else awaited.make(lambda: CLIPEncoder(str(clip)), "test")
        self.clip_spec = clip if clip == WORLD or encoder is not None else None
        if encoder is not None:
            self.clip = VideoCLIPScore(encoder)
        self.chance = ChanceCLIPScore(self.evaluator.width) if clip == WORLD else None
        self._told = False
        self.adherence = PromptAdherence()
        self.means = ClipMeans((*ALWAYS, "clip_score", *WORLD_SCORES))

    @property
    def evaluator(self) -> TrainedEvaluator:
        """The world's, loaded on first use."""
        return load_evaluator()

    def place(self, device: torch.device) -> None:
        """Moves the networks, which are hidden from the module that the trainer moves."""
        if self.spec is not None:
            self.__dict__["extractor"].to(device)
        self.evaluator.to(device)

    def check(self, clips: int) -> None:
        """Refuses too few clips, before any is generated.

        Raises:
            SoraError: fewer than a distance needs.
        """
        _check_count(self.spec, clips)

    def check_length(self, frames: int, fps: float | None) -> None:
        """Refuses a recipe whose longest clips are too short to be scored, before any compute is spent.

        Shorter clips among them, such as images, are left out of what needs more frames.

        Args:
            fps: frames per second; None where each clip has its own.

        Raises:
            SoraError: too few frames for the extractor or the evaluator.
        """
        if self.spec is not None:
            _check_length(self.__dict__["extractor"], frames, fps)
        if self.clip_spec == WORLD and fps is not None and frames_read(frames, fps) < MIN_FRAMES:
            raise SoraError(
                f"model.clip=world reads clips of at least {(MIN_FRAMES - 1) / FPS:g} s, and these are shorter; raise "
                "data.frames, or set model.clip=null"
            )

    def check_pixels(self, batch: SpacetimeBatch) -> None:
        """Refuses latents where a distance to real clips is asked.

        Raises:
            SoraError: so.
        """
        if self.spec is not None and batch.space != "pixel":
            raise SoraError(
                "a distance to real clips needs their pixels, but this source yields latents; test on pixels, or set "
                "model.extractor=null"
            )

    @staticmethod
    def readable(batch: SpacetimeBatch) -> list[int]:
        """The clips whose facts are known and that are long enough for the world's evaluator."""
        if batch.facts is None:
            return []
        sizes = [grid.size(batch.patch)[0] for grid in batch.layout.grids]
        return [i for i, (n, fps) in enumerate(zip(sizes, batch.fps, strict=True)) if frames_read(n, fps) >= MIN_FRAMES]

    def card(self, facts: bool) -> dict[str, Any]:
        """What moves the scores, for the protocol."""
        found: dict[str, Any] = {"temporal": list(ALWAYS)}
        if self.spec is not None:
            found["extractor"] = self.__dict__["extractor"].card()
            found["distance"] = {"covariance": "N - 1", "kernel": KERNEL}
        if self.clip_spec is not None:
            found["clip_score"] = (
                {"model": WORLD, "weights": self.evaluator.digest} if self.clip_spec == WORLD else self.clip.card()
            )
        if facts:
            found["facts"] = {"judge": "world evaluator", "weights": self.evaluator.digest}
        return found

    def update(
        self, batch: SpacetimeBatch, generated: Sequence[Tensor], reconstructed: Sequence[Tensor]
    ) -> dict[str, dict[str, float]]:
        """Adds clips; returns scores of single clips by name and clip id.

        Args:
            reconstructed: the real clips as the VAE gives them back; may be empty where no distance is asked.
        """
        if self.spec is not None:
            real = [video.cpu() for video in batch.videos()]
            extractor = self.__dict__["extractor"]
            taken = [i for i, clip in enumerate(real) if extractor.takes(len(clip), batch.fps[i])]
            real, shown, decoded = ([clips[i] for i in taken] for clips in (real, generated, reconstructed))
            self._add_distances(real, shown, decoded, batch.select(taken))
        scores: dict[str, dict[str, float]] = {}
        for name, video in zip(batch.ids, generated, strict=True):
            if len(video) > 1:
                scores.setdefault("temporal_flickering", {})[name] = float(temporal_flickering(video))
            if len(video) > 2:
                scores.setdefault("motion_smoothness", {})[name] = float(motion_smoothness(video))
        readable = self.readable(batch)
        if readable:
            scores |= self._read(batch.select(readable), [generated[i] for i in readable])
        if batch.facts is not None and len(readable) < len(batch) and not self._told:
            self._told = True
            log.warning("clips shorter than %g s: their facts are not read, nor judged", (MIN_FRAMES - 1) / FPS)
        if self.clip_spec not in (None, WORLD):
            self.clip.update(list(generated), list(batch.captions))
        self.means.add({n: torch.tensor(list(v.values())) for n, v in scores.items() if n in self.means.names})
        return scores

    def _add_distances(
        self, real: list[Tensor], generated: Sequence[Tensor], reconstructed: Sequence[Tensor], batch: SpacetimeBatch
    ) -> None:
        extractor, ids, fps = self.__dict__["extractor"], batch.ids, batch.fps
        of_real, of_generated = extractor(real, fps), extractor(list(generated), fps)
        for metric in (self.fvd, self.kvd):
            metric.add(of_real, ids, real=True)
            metric.add(of_generated, ids, real=False)
        self.fvd_vae.add(of_real, ids, real=True)
        self.fvd_vae.add(extractor(list(reconstructed), fps), ids, real=False)

    def _read(self, batch: SpacetimeBatch, generated: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        facts: Sequence[Mapping[str, Any]] = batch.facts or ()
        readings = self.evaluator.read(generated, batch.fps)
        self.adherence.update(readings, facts, batch.ids)
        rows = judge(read_codes(readings), asked_codes(facts)).mean(dim=1)
        found = {"adherence": dict(zip(batch.ids, rows.tolist(), strict=True))}
        for name, reading, fact in zip(batch.ids, readings, facts, strict=True):
            for score, value in world_scores(reading, fact).items():
                if not fact.get("cropped"):  # where things were to be seen, a cut picture does not tell
                    found.setdefault(score, {})[name] = value
        if self.chance is not None:
            texts = self.evaluator.embed_texts(batch.captions)
            clips = torch.stack([reading.embedding for reading in readings])
            found["clip_score"] = dict(zip(batch.ids, (100 * (clips * texts).sum(1)).tolist(), strict=True))
            self.chance.update(clips, texts)
        return found

    def prompt_scores(self, videos: Sequence[Tensor], prompts: Sequence[str], fps: float) -> dict[str, float]:
        """What can be said cheaply of a few clips of which only the prompt is known."""
        found = {}
        if len(videos[0]) > 1:
            found["temporal_flickering"] = _mean([float(temporal_flickering(v)) for v in videos])
        if self.clip_spec == WORLD:
            embedded = torch.stack([r.embedding for r in self.evaluator.read(videos, [fps] * len(videos))])
            found["clip_score"] = float(100 * (embedded * self.evaluator.embed_texts(prompts)).sum(1).mean())
        elif self.clip_spec is not None:
            score = VideoCLIPScore(self.clip.encoder)
            score.update(list(videos), list(prompts))
            found["clip_score"] = float(score.compute()["clip_score"])
        return found

    def compute(self) -> dict[str, Tensor]:
        """All scores; distances with interval, and beside them their floors.

        ``fvd_floor`` is what two sets of this size from the law of the real clips give; ``fvd_real`` is the
        distance between two halves of the real clips, without bias; ``fvd_vae`` is that of the VAE's reconstructions.
        """
        found: dict[str, Tensor] = dict(self.means.compute())
        if self.clip_spec not in (None, WORLD):
            found |= self.clip.compute()
        if self.chance is not None:
            found |= _computed(self.chance)
        rates = _computed(self.adherence)
        if float(rates["clips"]) > 0:
            found |= {f"adherence_{name}": value for name, value in rates.items()}
            found["adherence"] = found.pop("adherence_mean")
        if self.spec is not None:
            distances = self.fvd.compute()
            found["fvd"] = distances["value"]
            names = {"floor": "bias", "clips": "generated"}
            names |= {name: name for name in ("unbiased", "low", "high", "stderr", "infinity")}
            found |= {f"fvd_{name}": distances[key] for name, key in names.items() if key in distances}
            found |= {f"kvd{'' if n == 'value' else f'_{n}'}": v for n, v in self.kvd.compute().items()}
            for end in ("", "_low", "_high"):
                if f"halves{end}" in distances:
                    found[f"fvd_real{end}"] = distances[f"halves{end}"]
            found["fvd_vae"] = self.fvd_vae.compute()["value"]
        return found

    def reset(self) -> None:
        """Forgets all clips."""
        for child in self.children():
            child.reset()  # type: ignore[operator]


def _check_count(spec: str | None, clips: int) -> None:
    if spec is not None and clips < LEAST_CLIPS:
        raise SoraError(
            f"a Fréchet distance between {clips} clips is all bias; test on at least {LEAST_CLIPS} clips, or set "
            "model.extractor=null"
        )


def _check_length(extractor: Extractor, frames: int, fps: float | None) -> None:
    if fps is not None or not extractor.by_seconds:  # else each clip's own rate tells
        extractor.check_length(frames, fps)


def _computed(metric: Metric) -> dict[str, Tensor]:
    """Also before any update: of clips of which nothing is known, none was judged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        return metric.compute()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
