"""SpacetimeDataModule: tokenized spacetime patches for every model of the lab."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_sora.data.plan import FixedSize, PlannedBatch, PlanSampler
from lightning_sora.data.sources import SOURCES, Clip, DecodeError, Source
from lightning_sora.errors import SoraError
from lightning_sora.randomness import generator
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout, patchify


class PlannedClips(Dataset[SpacetimeBatch]):
    """Reads planned batches: decode, resize, cut into patches.

    Args:
        on_error: "skip" replaces a clip that cannot be read by the next of its size and reports it
            in the batch; "raise" stops.
    """

    def __init__(
        self,
        source: Source,
        grids: Sequence[TokenGrid],
        patch: PatchSize,
        *,
        fps: float | None,
        seed: int,
        on_error: str = "skip",
    ) -> None:
        if on_error not in ("skip", "raise"):
            raise SoraError(f"on_error={on_error!r} must be 'skip' or 'raise'")
        self.source, self.grids, self.patch = source, list(grids), patch
        self.fps, self.seed, self.on_error = fps, seed, on_error

    def __getitem__(self, planned: PlannedBatch) -> SpacetimeBatch:
        clips, ids, skipped = [], [], []
        for index in planned.clips:
            used, clip, failures = self._read(index, planned)
            clips.append(clip)
            ids.append(self.source.infos[used].id)
            skipped.extend(failures)
        facts = tuple(c.facts for c in clips if c.facts is not None)
        return SpacetimeBatch(
            patches=torch.stack([patchify(clip.video, self.patch) for clip in clips]),
            layout=TokenLayout.uniform(planned.grid, len(clips)),
            patch=self.patch,
            captions=tuple(clip.caption for clip in clips),
            ids=tuple(ids),
            visits=(planned.visit,) * len(clips),
            fps=tuple(clip.fps for clip in clips),
            facts=facts if len(facts) == len(clips) else None,
            skipped=tuple(skipped),
        )

    def __len__(self) -> int:
        """The clips of the split, on all ranks together."""
        return len(self.grids)

    def _read(self, index: int, planned: PlannedBatch) -> tuple[int, Clip, list[str]]:
        failures: list[str] = []
        for candidate in self._candidates(index, planned.grid):
            try:
                key = generator(self.seed, "crop", self.source.infos[candidate].id, planned.visit)
                clip = self.source.load(candidate, *planned.grid.size(self.patch), generator=key, fps=self.fps)
            except DecodeError as problem:
                if self.on_error == "raise":
                    raise
                failures.append(str(problem))
            else:
                return candidate, clip, failures
        raise SoraError(f"no clip of this size can be read; first failure: {failures[0]}")

    def _candidates(self, index: int, grid: TokenGrid) -> Iterator[int]:
        """The clip itself, then the others of its size in order."""
        yield index
        for other in itertools.chain(range(index + 1, len(self.grids)), range(index)):
            if self.grids[other] == grid:
                yield other


class SpacetimeDataModule(pl.LightningDataModule):
    """Loads clips of a source as batches of tokenized spacetime patches.

    Args:
        source: spec of a source, such as "world(level='tiny')" or "folder".
        root: the folder of a source on disk.
        patch: pixels per token (frames, height, width): the VAE's stride times the DiT's patch size.
        frames, height, width: the size of the clips; ``frames`` is ``1 + n * patch[0]``.
        fps: frames per second to resample to; None keeps each clip's own.
        batch_size: clips per batch and rank.
        num_workers: processes that read; 0 reads in the main one. Has no effect on what is read.
        seed: of order and crops.
        source_seed: of what a procedural source makes; None means ``seed``. Set it where seeds are to repeat a
            training on the same clips.
        on_error: "skip" or "raise", for files that cannot be read in training.
    """

    def __init__(
        self,
        source: str = "world(level='tiny')",
        *,
        root: str | None = None,
        patch: Sequence[int] = (4, 8, 8),
        frames: int = 17,
        height: int = 32,
        width: int = 32,
        fps: float | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        source_seed: int | None = None,
        on_error: str = "skip",
    ) -> None:
        super().__init__()
        if fps is not None and fps <= 0:
            raise SoraError(f"fps={fps} must be positive, or null for each clip's own")
        if num_workers < 0:
            raise SoraError(f"num_workers={num_workers} must be 0 or more")
        self.patch = PatchSize.of(patch)
        self.size = FixedSize(frames, height, width, self.patch)
        self.spec, self.root, self.fps, self.seed = source, root, fps, seed
        self.source_seed = seed if source_seed is None else source_seed
        self.batch_size, self.num_workers, self.on_error = batch_size, num_workers, on_error
        self._sources: dict[str, Source] = {}
        self._consumed = self._processed = 0

    def source(self, split: str) -> Source:
        """The source of a split, made on first use."""
        if split not in self._sources:
            source = SOURCES.create(self.spec, root=self.root, split=split, seed=self.source_seed)
            if not source.infos:
                raise SoraError(f"source {self.spec!r} has no clips in split {split!r}; add files or change the split")
            self._sources[split] = source
        return self._sources[split]

    def fingerprint(self, split: str = "train") -> str:
        """A hash of the data of a split."""
        return self.source(split).fingerprint()

    def setup(self, stage: str) -> None:
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]:
            self.source(split)

    def loader(self, split: str) -> DataLoader[SpacetimeBatch]:
        """A loader of one split; "train" is shuffled and can resume."""
        source = self.source(split)
        grids = [self.size.grid(info, self.fps) for info in source.infos]
        source.prepare({grid.size(self.patch) for grid in grids}, self.fps)
        train = split == "train"
        trainer = self.trainer
        if train and trainer is not None:
            self._refuse_what_breaks_the_plan(trainer)
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = PlanSampler(
            grids,
            self.batch_size,
            seed=self.seed,
            shuffle=train,
            rank=rank,
            ranks=ranks,
            consumed=self.state_dict()["consumed"] if train else 0,
        )
        clips = PlannedClips(source, grids, self.patch, fps=self.fps, seed=self.seed, on_error=self.on_error)
        return DataLoader(
            clips,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # fork is not safe once decoders or threads have run.
            multiprocessing_context="forkserver" if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, so that starting an epoch draws nothing from the global one.
            generator=generator(self.seed, "loader", split),
        )

    def train_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[SpacetimeBatch]:
        return self.loader("test")

    def _refuse_what_breaks_the_plan(self, trainer: pl.Trainer) -> None:
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise SoraError(
                "trainer.use_distributed_sampler=true would deal each rank's batches a second time; set it to false"
            )
        cut = trainer.limit_train_batches != 1.0 or getattr(trainer, "overfit_batches", False)
        if cut and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise SoraError(
                "trainer.limit_train_batches and overfit_batches cut epochs short, so that the same clips would come "
                "again and again; set trainer.max_steps, or give the source fewer clips"
            )

    def state_dict(self) -> dict[str, Any]:
        """Progress as one integer, ``consumed``: batches of all ranks, whose number may change.

        ``processed`` is the trainer's own count at that moment, of one rank's batches.
        """
        if self.trainer is None:
            return {"consumed": self._consumed, "processed": self._processed}
        # Not `completed`, which lacks the present batch while a callback saves.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        since = progress.processed - self._processed
        return {"consumed": self._consumed + since * self.trainer.world_size, "processed": progress.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._consumed, self._processed = state_dict["consumed"], state_dict["processed"]
