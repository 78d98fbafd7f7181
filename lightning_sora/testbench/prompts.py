"""Pairs of a short prompt and a rich caption of one clip, without its pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_sora.data.plan import too_few
from lightning_sora.data.progress import StreamProgress, check_interval, place_in_stretch, settle, stretch
from lightning_sora.errors import SoraError
from lightning_sora.randomness import stream_seed
from lightning_sora.spacetime import DataSpec, PatchSize
from lightning_sora.world import LEVELS, World

log = logging.getLogger(__name__)

SPLITS = {"train": ("train", 0), "val": ("heldout", 0), "test": ("heldout", 1 << 24)}


@dataclass(frozen=True)
class PromptBatch:
    """Pairs of texts.

    Attributes:
        prompts: short.
        captions: rich, of the same facts and more.
        ids: one per pair; keys of all per-pair randomness.
    """

    prompts: tuple[str, ...]
    captions: tuple[str, ...]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: Any, non_blocking: bool = False) -> PromptBatch:
        return self


class WorldPrompts(Dataset[PromptBatch]):
    """Pairs by number, endlessly: new wordings, and styles in turn, each time round the clips."""

    def __init__(self, levels: Sequence[str], styles: Sequence[str], split: str, seed: int, clips: int) -> None:
        world_split, self.offset = SPLITS[split]
        self.split, self.styles, self.clips = split, tuple(styles), clips
        self.worlds = [World(LEVELS[n], seed=stream_seed(seed, "world") % (1 << 31), split=world_split) for n in levels]

    def __getitem__(self, numbers: tuple[int, ...]) -> PromptBatch:
        pairs = [self._pair(number) for number in numbers]
        prompts, captions = zip(*pairs, strict=True)
        return PromptBatch(prompts, captions, tuple(f"{self.split}-{number}" for number in numbers))

    def _pair(self, number: int) -> tuple[str, str]:
        clip, turn = number % self.clips, number // self.clips
        world = self.worlds[clip % len(self.worlds)]
        facts = world.facts(self.offset + clip)
        style = self.styles[(clip // len(self.worlds) + turn) % len(self.styles)]
        return world.caption(facts, style, key=number + 1), world.caption(facts, "dense", key=number + 1)

    def __len__(self) -> int:
        return self.clips


class _Numbers(Sampler[tuple[int, ...]]):
    """The batches of numbers of one rank: each number once, in smaller batches where there are fewer than ranks.

    Raises:
        SoraError: fewer numbers than ranks.
    """

    def __init__(self, length: int, batch_size: int, rank: int, ranks: int) -> None:
        if length < ranks:
            raise too_few(length, ranks)
        self.length, self.batch_size, self.rank, self.ranks = length, min(batch_size, length // ranks), rank, ranks

    def __len__(self) -> int:
        return len(range(self.rank, -(-self.length // self.batch_size), self.ranks))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for begin in range(self.rank * self.batch_size, self.length, self.ranks * self.batch_size):
            yield tuple(range(begin, min(begin + self.batch_size, self.length)))


class _EndlessNumbers(Sampler[tuple[int, ...]]):
    """What is left of the present stretch of endless batches of numbers, from where training stands.

    Args:
        begin: the number of the first batch.
    """

    def __init__(
        self, length: int, batch_size: int, trainer: pl.Trainer | None, progress: StreamProgress, begin: int
    ) -> None:
        self.begin = begin
        self.rank, self.ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        self.batches, self.batch_size = -(-length // batch_size), batch_size
        self.trainer, self.progress = trainer, progress
        if trainer is not None:
            check_interval(trainer, len(self))
            settle(trainer, len(self))

    def __len__(self) -> int:
        return stretch(self.batches, self.trainer)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        first = self.progress.consumed(self.trainer)
        used = first if self.trainer is None else place_in_stretch(self.trainer, len(self))
        for step in range(len(self) - used % len(self)):
            begin = self.begin + (first + step * self.ranks + self.rank) * self.batch_size
            yield tuple(range(begin, begin + self.batch_size))


class PromptDataModule(pl.LightningDataModule):
    """Short prompts of the world with the dense captions of the same clips.

    Args:
        levels: of the world, in turn.
        styles: of the short prompts, in turn; "alt" leaves facts out, which the rich caption tells.
        clips, heldout_clips: of training, and of validation and test; wordings differ at every visit.
        batch_size: pairs per batch and rank.
        seed: of the world.

    Raises:
        SoraError: an unknown level or style, or no clips.

    Example:
        >>> import lightning_sora as ls
        >>> batch = next(iter(ls.PromptDataModule(levels=("tiny",), batch_size=4).val_dataloader()))
        >>> all(len(rich) > len(short) for short, rich in zip(batch.prompts, batch.captions))
        True
    """

    def __init__(
        self,
        *,
        levels: Sequence[str] = ("tiny",),
        styles: Sequence[str] = ("short", "tags", "alt"),
        clips: int = 8192,
        heldout_clips: int = 512,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        unknown = [name for name in levels if name not in LEVELS]
        if unknown or not levels or not styles or min(clips, heldout_clips, batch_size) < 1:
            raise SoraError(
                f"levels={list(levels)} must be of {', '.join(LEVELS)}, styles={list(styles)} at least one, and clips, "
                "heldout_clips and batch_size positive"
            )
        self.levels, self.styles, self.batch_size, self.seed = levels, styles, batch_size, seed
        self.sizes = {"train": clips, "val": heldout_clips, "test": heldout_clips}
        self._progress = StreamProgress()
        self._told: dict[str, Any] = {}  # by the checkpoint that is gone on from
        self._begin = 0  # the number of the first batch of those counted as progress
        self.patch = PatchSize()  # it has no clips
        self.pairs("train")[tuple(range(len(self.styles)))]  # refuses an unknown style now

    def describe(self) -> DataSpec:
        """Returns what a model is told of these data before the first batch."""
        return DataSpec(self.patch)

    def pairs(self, split: str) -> WorldPrompts:
        return WorldPrompts(self.levels, self.styles, split, self.seed, self.sizes[split])

    def fingerprint(self, split: str = "train") -> str:
        """A hash of some pairs of the split, and of how many there are."""
        probe = self.pairs(split)[tuple(range(min(64, self.sizes[split])))]
        return f"{stream_seed(self.sizes[split], repr((probe.prompts, probe.captions))):016x}"

    def stretch(self) -> int:
        """Batches of one rank in what the trainer calls an epoch."""
        return stretch(-(-self.sizes["train"] // self.batch_size), self.trainer)

    def loader(self, split: str) -> DataLoader[PromptBatch]:
        """Batches of one split; "train" is endless and can resume."""
        sampler: Sampler[tuple[int, ...]]
        if split == "train":
            self._go_on()
            length = self.sizes[split]
            sampler = _EndlessNumbers(length, self.batch_size, self.trainer, self._progress, self._begin)
        else:
            rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
            sampler = _Numbers(self.sizes[split], self.batch_size, rank, ranks)
        return DataLoader(self.pairs(split), batch_size=None, sampler=sampler)

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[PromptBatch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[PromptBatch]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        return self.loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Progress as the batches of all ranks that were used, of so many pairs, from a number on."""
        own = {"begin": self._begin, "batch_size": self.batch_size, **self._which()}
        return {**self._progress.state_dict(self.trainer), **own}

    def _which(self) -> dict[str, Any]:
        """What says which pairs there are, by the names in a recipe."""
        pairs = {"levels": list(self.levels), "styles": list(self.styles), "seed": self.seed}
        return {"clips": self.sizes["train"], **pairs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._progress.load_state_dict(state_dict)
        self._begin, self._told = state_dict.get("begin", 0), state_dict

    def _go_on(self) -> None:
        """Goes on with the next pair, also in other batches.

        Raises:
            SoraError: the pairs are others.
        """
        told, self._told = self._told, {}
        size, now = told.get("batch_size", self.batch_size), self._which()
        others = {name: told[name] for name in now if told.get(name, now[name]) != now[name]}
        if others:
            was = ", ".join(f"data.{name}={value}, not {now[name]}" for name, value in others.items())
            raise SoraError(
                f"the checkpoint was trained with {was}, so that its place in the pairs means nothing here; set "
                f"{', '.join(f'data.{name}={value}' for name, value in others.items())}, or begin a new fit without "
                "--ckpt_path"
            )
        if size != self.batch_size:
            log.warning("changed since the checkpoint: data.batch_size was %d, is %d", size, self.batch_size)
            self._begin += told["consumed"] * size
            self._progress.begin_anew()
