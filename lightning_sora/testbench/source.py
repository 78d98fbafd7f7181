"""The world as a source: procedural clips whose every fact is known."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source
from lightning_sora.data.window import covering, cut
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator, stream_seed
from lightning_sora.spacetime import Crop, VideoSize
from lightning_sora.testbench.clip_texts import Texts
from lightning_sora.world import LEVELS, Facts, World
from lightning_sora.writing import check_folder, unwritable

# Each split reads its own stretch of the world's endless sequence.
SPLITS = {"train": ("train", 0), "val": ("heldout", 0), "test": ("heldout", 1 << 24)}
FRAMES = 1 << 20  # of a clip, for the plan: the world goes on for as long as is asked
DIGEST = 8  # bytes, of each clip in a cache

log = logging.getLogger(__name__)


@SOURCES.register("world")
class WorldSource(Source):
    """Clips rendered on demand.

    Training uses (colour, shape) pairs that validation and test never show, and the reverse.

    Args:
        level: difficulty, from "tiny" to "hard".
        clips: how many of the training split.
        heldout_clips: how many of validation and test.
        captions: "tags", "short", "dense", "alt" or "natural"; the wording varies from clip to clip.
        heldout_captions: those of validation and test; None for the same.
        fps: frames per second at which clips are rendered if none is asked for.
        cache: a directory that keeps rendered clips between epochs and runs, each with a digest; one that is damaged is
            rendered again, with a warning. None renders anew.
        native: sizes (frames, height, width) that clips have of their own, one drawn for each clip; what is asked
            for is then cut out of that, as from a file: scaled to cover the asked size, and cut at a drawn place in
            train, in the middle elsewhere. None: a clip has any size, with the whole stage in view.
        overrides: fields of the level to replace, for example ``{"shapes": ("cube",)}``.
        languages: of the captions. In training, a clip has one caption in each, of equal standing, of which one is
            drawn at every visit; those in other languages than English are "short". One that is named again gives
            another wording, and is drawn more often.
        heldout_language: that of validation and test; None for the first of ``languages``.
        alternatives: styles of further English captions of equal standing, in training; one named twice gives two
            wordings.
    """

    def __init__(
        self,
        *,
        root: str | None,
        split: str,
        seed: int,
        level: str = "tiny",
        clips: int = 2048,
        heldout_clips: int = 256,
        captions: str = "short",
        heldout_captions: str | None = None,
        fps: float = 8.0,
        cache: str | None = None,
        native: tuple[tuple[int, int, int], ...] | None = None,
        overrides: dict[str, Any] | None = None,
        languages: Sequence[str] = ("en",),
        heldout_language: str | None = None,
        alternatives: Sequence[str] = (),
    ) -> None:
        if root is not None:
            raise SoraError(f"the world is procedural and has no folder; drop root={root!r} or use source 'folder'")
        if level not in LEVELS:
            raise SoraError(f"unknown level {level!r}; known: {', '.join(LEVELS)}")
        if split not in SPLITS:
            raise SoraError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        world_split, self._offset = SPLITS[split]
        captions = captions if split == "train" or heldout_captions is None else heldout_captions
        self.texts = Texts.of_split(split, captions, languages, heldout_language, alternatives)
        config = LEVELS[level]
        try:
            config = replace(config, **(overrides or {}))
        except TypeError as problem:
            raise SoraError(f"overrides={overrides}: {problem}; known fields: {', '.join(asdict(config))}") from problem
        self.world = World(config, seed=stream_seed(seed, "world") % (1 << 31), split=world_split)
        self._fps, self._cache_root = fps, cache
        self._length = clips if split == "train" else heldout_clips
        if self._length < 1 or fps <= 0:
            raise SoraError(f"a world of {self._length} clips at fps={fps}: both must be positive")
        if native is not None and (not native or min(n for size in native for n in size) < 1):
            raise SoraError(f"native={native} must name sizes (frames, height, width) of at least 1")
        self._native, self._split, self._seed = native, split, seed
        self.unchanging = native is None or split != "train"  # else cut at a drawn place
        described = [asdict(config), seed, split, captions, fps, self._length, *([native] if native else [])]
        described += self.texts.described()
        self._description = json.dumps(described, sort_keys=True, default=str)
        self.texts.write(self.world, self._offset)  # refuses an unknown style or language now
        self._caches: dict[Crop, _ClipCache] = {}

    @cached_property
    def infos(self) -> Sequence[ClipInfo]:  # type: ignore[override]
        """Any number of frames at any size, where no native ones are named."""
        numbers = range(self._offset, self._offset + self._length)
        told = json.dumps([asdict(self.world.config), self.world.seed], sort_keys=True, default=str)
        content = hashlib.sha256(told.encode()).hexdigest()[:16]
        return [ClipInfo(f"{self.world.split}-{n}", *self._native_size(n), self._fps, content=content) for n in numbers]

    def _native_size(self, number: int) -> VideoSize:
        if self._native is None:
            return VideoSize(FRAMES, 256, 256)
        key = coarse_generator(self._seed, "native", self.world.split, number)
        return VideoSize(*self._native[int(torch.randint(len(self._native), (), generator=key))])

    def prepare(self, crops: Mapping[int, Crop]) -> None:
        """Fills the cache, where there is one."""
        if self._cache_root is None:
            return
        wanted: dict[Crop, list[int]] = {}
        for index, crop in crops.items():
            wanted.setdefault(self._rendered(index, crop), []).append(index)
        for crop, indices in wanted.items():
            missing = self._cache(crop).missing(indices)
            if missing:
                what = f"rendering {crop.size} clips, once"
                for index in tqdm(missing, desc=what, unit="clip", mininterval=1):
                    self._video(index, crop, self.world.facts(self._offset + index))

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        facts = self.world.facts(self._offset + index)
        made = self._rendered(index, crop)
        rate, own = made.fps or self._fps, self.infos[index]
        if self._native is not None and (crop.size.frames - 1) / rate > (own.frames - 1) / own.fps + 1e-6:
            raise DecodeError(
                f"{own.id}: {crop.size.frames} frames at {rate:g} per second do not fit into its {own.frames}"
            )
        video = self._video(index, made, facts)
        if made.size != crop.size:
            video = cut(video, crop.size, generator if self._split == "train" else None)
        told = {**facts.as_dict(), "config": asdict(self.world.config), "cropped": made.size != crop.size}
        caption, *others = self.texts.write(self.world, facts.index)
        return Clip(video, caption, rate, told, tuple(others))

    def told_captions(self) -> Iterator[str]:
        for number in range(self._offset, self._offset + self._length):
            yield from self.texts.write(self.world, number)

    def _rendered(self, index: int, crop: Crop) -> Crop:
        """What is rendered for a window: the clip's own picture, where it has one, at a size that covers it."""
        rate = crop.fps or self._fps
        if self._native is None:
            return Crop(crop.size, rate)
        own = self.infos[index]
        return Crop(VideoSize(crop.size.frames, *covering(own.height, own.width, crop.size)), rate)

    def recaption(self, index: int, style: str) -> str:
        """A clip's caption in another style; see :meth:`captions`.

        Raises:
            SoraError: unknown style, or one that the language of the captions does not have.
        """
        return self.captions(index, style)[0]

    def captions(self, index: int, style: str) -> tuple[str, ...]:
        """A clip's caption in another style, and its alternatives.

        Raises:
            SoraError: as of :meth:`recaption`.
        """
        return replace(self.texts, style=style).write(self.world, self._offset + index)

    def _cache(self, crop: Crop) -> _ClipCache:
        if crop not in self._caches:
            self._caches[crop] = _ClipCache(Path(str(self._cache_root)), self.fingerprint(), self._length, crop)
        return self._caches[crop]

    def _video(self, index: int, crop: Crop, facts: Facts) -> UInt8[Tensor, "frames height width 3"]:
        if self._cache_root is None:
            return self._render(facts, crop)
        return self._cache(crop).get(index, lambda: self._render(facts, crop))

    def _render(self, facts: Facts, crop: Crop) -> UInt8[Tensor, "frames height width 3"]:
        # Rendering is many small operations: a second thread costs more than it brings.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.world.render(facts, *crop.size, crop.fps or self._fps)
        finally:
            torch.set_num_threads(threads)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_caches": {}}  # a pickled memory map would be a copy, not the file

    def fingerprint(self) -> str:
        probe = self.world.render(self.world.facts(self._offset), 2, 16, 16, self._fps)
        return hashlib.sha256(self._description.encode() + probe.numpy().tobytes()).hexdigest()[:16]


class _ClipCache:
    """Rendered clips in one memory-mapped file, shared by workers and runs.

    A clip's digest is set after its pixels, and equal keys always write equal pixels, so that neither
    an interrupted run nor two at once can leave a wrong clip. Pixels that are not those of their digest are
    rendered again, with a warning.
    """

    def __init__(self, root: Path, fingerprint: str, clips: int, crop: Crop) -> None:
        check_folder("the world's cache", root)
        root.mkdir(parents=True, exist_ok=True)
        stem = root / f"world-{fingerprint}-{clips}x{crop.size}@{crop.fps:g}"
        self._path = stem.with_name(stem.name + ".u8")
        self._videos = _memmap(self._path, (clips, *crop.size, 3))
        self._digests = _memmap(stem.with_name(stem.name + ".digests"), (clips, DIGEST))

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those that were not rendered yet, or whose pixels are damaged."""
        damaged = [index for index in indices if self._known(index) and not self._whole(index, self._videos[index])]
        if damaged:
            log.warning(
                "%s: %d of %d clips are damaged, as their digests tell; they are rendered again",
                self._path, len(damaged), len(indices),
            )  # fmt: skip
            self._digests[damaged] = 0
        return [index for index in indices if not self._known(index)]

    def get(self, index: int, render: Any) -> UInt8[Tensor, "frames height width 3"]:
        if self._known(index):
            video = np.array(self._videos[index])
            if self._whole(index, video):
                return torch.from_numpy(video)
            log.warning("%s: clip %d is damaged, as its digest tells; it is rendered again", self._path, index)
        video = render().numpy()
        _reserve(self._path, index * video.nbytes, video.nbytes)
        self._videos[index] = video
        self._digests[index] = _digest(video)
        return torch.from_numpy(video)

    def _known(self, index: int) -> bool:
        return bool(self._digests[index].any())

    def _whole(self, index: int, video: UInt8[np.ndarray, "frames height width 3"]) -> bool:
        return np.array_equal(self._digests[index], _digest(video))


def _digest(video: UInt8[np.ndarray, "frames height width 3"]) -> UInt8[np.ndarray, " bytes"]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(video).data).digest()[:DIGEST], dtype=np.uint8)


def _reserve(path: Path, start: int, length: int) -> None:
    """Has the disk hold a part of a file before memory is mapped there: full, it would kill the process."""
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), start, length)
    except OSError as problem:
        raise unwritable(path, problem) from problem


def _memmap(path: Path, shape: tuple[int, ...]) -> np.memmap:
    size = int(np.prod(shape))
    try:
        with path.open("ab") as file:  # creates it, or grows it with zeros; never shrinks what another run wrote
            file.truncate(size)
    except OSError as problem:
        raise unwritable(path, problem) from problem
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
