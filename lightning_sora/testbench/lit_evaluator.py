"""LitEvaluator: trains the network that reads the facts of world clips."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.lit.evaluation_means import EvaluationMeans
from lightning_sora.lit.module import LitModule
from lightning_sora.metrics.clip_score import ChanceCLIPScore
from lightning_sora.models.flops import FORWARD_AND_BACKWARD, CountedFlops
from lightning_sora.randomness import initialize, stream_seed
from lightning_sora.spacetime import PatchSize, SpacetimeBatch
from lightning_sora.specs import SpecText
from lightning_sora.testbench.evaluator.accuracy import ReadingAccuracy
from lightning_sora.testbench.evaluator.network import Perception, WorldEvaluator
from lightning_sora.testbench.evaluator.reading import save_evaluator
from lightning_sora.testbench.evaluator.vocabulary import (
    FPS,
    FRAMES,
    MIN_FRAMES,
    OF_OBJECTS,
    SIDE,
    Answers,
    answers,
    mirrored_codes,
    mirrored_words,
)

log = logging.getLogger(__name__)

EXPORTED = "world_evaluator.safetensors"
"""Under ``default_root_dir``: what a test writes, in the form that the package ships."""

LENGTHS = (MIN_FRAMES, 13, FRAMES)
WEIGHTS = {"present": 1.0, "shape": 1.0, "size": 0.5, "motion": 1.0, "camera": 1.0, "frame_shape": 0.3, "geometry": 4.0}


class LitEvaluator(LitModule):
    """The world evaluator under cross-entropy per fact and a contrastive loss against captions.

    Clips are shown mirrored, shorter, blurred, noisy, brighter or darker at random: generated clips are all that.

    Args:
        dim, embedding: see :class:`WorldEvaluator`.
        contrast: weight of the contrastive loss.
        degraded: probability that a training clip is blurred, noised or dimmed.
        levels: that accuracies are told apart by.
        patch: pixels per row of the data's batches.
        optimizer, schedule, ema_decay, seed: see :class:`LitModule`.

    Example:
        >>> import lightning_sora as ls
        >>> ls.LitEvaluator(dim=16, embedding=8).patch
        PatchSize(frames=4, height=16, width=16)
    """

    boundary = ("*.embedding*", "network.named*", "network.text.words*", "network.heads*", "network.camera*")

    def __init__(
        self,
        *,
        dim: int = 96,
        embedding: int = 64,
        contrast: float = 0.5,
        degraded: float = 0.5,
        levels: Sequence[str] = ("tiny", "simple", "medium"),
        patch: Sequence[int] = (4, 16, 16),
        optimizer: SpecText = "adamw(lr=2e-3)",
        schedule: SpecText = "cosine(warmup=50)",
        ema_decay: float | None = 0.995,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, ema_decay=ema_decay, seed=seed)
        self.save_hyperparameters()
        if contrast < 0 or not 0 <= degraded <= 1:
            raise SoraError(f"contrast={contrast} must be at least 0 and degraded={degraded} between 0 and 1")
        self.network = WorldEvaluator(dim, embedding)
        initialize(self.network, seed, "network.")
        self.contrast, self.degraded = contrast, degraded
        self._patch = PatchSize(*patch)
        self.accuracy, self.chance = ReadingAccuracy(tuple(levels)), ChanceCLIPScore(embedding)
        self._count, self._means = CountedFlops(), EvaluationMeans()

    @property
    def patch(self) -> PatchSize:
        return self._patch

    def setup(self, stage: str) -> None:
        super().setup(stage)
        split = {"fit": "val" if self.trainer.limit_val_batches else "", "validate": "val", "test": "test"}.get(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if split and hasattr(data, "source"):
            self._check_levels(info.id for info in data.source(split).infos)

    def _check_levels(self, ids: Iterable[str]) -> None:
        unknown = {level_of(one) for one in ids} - set(self.accuracy.groups)
        if unknown:
            raise SoraError(
                f"accuracies are told apart by model.levels={list(self.accuracy.groups)}, but names of clips to read "
                f"begin with {', '.join(sorted(unknown)[:3])}; set data.source to worlds of these levels, or "
                "model.levels to what the names begin with"
            )

    def check_batch(self, batch: SpacetimeBatch) -> None:
        """Refuses clips that are not of the world, or of another size or rate than the evaluator reads.

        Raises:
            SoraError: any of these.
        """
        super().check_batch(batch)
        sizes = {grid.size(self.patch) for grid in batch.layout.grids}
        if batch.facts is None or sizes != {(FRAMES, SIDE, SIDE)} or set(batch.fps) != {FPS}:
            raise SoraError(
                f"the evaluator trains on world clips of {FRAMES}x{SIDE}x{SIDE} at {FPS:g} frames per second, but the "
                f"data are {sorted(sizes)} at {sorted(set(batch.fps))}; set data.source to worlds, and the size"
            )

    def training_flops(self, batch: SpacetimeBatch) -> int:
        """Counted on one clip with one object."""
        clip = torch.zeros((1, 3, FRAMES, SIDE, SIDE), device=self.device).to(self.dtype)
        slots = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        return FORWARD_AND_BACKWARD * len(batch) * self._count("clip", self.network, lambda: self.network(clip, slots))

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor:
        frames = random.Random(stream_seed(self.seed, "length", batch.ids[0], batch.visits[0])).choice(LENGTHS)
        true = answers(batch.facts or (), FRAMES, FPS)
        video = self.videos(batch) * 0.5 + 0.5
        own = video.dtype
        video = video.to(torch.promote_types(own, torch.float32))  # a CPU resizes no halves
        draws = [random.Random(stream_seed(self.seed, "augment", *key)) for key in batch.keys]
        flips = [draw.random() < 0.5 for draw in draws]
        video = torch.stack([degraded(clip[:, :frames].flip(-1) if flip else clip[:, :frames], draw, self.degraded)
                             for clip, flip, draw in zip(video, flips, draws, strict=True)])  # fmt: skip
        captions = [mirrored_words(c) if flip else c for c, flip in zip(batch.captions, flips, strict=True)]
        true = mirrored(true, torch.tensor(flips), frames)
        seen = self.network(video.to(own), true.slots.to(self.device))
        losses = self.losses(seen, true)
        losses["contrast"] = self.contrast * contrastive(
            seen.embedding, self.network.embed_texts(captions), self.network.temperature, captions
        )
        loss = torch.stack(list(losses.values())).sum()
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return batch.weighed(loss[None], "clip")

    def losses(self, seen: Perception, true: Answers) -> dict[str, Tensor]:
        """The weighted losses per fact."""
        found = self._terms(seen, true)
        found["geometry"] = found.pop("places") + found.pop("depths")
        return {name: WEIGHTS[name] * value for name, value in found.items()}

    def _terms(self, seen: Perception, true: Answers, reduction: str = "mean") -> dict[str, Tensor]:
        """The losses per fact: means over clips, objects or frames, or with reduction ``"none"`` of each of them."""
        how: Any = {"reduction": reduction}
        labels = {name: value.to(self.device) for name, value in true.labels.items()}
        frames = seen.shapes.shape[1]
        return {
            "present": F.binary_cross_entropy_with_logits(seen.present, true.present.to(seen.present), **how),
            **{name: F.cross_entropy(seen.objects[name], labels[name], **how) for name in OF_OBJECTS},
            "camera": F.cross_entropy(seen.camera, labels["camera"], **how),
            "frame_shape": F.cross_entropy(seen.shapes.flatten(0, 1), labels["shape"].repeat_interleave(frames), **how),
            "places": F.smooth_l1_loss(seen.places, true.places.to(seen.places), beta=0.1, **how),
            "depths": F.smooth_l1_loss(seen.depths, true.depths.to(seen.depths), beta=0.1, **how),
        }

    # Evaluation.
    def protocol(self, split: str) -> dict[str, Any]:
        return super().protocol(split) | {"judge": "facts of the world", "clip": [FRAMES, SIDE, SIDE, FPS]}

    def validation_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: SpacetimeBatch, split: str) -> None:
        true = answers(batch.facts or (), FRAMES, FPS)
        with self.averaged():
            seen = self.network(self.videos(batch) * 0.5 + 0.5, true.slots.to(self.device))
            texts = self.network.embed_texts(batch.captions)
        for name, values in self._terms(seen, true, reduction="none").items():
            self._means.add(f"{split}/loss_{name}", values)
        self.accuracy.update(seen, true, [level_of(name) for name in batch.ids])
        self._means.add(f"{split}/clip_score", 100 * (seen.embedding * texts).sum(1))
        self.chance.update(seen.embedding, texts)

    def on_validation_epoch_end(self) -> None:
        self._log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        measured = {name: round(float(value), 4) for name, value in self._log_accuracy("test").items()}
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / EXPORTED
            with self.averaged():
                save_evaluator(self.network, path, {"accuracy": measured, "recipe": dict(self.hparams)})
            log.info("the evaluator, with what it was measured at, is in %s", path)

    def _log_accuracy(self, split: str) -> dict[str, Tensor]:
        found, means = self.accuracy.compute(), self._means.log(self)
        weights = WEIGHTS | {"places": WEIGHTS["geometry"], "depths": WEIGHTS["geometry"]}
        terms = {name.rpartition("loss_")[2]: mean for name, mean in means.items() if "/loss_" in name}
        self.log(f"{split}/loss", sum(weights[name] * mean for name, mean in terms.items()))
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})
        self.log_dict({f"{split}/{name}": value for name, value in self.chance.compute().items()})
        self.accuracy.reset()
        self.chance.reset()
        return found


def level_of(clip_id: str) -> str:
    """The level that a clip of ``worlds`` is of, by its name."""
    return clip_id.split("-", 1)[0]


def degraded(clip: Float[Tensor, "3 frames h w"], draw: random.Random, probability: float) -> Tensor:
    """A clip as a generator may make it: softer, noisier, brighter or darker."""
    if draw.random() >= probability:
        return clip
    side = draw.choice((24, 32, 32, 40, 48, 64))
    if side < SIDE:
        small = F.interpolate(clip.transpose(0, 1), size=(side, side), mode="bilinear", antialias=True)
        clip = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear", antialias=True).transpose(0, 1)
    gain, lift = draw.uniform(0.85, 1.1), draw.uniform(-0.05, 0.05)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(draw.getrandbits(62)))
    return (clip * gain + lift + draw.choice((0.0, 0.0, 0.02, 0.05)) * noise.to(clip)).clamp(0, 1)


def mirrored(true: Answers, flips: Tensor, frames: int) -> Answers:
    """The truth about the first frames of clips of which some are shown mirrored."""
    clip = true.slots[:, 0]
    labels = dict(true.labels)
    for name, of in (("motion", flips[clip]), ("camera", flips)):
        labels[name] = torch.where(of, mirrored_codes(name)[labels[name]], labels[name])
    sign = torch.where(flips[clip], -1.0, 1.0)[:, None]
    places = true.places[:, :frames].clone()
    places[..., 0] *= sign
    return Answers(true.present, true.slots, labels, places, true.depths[:, :frames])


def contrastive(
    clips: Float[Tensor, "clips dim"], texts: Float[Tensor, "clips dim"], temperature: Tensor, captions: Sequence[str]
) -> Float[Tensor, ""]:
    """InfoNCE in both directions (Radford et al. 2021, figure 3); equal captions are equally right."""
    logits = temperature.exp() * clips @ texts.T
    same = torch.tensor([[a == b for b in captions] for a in captions], device=logits.device).to(logits)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
