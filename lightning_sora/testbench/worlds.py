"""Several worlds as one source: clips of every level in turn, captioned in every style in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import Crop
from lightning_sora.testbench.source import WorldSource


@SOURCES.register("worlds")
class WorldsSource(Source):
    """The world at several levels.

    Args:
        levels: names of levels; clip ``i`` is of level ``i % len(levels)``.
        captions: styles, taken in turn within a level.
        clips: how many of the training split, of all levels together.
        heldout_clips: how many of validation and test.
        fps, cache: as of the source "world".
        overrides: fields to replace, by level, for example ``{"medium": {"objects": (2, 2)}}``.
        languages, heldout_language, alternatives: as of the source "world".
    """

    def __init__(
        self,
        *,
        root: str | None,
        split: str,
        seed: int,
        levels: Sequence[str] = ("tiny", "simple", "medium"),
        captions: Sequence[str] = ("short", "dense", "tags"),
        clips: int = 6144,
        heldout_clips: int = 768,
        fps: float = 8.0,
        cache: str | None = None,
        overrides: dict[str, dict[str, Any]] | None = None,
        languages: Sequence[str] = ("en",),
        heldout_language: str | None = None,
        alternatives: Sequence[str] = (),
    ) -> None:
        if not levels or not captions:
            raise SoraError(f"levels={levels!r} and captions={captions!r} must each name at least one")
        unknown = set(overrides or {}) - set(levels)
        if unknown:
            raise SoraError(
                f"overrides of {sorted(unknown)}, which are not among levels={list(levels)}; add or drop them"
            )
        self.captions = tuple(captions)
        self.worlds = [
            WorldSource(
                root=root, split=split, seed=seed, level=level, captions=self.captions[0], fps=fps, cache=cache,
                overrides=(overrides or {}).get(level), clips=-(-clips // len(levels)),
                heldout_clips=-(-heldout_clips // len(levels)), languages=languages,
                heldout_language=heldout_language, alternatives=alternatives,
            )
            for level in levels
        ]  # fmt: skip
        for style in self.captions:
            self.worlds[0].recaption(0, style)  # refuses an unknown style now
        self._names = tuple(levels)
        self.unchanging = all(world.unchanging for world in self.worlds)

    @cached_property
    def infos(self) -> Sequence[ClipInfo]:  # type: ignore[override]
        """Levels in turn."""
        turns = zip(*(world.infos for world in self.worlds), strict=True)
        return [
            replace(info, id=f"{name}-{info.id}")
            for turn in turns
            for name, info in zip(self._names, turn, strict=True)
        ]

    def prepare(self, crops: Mapping[int, Crop]) -> None:
        """Fills the caches of all worlds."""
        for level, world in enumerate(self.worlds):
            own = {
                index // len(self.worlds): crop for index, crop in crops.items() if index % len(self.worlds) == level
            }
            world.prepare(own)

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        own, level = divmod(index, len(self.worlds))
        clip = self.worlds[level].load(own, crop, generator=generator)
        caption, *others = self.worlds[level].captions(own, self.captions[own % len(self.captions)])
        return replace(clip, caption=caption, alternatives=tuple(others))

    def fingerprint(self) -> str:
        parts = [*(world.fingerprint() for world in self.worlds), *self.captions]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
