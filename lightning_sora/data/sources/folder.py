"""A folder of real videos and images."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch

# The module, not its names: either of the two may be imported first.
from lightning_sora.data import decode
from lightning_sora.data.captions import TABLES, Note, read_sidecar, read_tables
from lightning_sora.data.finding import Found, find_media
from lightning_sora.data.picture import COLOURS
from lightning_sora.data.places import DecodeError, Media
from lightning_sora.data.quarantine import banned_among
from lightning_sora.data.records import SPLIT_NAMES, SPLITS
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source
from lightning_sora.data.window import read_window
from lightning_sora.errors import SoraError
from lightning_sora.names import local_path, shown
from lightning_sora.spacetime import Crop

log = logging.getLogger(__name__)

CAPTIONS = ("auto", "metadata", "sidecar", "none")
SHOWN_REASONS = 10
BRIEF = 16  # frames
FINGERPRINTED_BYTES = 1 << 16  # of each end of a file


@SOURCES.register("folder")
class FolderSource(Source):
    """Videos and images under a folder, at any depth, with captions beside them if there are any.

    **Captions**: ``metadata.csv``, ``.jsonl`` or ``.parquet`` (columns ``file_name`` and ``text``,
    ``caption`` or ``prompt``, a text or a list of texts of equal standing; several tables at several depths are fine),
    else ``clip.txt`` beside ``clip.mp4``, else the empty caption.

    **Splits**, in this order: the tables' column ``split``; folders ``train``, ``val`` (or ``validation``),
    ``test`` right under the root; what neither names belongs to train. Whichever of val and test nobody
    names is then taken out of train: the first clips in the order of a hash of their ids, a fixed share
    and at least one of stills, of videos under 16 frames, and of longer ones (of a kind with enough to
    divide). The seed has no part in this, so that runs stay comparable. Fewer than three clips cannot
    be divided: all splits then hold all of them, with a warning.

    Windows start at a frame drawn from those where they fit. Pictures are scaled to cover the asked size and
    cut: at a drawn place in train, in the middle elsewhere.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        seed: accepted by contract; nothing here depends on it.
        captions: "auto" (tables, then sidecars), "metadata" (tables only, at least one), "sidecar", "none".
        held_out: the share of clips that val and test each take out of train where nothing names them.
        quarantine: a list of ``lightning-sora data check``; what is on it is left out.
        on_error: what to do with files that cannot be probed: "skip" leaves them out with a warning
            that counts them and gives reasons, "raise" stops at the first.
        colours: how YUV becomes RGB: "exact", or "fast" at a cost in pixels that
            :func:`~lightning_sora.data.decode.read_clip` states. Part of the fingerprint.

    Attributes:
        failures: file -> reason, of those left out.
        passed_over: the files of unknown kinds in words; empty if there are none.

    Raises:
        SoraError: no such folder, nothing usable in it, wrong metadata.
        DecodeError: a file cannot be probed and ``on_error`` is "raise".
    """

    def __init__(
        self,
        *,
        root: str | None,
        split: str = "train",
        seed: int = 0,
        captions: str = "auto",
        held_out: float = 0.05,
        quarantine: str | None = None,
        on_error: str = "skip",
        colours: str = "exact",
    ) -> None:
        if root is None:
            raise SoraError("source 'folder' needs a root; give the folder of the videos, as in --data.root=FOLDER")
        if split not in SPLITS:
            raise SoraError(f"split={split!r} must be one of {', '.join(SPLITS)}")
        if captions not in CAPTIONS:
            raise SoraError(f"captions={captions!r} must be one of {', '.join(CAPTIONS)}")
        if on_error not in ("skip", "raise"):
            raise SoraError(f"on_error={on_error!r} must be 'skip' or 'raise'")
        if not 0 < held_out < 0.5:
            raise SoraError(f"held_out={held_out} must lie between 0 and 0.5: val and test take that share each")
        if colours not in COLOURS:
            raise SoraError(f"colours={colours!r} must be one of {', '.join(COLOURS)}")
        self.root, self.split, self.colours = local_path(root), split, colours
        files = find_media(self.root)
        self.passed_over = files.passed_over
        notes = _notes(files, captions)
        banned = banned_among(files.names, quarantine)
        found, self.failures = _probe_all(files, [name for name in files.names if name not in banned], on_error)
        self.failures |= {name: f"quarantined: {banned[name]}" for name in files.names if name in banned}
        place = shown(str(self.root))
        if not found:
            reasons = listed(self.failures) if self.failures else "it holds no file of a known kind"
            also = f"; {self.passed_over}" if self.passed_over else ""
            raise SoraError(f"no usable video or image under {place}: {reasons}{also}")
        if self.failures:
            log.warning(
                "%d of %d files under %s are left out: %s",
                len(self.failures),
                len(files.names),
                place,
                listed(self.failures),
            )
        if self.passed_over:
            log.warning("files under %s are passed over: %s", place, self.passed_over)
        splits = assign_splits({i: n.split for i, n in notes.items() if i in found}, found, held_out)
        self.infos: Sequence[ClipInfo] = [
            _info(i, v, notes[i], files.path(i).stat().st_size) for i, v in sorted(found.items()) if split in splits[i]
        ]
        # Where a name is no text, the id is another.
        self._names = {info.id: name for info in self.infos if (name := files.names[info.id]) != info.id}
        silent = sum(not info.caption for info in self.infos)
        if silent and captions != "none":
            log.warning("%d of %d clips of split %r have no caption", silent, len(self.infos), split)

    def path(self, info: ClipInfo) -> Path:
        """Where a clip lies."""
        return self.root / self._names.get(info.id, info.id)

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        info = self.infos[index]
        video = read_window(
            self.path(info),
            info,
            crop,
            generator=generator,
            centred=self.split != "train",
            colours=self.colours,
        )
        return Clip(video, info.caption, crop.fps or info.fps, alternatives=info.alternatives)

    def fingerprint(self) -> str:
        """Hash of the ids, sizes, captions, and 64 KiB of either end of every clip of the split.

        Copies of a folder agree, whatever their times; a change in the middle of a file of the same
        size goes unseen.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(f"folder {self.split}{fingerprint_of(self.colours)}".encode(), digest_size=16)
        for info in self.infos:
            size, ends = ends_of(self.path(info))
            digest.update(json.dumps([info.id, size, info.caption, *info.alternatives]).encode() + ends)
        return digest.hexdigest()


def ends_of(place: Path | Media) -> tuple[int, bytes]:
    """The bytes of a file in number, and 64 KiB of either end.

    Raises:
        SoraError: it has gone, or cannot be read any more, since the source found it.
    """
    try:
        size = place.stat().st_size if isinstance(place, Path) else place.size
        with place.open("rb") if isinstance(place, Path) else place.open() as content:
            first = content.read(FINGERPRINTED_BYTES)
            content.seek(max(0, size - FINGERPRINTED_BYTES))
            return size, first + content.read(FINGERPRINTED_BYTES)
    except OSError as problem:
        raise SoraError(
            f"{shown(str(place))} cannot be read any more ({problem.strerror}): the data changed while it was looked "
            "at; start again when it is complete"
        ) from problem


def fingerprint_of(colours: str) -> str:
    """What a fingerprint says of colours: nothing of exact ones."""
    return "" if colours == "exact" else f" colours={colours}"


def _notes(files: Found, captions: str) -> dict[str, Note]:
    """A note for every file."""
    if captions == "metadata" and not files.tables:
        place = shown(str(files.root))
        raise SoraError(f"captions='metadata', but there is no {' or '.join(TABLES)} under {place}; add one")
    listed = read_tables(files.root, files.tables, files.names) if captions in ("auto", "metadata") else {}
    notes = {}
    for clip_id in files.names:
        note = listed.get(clip_id, Note(()))
        if captions == "sidecar" or (captions == "auto" and clip_id not in listed):
            note = replace(note, captions=read_sidecar(files.sidecars.get(clip_id)))
        first, *rest = clip_id.split("/")
        if note.split is None and rest:
            note = replace(note, split=SPLIT_NAMES.get(first.lower()))
        notes[clip_id] = note
    return notes


def _info(clip_id: str, video: decode.VideoInfo, note: Note, size: int) -> ClipInfo:
    first, *others = note.captions or ("",)
    return ClipInfo(
        clip_id, video.frames, video.height, video.width, video.fps, first, note.split, alternatives=tuple(others),
        content=f"{size} bytes",
    )  # fmt: skip


def assign_splits(
    named: Mapping[str, str | None], found: Mapping[str, decode.VideoInfo], held_out: float
) -> dict[str, tuple[str, ...]]:
    """The splits of every clip; the rule is told at :class:`FolderSource`."""
    splits = {i: named.get(i) or "train" for i in found}
    missing = [split for split in ("val", "test") if split not in splits.values()]
    train = [i for i, split in splits.items() if split == "train"]
    if missing and len(train) <= len(missing):
        if "train" in splits.values():
            log.warning(
                "%d clips cannot be divided: %s share them with train, so nothing is held out", len(train), missing
            )
        return {i: ("train", *missing) if split == "train" else (split,) for i, split in splits.items()}
    # Each kind by itself: a lone still or three-frame clip would be a poor judge of videos.
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for clip_id in sorted(train, key=_hash_order):
        kinds.setdefault((found[clip_id].frames == 1, found[clip_id].frames < BRIEF), []).append(clip_id)
    for kind in kinds.values():
        if len(kind) > len(missing):
            share = max(1, round(held_out * len(kind)))
            for place, split in enumerate(missing):
                splits.update(dict.fromkeys(kind[place * share : (place + 1) * share], split))
    if missing and not set(missing) <= set(splits.values()):
        # Too few of any kind alone, enough together.
        for split, clip_id in zip(missing, sorted(train, key=_hash_order), strict=False):
            splits[clip_id] = split
    return {i: (split,) for i, split in splits.items()}


def _hash_order(clip_id: str) -> bytes:
    return hashlib.blake2b(clip_id.encode(), digest_size=16).digest()


@lru_cache(maxsize=1 << 18)
def _probe(path: Path, size: int, changed: int) -> decode.VideoInfo | DecodeError:
    # The three splits of a folder each ask; a changed file is asked anew.
    try:
        return decode.probe(path)
    except DecodeError as problem:
        return problem


def _probe_all(files: Found, names: Sequence[str], on_error: str) -> tuple[dict[str, decode.VideoInfo], dict[str, str]]:
    def look(clip_id: str) -> decode.VideoInfo | DecodeError:
        path = files.path(clip_id)
        try:
            state = path.stat()
        except OSError as problem:
            return DecodeError(f"{path}: {problem.strerror}")
        return _probe(path, state.st_size, state.st_mtime_ns)

    found: dict[str, decode.VideoInfo] = {}
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for clip_id, answer in zip(names, pool.map(look, names), strict=True):
            if isinstance(answer, decode.VideoInfo):
                found[clip_id] = answer
            elif on_error == "raise":
                pool.shutdown(cancel_futures=True)
                raise answer
            else:
                failures[clip_id] = str(answer).removeprefix(shown(f"{files.path(clip_id)}: "))
    return found, failures


def listed(failures: Mapping[str, str]) -> str:
    """Some of the failures with their reasons, and how many more there are."""
    shown = [f"{name} ({reason})" for name, reason in list(failures.items())[:SHOWN_REASONS]]
    more = len(failures) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
