"""The evaluation of a recipe: which metrics score what a model makes, in tests and on the gallery of each "
"validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_sora.errors import SoraError
from lightning_sora.lit.module import LitModule
from lightning_sora.metrics.base import Side
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.protocol import ProtocolCard
from lightning_sora.metrics.results import Results
from lightning_sora.sealing import seal_json, write_whole
from lightning_sora.spacetime import SpacetimeBatch
from lightning_sora.specs import SpecText

log = logging.getLogger(__name__)

LEAST_CLIPS = 16
"""For a distance: with fewer, it is all bias."""


class Evaluate(pl.Callback):
    """Scores the videos that a model makes: the ``evaluation:`` section of a recipe.

    A test logs every figure as ``test/METRIC`` and ``test/METRIC_FIGURE``, and keeps ``evaluation/test.json``, which is
    as ``lightning-sora score --out`` writes it. A validation logs, as ``val/METRIC``, what can be said of the gallery,
    of which only the prompts are known.

    Args:
        metrics: specs, as ``lightning-sora list metric`` shows them; None takes all that ask for no network but the
        next
            two.
        extractor: spec of the network of the distances that name none, such as "i3d(weights='PATH')"; None for no
            distances, where no metrics are named.
        clip_model: name or directory of a CLIP, or spec of an extractor that embeds captions, for ``clip_score``.
    """

    def __init__(
        self,
        metrics: list[SpecText] | None = None,
        extractor: SpecText | None = None,
        clip_model: SpecText | None = None,
    ) -> None:
        self.metrics, self.extractor, self.clip_model = metrics, extractor, clip_model
        self.evaluation: Evaluation | None = None
        self.shown: Evaluation | None = None  # of the gallery
        self.results: Results | None = None
        if metrics is not None:
            self._made(("generated",))  # refuses what cannot be, before anything else is made

    def _made(self, sides: tuple[Side, ...]) -> Evaluation:
        if self.metrics is None:
            return Evaluation.default(sides, extractor=self.extractor, clip_model=self.clip_model)
        return Evaluation(self.metrics, extractor=self.extractor, clip_model=self.clip_model)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        sides = getattr(pl_module, "evaluated_sides", ())
        if not sides or stage not in ("fit", "validate", "test"):
            if self.metrics is not None and not sides:
                raise SoraError(
                    f"a {type(pl_module).__name__} makes no videos that {', '.join(self.metrics)} could score; leave "
                    "evaluation.metrics out"
                )
            return
        assert isinstance(pl_module, LitModule)
        if self.evaluation is None:
            evaluation = self._made(sides)
            foreign = [name for name, metric in evaluation.metrics.items() if metric.of not in sides]
            if foreign:
                raise SoraError(
                    f"{foreign[0]} is of {evaluation.metrics[foreign[0]].of} videos, and a "
                    f"{type(pl_module).__name__} makes "
                    f"{' and '.join(sides)} ones; leave {foreign[0]} out of evaluation.metrics"
                )
            self.evaluation = evaluation
            pl_module.awaited.make(evaluation.load, "test")
            self.shown = evaluation.of_prompts()  # by those networks that are there
        data = pl_module.data_spec()
        if data is not None and data.crop is not None and stage in ("fit", "test"):
            self.evaluation.check_length(data.crop.size.frames, data.crop.fps)

    # Validation.
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A sanity check comes before any clip: the size of the gallery is not known yet.
        if self.evaluation is None or not isinstance(pl_module, LitModule) or pl_module.native_size is None:
            return
        versions, prompts = pl_module.gallery()
        videos = versions.get("generated", [])
        if not videos or self.shown is None:
            return
        shown: Evaluation = self.shown
        shown.to(pl_module.device)
        shown.reset()
        ids = [f"prompt {i}" for i in range(len(videos))]
        shown.update(ids, generated=videos, captions=prompts, fps=pl_module.native_fps)
        for name, score in shown.compute(synchronize=False).items():
            pl_module.log(f"val/{name}", score.value)

    # Tests.
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.evaluation is None or not isinstance(pl_module, LitModule):
            return
        clips = pl_module.clips_to_test()
        if self.evaluation.distances and clips < LEAST_CLIPS:
            raise SoraError(
                f"{self.evaluation.distances[0]} between {clips} clips is all bias; test on at least "
                f"{LEAST_CLIPS} clips, "
                "or set evaluation.extractor=null"
            )
        self.evaluation.load()
        self.evaluation.to(pl_module.device)
        self.evaluation.reset()
        self.results = None

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.evaluation is not None and self.evaluation.distances and batch.space != "pixel":
            raise SoraError(
                f"{self.evaluation.distances[0]} compares with the pixels of real clips, but this source "
                "yields latents; "
                "test on pixels, or set evaluation.extractor=null"
            )

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: SpacetimeBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.evaluation is None or not isinstance(outputs, Mapping) or not isinstance(pl_module, LitModule):
            return
        made = {side: outputs[side] for side in pl_module.evaluated_sides if outputs.get(side)}
        real = [video.cpu() for video in batch.videos()] if batch.space == "pixel" else None
        found = self.evaluation.update(
            batch.ids, real=real, captions=batch.captions, facts=batch.facts, fps=batch.fps, **made
        )
        for name, values in found.items():
            pl_module.score_clips(f"test/{name}", list(values), list(values.values()))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        card = self.finish(pl_module)
        if card is None or self.results is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "evaluation" / "test.json"
        write_whole(path, seal_json({**self.results.record(), "clips": {}}))
        for logger in trainer.loggers:
            log_files = getattr(logger, "log_files", None)
            if log_files is not None:
                log_files(path, "evaluation")

    def finish(self, pl_module: pl.LightningModule) -> ProtocolCard | None:
        """Computes and logs the results, once, on every rank; the card of the evaluation, or None where "
        "there is none."""
        if self.evaluation is None:
            return None
        if self.results is None:
            self.results = self.evaluation.compute()
            if pl_module.trainer.is_global_zero:
                reasons = self.results.left_out
                for reason in dict.fromkeys(reasons.values()):
                    names = ", ".join(name for name in reasons if reasons[name] == reason)
                    log.warning("no clip of this test has a score of %s: %s", names, reason)
            for name, score in self.results.items():
                for figure, value in score.logged(f"test/{name}").items():
                    pl_module.log(figure, value)
        return self.results.card


def evaluate_of(trainer: pl.Trainer) -> Evaluate | None:
    """The trainer's evaluation, if it has one."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, Evaluate)), None)


def evaluation_where_none_is(trainer: pl.Trainer) -> list[pl.Callback]:
    """The evaluation that is made where a trainer has none: of metrics that ask for no network."""
    return [] if evaluate_of(trainer) is not None else [Evaluate()]
