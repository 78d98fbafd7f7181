"""SpacetimeDataModule: tokenized spacetime patches for every model of the lab."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from lightning_sora.data.blend import CaptionBlend
from lightning_sora.data.plan import BatchPlan, PlanSampler
from lightning_sora.data.plan_record import Part, PlanRecord
from lightning_sora.data.processes import Served
from lightning_sora.data.progress import StreamProgress, check_interval, place_in_stretch, settle, stretch
from lightning_sora.data.reading import PlannedClips, start_reader
from lightning_sora.data.sizes import SIZES, Limits, SizePolicy
from lightning_sora.data.sources import Source, create_source
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import Crop, DataSpec, PatchSize, SpacetimeBatch, VideoSize
from lightning_sora.specs import SpecText

log = logging.getLogger(__name__)

SHOWN = 5  # ids of clips that are left out


class SpacetimeDataModule(pl.LightningDataModule):
    """Loads clips of a source as batches of tokenized spacetime patches.

    Args:
        source: spec of a source, such as "world(level='tiny')" or "folder".
        root: the folder of a source on disk.
        patch: pixels per token (frames, height, width): the VAE's stride times the DiT's patch size.
        frames, height, width: the size of the clips; ``frames`` is ``1 + n * patch[0]``.
        sizes: spec of the size policy: "fixed", "bucketed" or "packed", with their options.
        eval_sizes: of validation and test; None for the same. State it where arms differ in ``sizes``.
        captions: a table (Parquet, of ``lightning-sora caption``) whose captions replace the source's own in training.
        caption_share: the share of visits at which they do (0.95 in DALL-E 3); the own caption stands at the others.
        fps: frames per second to resample to; None keeps each clip's own.
        batch_size: clips per batch and rank, of the size above; a budget of as many tokens for other policies.
        num_workers: processes that read; 0 reads in the main one. Has no effect on what is read.
        seed: of order and crops.
        source_seed: of what a procedural source makes; None means ``seed``. Set it where seeds are to repeat a
            training on the same clips.
        side_by_side: this many consecutive batches of training cost about the same; a multiple of the number of ranks
            keeps all of them busy.
        on_error: "skip" or "raise", for files that cannot be read in training.

    Example:
        >>> import lightning_sora as ls
        >>> data = ls.SpacetimeDataModule("world(level='tiny')", patch=(4, 8, 8), frames=17, batch_size=2)
        >>> len(next(iter(data.train_dataloader())))
        2
    """

    def __init__(
        self,
        source: SpecText = "world(level='tiny')",
        *,
        root: str | None = None,
        patch: Sequence[int] = (4, 8, 8),
        frames: int = 17,
        height: int = 32,
        width: int = 32,
        sizes: SpecText = "fixed",
        eval_sizes: SpecText | None = None,
        captions: str | None = None,
        caption_share: float = 1.0,
        fps: float | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        source_seed: int | None = None,
        side_by_side: int = 8,
        on_error: str = "skip",
    ) -> None:
        super().__init__()
        if fps is not None and fps <= 0:
            raise SoraError(f"fps={fps} must be positive, or null for each clip's own")
        if num_workers < 0:
            raise SoraError(f"num_workers={num_workers} must be 0 or more")
        self.patch = PatchSize.of(patch)
        limits = Limits(frames, height, width, self.patch, batch_size)
        self.sizes: SizePolicy = SIZES.create(sizes, limits)
        self.eval_sizes = self.sizes if eval_sizes is None else SIZES.create(eval_sizes, limits)
        if captions is None and caption_share != 1.0:
            raise SoraError(f"caption_share={caption_share} is the share of a table's captions; name one by captions")
        self.blend = None if captions is None else CaptionBlend(captions, caption_share)
        self.spec, self.root, self.fps, self.seed = source, root, fps, seed
        self.size = VideoSize(frames, height, width)
        self.source_seed = seed if source_seed is None else source_seed
        self.num_workers, self.on_error, self.side_by_side = num_workers, on_error, side_by_side
        self._sources: dict[str, Source] = {}
        self._progress = StreamProgress()
        self._settings = {
            f"data.{name}": value
            for name, value in {
                "batch_size": batch_size, "frames": frames, "height": height, "width": width,
                "patch": list(self.patch), "sizes": str(sizes), "fps": fps, "seed": seed, "side_by_side": side_by_side,
            }.items()
        }  # fmt: skip
        self._told: dict[str, Any] | None = None  # of the plan, by the checkpoint that is gone on from
        self._begun: Part | None = None
        self._record: PlanRecord | None = None
        self._plan: BatchPlan | None = None  # of the fit that runs

    def source(self, split: str) -> Source:
        """The source of a split, made on first use."""
        if split not in self._sources:
            source = create_source(self.spec, split, self.source_seed, self.root)
            if not source.infos:
                raise SoraError(f"source {self.spec!r} has no clips in split {split!r}; add files or change the split")
            self._sources[split] = source
        return self._sources[split]

    def describe(self) -> DataSpec:
        """Returns what a model is told of these data before the first batch."""
        vae_hash = next((source.vae_hash for source in self._sources.values()), None)
        return DataSpec(self.patch, Crop(self.size, self.fps), vae_hash, self._captions)

    def _captions(self) -> Iterator[str]:
        """Every caption that a clip may have, as far as that is known before it is read; made as they are asked for."""
        for source in self._sources.values():
            yield from source.told_captions()
        if self.blend is not None:
            yield from self.blend.captions

    def fingerprint(self, split: str = "train") -> str:
        """A hash of the data of a split, and of the captions that replace its own."""
        own = self.source(split).fingerprint()
        return own if self.blend is None or split != "train" else f"{own}+{self.blend.fingerprint()}"

    def setup(self, stage: str) -> None:
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]:
            self.source(split)

    def plan(self, split: str) -> BatchPlan:
        """The batches of a split; "train" is shuffled.

        Raises:
            SoraError: no clip can be used, or a bucket that was asked for gets none.
        """
        source, train = self.source(split), split == "train"
        policy = self.sizes if train else self.eval_sizes
        order = (lambda epoch: source.order(self.seed, epoch)) if train else None
        return BatchPlan(
            source.infos,
            policy,
            fps=self.fps,
            seed=self.seed,
            order=order,
            side_by_side=self.side_by_side,
            begun=self._resumed() if train else (0, ()),
        )

    def record(self) -> PlanRecord:
        """What the plan of training depends on, made on first use."""
        if self._record is None:
            source = self.source("train")
            order, content = (lambda epoch: source.order(self.seed, epoch)), source.fingerprint()
            self._record = PlanRecord(self._settings, source.infos, order, content)
        return self._record

    def _resumed(self) -> Part:
        """Where the plan of training begins."""
        if self._told is not None and self._begun is None:
            self._begun, changes = self.record().resumed(self._told)
            if changes:
                self._progress.begin_anew()
                epoch, had = self._begun
                rank_zero_only(log.warning)(
                    "changed since the checkpoint: %s; epoch %d, which has had %d clips, goes on with the others",
                    "; ".join(changes), epoch, len(had),
                )  # fmt: skip
        return self._begun or (0, ())

    def stretch(self) -> int:
        """Batches of one rank in what the trainer calls an epoch."""
        plan = self.plan("train")
        return stretch(len(plan.epoch(plan.whole)), self.trainer)

    def loader(self, split: str) -> DataLoader[SpacetimeBatch]:
        """A loader of one split; "train" is shuffled and can resume."""
        source, plan, train = self.source(split), self.plan(split), split == "train"
        self._tell(split, plan)
        if train and self.blend is not None:
            self.blend.check([source.infos[index] for index in plan.grids])
        source.prepare({index: Crop(grid.size(self.patch), self.fps) for index, grid in plan.grids.items()})
        trainer = self.trainer
        if train and trainer is not None:
            self._refuse_what_breaks_the_plan(trainer, plan)
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = PlanSampler(plan, rank=rank, ranks=ranks)
        if train and (trainer is not None or self._progress.begun):
            sampler.consumed = lambda: self._progress.consumed(trainer)
        if train and trainer is not None:
            self._plan = plan
            length = sampler.length = stretch(len(plan.epoch(plan.whole)), trainer)
            check_interval(trainer, length)
            settle(trainer, length)
            sampler.place = lambda: place_in_stretch(trainer, length)
        clips = PlannedClips(
            source,
            plan.grids,
            self.patch,
            fps=self.fps,
            seed=self.seed,
            blend=self.blend if train else None,
            on_error=self.on_error,
        )
        if self.num_workers:  # what readers import, once for all of them
            multiprocessing.set_forkserver_preload([PlannedClips.__module__])
        return DataLoader(
            clips,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Not forked, which is not safe once decoders or threads have run.
            multiprocessing_context=Served() if self.num_workers else None,
            worker_init_fn=start_reader,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, so that starting an epoch draws nothing from the global one.
            generator=coarse_generator(self.seed, "loader", split),
        )

    def _tell(self, split: str, plan: BatchPlan) -> None:
        """Counts what is left out, in the log and in the record of the run."""
        usage = plan.usage
        for reason, ids in usage.dropped.items():
            rank_zero_only(log.warning)(
                "%d of %d clips of split %r are left out, %s: %s",
                len(ids),
                usage.clips,
                split,
                reason,
                ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else ""),
            )
        unkept = plan.unkept(plan.whole) if split == "train" else 0
        if unkept:
            rank_zero_only(log.warning)(
                "the shares in data.sizes leave out %d clips of the first epoch, others of the next ones", unkept
            )
        if self.trainer is not None and self.trainer.logger is not None and split == "train":
            told = {
                "data/unkept_clips": unkept,
                "data/clips": usage.clips,
                "data/dropped_clips": usage.dropped_clips,
                "data/sizes": len(usage.grids),
            }
            self.trainer.logger.log_metrics({name: float(value) for name, value in told.items()}, step=0)

    def train_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("test")

    def _refuse_what_breaks_the_plan(self, trainer: pl.Trainer, plan: BatchPlan) -> None:
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise SoraError(
                "trainer.use_distributed_sampler=true would deal each rank's batches a second time; set it to false"
            )
        if self.side_by_side % trainer.world_size and len({grid.tokens for grid in plan.grids.values()}) > 1:
            rank_zero_only(log.warning)(
                "%d ranks do not divide data.side_by_side=%d, so that they wait for each other; set it to a multiple",
                trainer.world_size, self.side_by_side,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Progress as one integer, ``consumed``: batches of all ranks, whose number may change.

        With it, ``plan`` tells what the batches depend on and what the epoch has had, in case that changes.
        """
        state = self._progress.state_dict(self.trainer)
        told = self._told if self._plan is None else self.record().state(self._plan, state["consumed"])
        return state if told is None else {**state, "plan": told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._progress.load_state_dict(state_dict)
        self._told, self._begun = state_dict.get("plan"), None
