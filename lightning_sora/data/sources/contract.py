"""The contract of a source: what it tells of its clips is so, and a clip is a function of its index and generator.

A source that needs a root and is given none in its spec, as in ``mine(root='PATH')``, gets a small folder of videos
with captions beside them.
"""

from __future__ import annotations

import functools
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from lightning_sora.contracts import Contract, no_global_draws, require
from lightning_sora.data.sources.base import SOURCES, Clip, Source, create_source
from lightning_sora.errors import SoraError
from lightning_sora.media import write_image, write_mp4
from lightning_sora.randomness import generator
from lightning_sora.spacetime import Crop, TokenGrid, VideoSize

#: Clips that are read, at most this large.
LOOKED_AT, LARGEST = 4, VideoSize(5, 16, 16)
#: A source with longer clips has clips of any length.
ENDLESS = 10_000


def make(spec: str, split: str = "train", seed: int = 0, example: str = "one") -> Source:
    """A source of a spec; see the module.

    Raises:
        SoraError: it cannot be made.
    """
    try:
        return create_source(spec, split, seed)
    except SoraError as problem:
        if "root" in SOURCES.resolve(spec).options:
            raise
        try:
            return create_source(spec, split, seed, root=str(_example(example)))
        except SoraError:
            raise problem from None


CONTRACT = Contract(make)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lightning_sora_contract_")


@functools.cache
def _example(name: str) -> Path:
    """A folder of videos and a still, with captions; folders of other names differ in one pixel of each."""
    root = Path(_folder().name) / name
    root.mkdir()
    rows = torch.arange(48, dtype=torch.uint8)
    for number in range(6):
        video = (rows * 4 + number)[None, None, :, None].expand(9, 32, 48, 3).clone()
        video[:, :, :, 0] = (torch.arange(9, dtype=torch.uint8) * 20)[:, None, None]  # tells the frame
        video[0, :8, :8] = len(name) * 40
        write_mp4(root / f"{number}.mp4", video, fps=8)
        (root / f"{number}.txt").write_text(f"caption {number}")
    write_image(root / "still.png", video[0])
    (root / "still.txt").write_text("a still")
    return root


def indices(source: Source) -> list[int]:
    """Some clips: the first and the last."""
    count = len(source.infos)
    return sorted({*range(min(LOOKED_AT - 1, count)), count - 1})


def crop_of(source: Source, index: int) -> Crop:
    """A window that a clip has; of latents all, as they are cached whole."""
    info = source.infos[index]
    own = VideoSize(info.frames, info.height, info.width)
    return Crop(own if source.space == "latent" else VideoSize(*map(min, own, LARGEST)))


def load(source: Source, index: int, visit: int = 0, crop: Crop | None = None) -> Clip:
    key = generator(1, "contract", source.infos[index].id, visit)
    return source.load(index, crop or crop_of(source, index), generator=key)


def _clips(source: Source) -> Iterator[tuple[int, Clip, str]]:
    for index in indices(source):
        yield index, load(source, index), f"clip {source.infos[index].id!r}"


def _same(one: Clip, other: Clip) -> bool:
    told = [(clip.caption, clip.fps, tuple(clip.alternatives)) for clip in (one, other)]
    return told[0] == told[1] and torch.equal(one.video, other.video)


@CONTRACT.law
def tells_what_its_clips_are(spec: str) -> None:
    """Ids that are unique, and sizes, rates and captions that a clip can have."""
    source = make(spec)
    require(len(source.infos) > 0, "it has no clip in train")
    ids = [info.id for info in source.infos]
    require(
        all(isinstance(i, str) and i for i in ids), "an id is no text, or empty; all randomness of a clip hangs on it"
    )
    require(len(set(ids)) == len(ids), f"{len(ids) - len(set(ids))} ids are told twice; give each clip its own")
    for info in source.infos:
        require(min(info.frames, info.height, info.width) >= 1, f"clip {info.id!r} has a size below 1")
        require(info.fps > 0, f"clip {info.id!r} has fps={info.fps}")
        captions = (info.caption, *info.alternatives)
        require(
            all(isinstance(caption, str) for caption in captions), f"clip {info.id!r} has a caption that is no text"
        )
    kinds = ("pixel", "latent")
    require(source.space in kinds, f"space={source.space!r} must be one of {', '.join(kinds)}")
    require((source.space == "latent") == (source.vae_hash is not None), "latents tell vae_hash, and pixels do not")


@CONTRACT.law
def reads_what_is_asked(spec: str) -> None:
    """Windows of exactly the asked size and rate, with the caption that was told."""
    source = make(spec)
    for index, clip, where in _clips(source):
        info, crop = source.infos[index], crop_of(source, index)
        expected: tuple[int, ...] = (*crop.size, 3)
        if source.space == "latent":
            expected = (*TokenGrid.of(*crop.size, source.vae_stride), clip.video.shape[-1])
            require(clip.video.is_floating_point() and clip.video.isfinite().all(), f"{where}: latents are not finite")
        else:
            require(clip.video.dtype == torch.uint8, f"{where} is {clip.video.dtype}; pixels are uint8")
        shape = tuple(clip.video.shape)
        require(shape == expected, f"{where}: {shape} instead of {expected} for a window of {crop.size}")
        require(abs(clip.fps - info.fps) < 1e-3, f"{where}: fps={clip.fps:g}, but it was told as {info.fps:g}")
        if info.caption:
            told = (info.caption, tuple(info.alternatives))
            require(
                (clip.caption, tuple(clip.alternatives)) == told, f"{where}: its captions are not those that infos tell"
            )
        if source.space == "pixel" and info.frames > 2:
            slow = Crop(VideoSize(1 + (crop.size.frames - 1) // 2, 16, 8), fps=info.fps / 2)
            slowed = load(source, index, crop=slow)
            require(tuple(slowed.video.shape) == (*slow.size, 3), f"{where}: at half its rate it has another size")
            require(
                slowed.fps == slow.fps, f"{where}: {slow.fps:g} frames per second are asked for, told {slowed.fps:g}"
            )


@CONTRACT.law
def reading_is_a_function_of_clip_and_generator(spec: str) -> None:
    """The same clip at the same visit is equal, whatever was read before; ``unchanging`` ones at every visit."""
    source = make(spec)
    with no_global_draws("reading a clip"):
        first = [(index, clip) for index, clip, _ in _clips(source)]
    for index, clip in reversed(first):
        where = f"clip {source.infos[index].id!r}"
        require(
            _same(load(source, index), clip), f"{where}, read a second time, differs; draw from the generator alone"
        )
        if source.unchanging:
            other = load(source, index, visit=1).video
            require(torch.equal(other, clip.video), f"{where} differs at another visit (unchanging = False if meant)")


@CONTRACT.law
def is_the_same_in_every_process(spec: str) -> None:
    """Made anew, or pickled for a worker, it has the same clips and fingerprint; and preparing changes none."""
    source = make(spec)
    clips = list(_clips(source))
    anew, copy = make(spec), pickle.loads(pickle.dumps(source))
    prepared = make(spec)
    prepared.prepare({index: crop_of(source, index) for index in indices(source)})
    for words, other in (("made anew", anew), ("a copy for a worker", copy), ("prepared", prepared)):
        require(list(other.infos) == list(source.infos), f"{words}, it tells other clips")
        require(other.fingerprint() == source.fingerprint(), f"{words}, it has another fingerprint")
        for index, clip, where in clips:
            require(_same(load(other, index), clip), f"{words}, it gives another {where}")


@CONTRACT.law
def its_fingerprint_tells_other_clips(spec: str) -> None:
    """What splits and seeds, or another folder, change in its clips, they change in its fingerprint."""
    known: dict[str, tuple[str, object]] = {}
    for words, (split, seed, example) in {
        "train": ("train", 0, "one"),
        "val": ("val", 0, "one"),
        "another seed": ("train", 1, "one"),
        "another folder": ("train", 0, "other"),
    }.items():
        try:
            source = make(spec, split, seed, example)
        except SoraError:
            continue  # a split that it does not have
        if not source.infos:
            continue
        content = (list(source.infos), load(source, 0).video.numpy().tobytes(), load(source, 0).caption)
        before, there = known.setdefault(source.fingerprint(), (words, content))
        require(there == content, f"the clips of {words} are not those of {before}, but have the same fingerprint")


@CONTRACT.law
def an_epoch_is_a_function_of_seed_and_number(spec: str) -> None:
    """``order`` names clips that are there, the same again for the same seed, and no visit of a clip twice."""
    source = make(spec)
    seen: set[tuple[int, int]] = set()
    for epoch in range(3):
        with no_global_draws("ordering an epoch"):
            members = source.order(5, epoch)
        require(members == source.order(5, epoch), f"epoch {epoch} has another order when asked a second time")
        require(members, f"epoch {epoch} is empty")
        strange = [index for index, _ in members if not 0 <= index < len(source.infos)]
        require(not strange, f"epoch {epoch} names clip {strange[:1]} of {len(source.infos)}")
        again = sorted(seen.intersection(members) | {one for one in members if members.count(one) > 1})
        require(not again, f"epoch {epoch} has the (clip, visit) {again[:1]} again; its draws would repeat themselves")
        seen.update(members)


@CONTRACT.law
def refuses_what_it_does_not_have(spec: str) -> None:
    """A window longer than the clip raises; what ``refusal`` lets pass is read, and what it refuses raises."""
    source = make(spec)
    for index in indices(source):
        info, fits = source.infos[index], crop_of(source, index)
        said = source.refusal(index, fits)
        require(said is None, f"clip {info.id!r}: refusal says {said!r} of a window that can be read")
        if info.frames > ENDLESS:
            continue
        long = Crop(VideoSize(info.frames + 8, *fits.size[1:]))
        try:
            clip = load(source, index, crop=long)
        except SoraError:
            continue
        told = (
            f"clip {info.id!r} has {info.frames} frames, but gives {len(clip.video)} when asked for {long.size.frames}"
        )
        require(False, f"{told}; raise a DecodeError")
