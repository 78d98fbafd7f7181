"""Clips in files that rows name: what the sources "folder" and "manifest" share."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lightning_sora.data import decode
from lightning_sora.data.frame_folder import FrameFolder
from lightning_sora.data.manifest import ClipRow
from lightning_sora.data.picture import COLOURS
from lightning_sora.data.places import DecodeError, Media, MediaPath
from lightning_sora.data.quarantine import banned_among
from lightning_sora.data.records import SPLITS
from lightning_sora.data.sources.base import ClipInfo, Source
from lightning_sora.data.storage import ArchiveMember, RemoteFile, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

log = logging.getLogger(__name__)

ON_ERROR = ("skip", "raise")
SHOWN_REASONS = 10
BRIEF = 16  # frames
FINGERPRINTED_BYTES = 1 << 16  # of each end of a file
RATE_SLACK = 0.05  # manifests round rates, and those of a variable rate are averages


class ListedSource(Source):
    """Clips in files that rows name.

    Attributes:
        split: "train", "val" or "test".
        colours: how YUV becomes RGB.
        failures: clip -> reason, of those left out.
        passed_over: the files of unknown kinds in words; empty if there are none.

    Raises:
        SoraError: an option that cannot be.
    """

    def __init__(self, split: str, held_out: float, quarantine: str | None, on_error: str, colours: str) -> None:
        if split not in SPLITS:
            raise SoraError(f"split={split!r} must be one of {', '.join(SPLITS)}")
        if on_error not in ON_ERROR:
            raise SoraError(f"on_error={on_error!r} must be 'skip' or 'raise'")
        if not 0 < held_out < 0.5:
            raise SoraError(f"held_out={held_out} must lie between 0 and 0.5: val and test take that share each")
        if colours not in COLOURS:
            raise SoraError(f"colours={colours!r} must be one of {', '.join(COLOURS)}")
        self.split, self.colours = split, colours
        self._held_out, self._quarantine, self._on_error = held_out, quarantine, on_error
        self.failures: dict[str, str] = {}
        self.passed_over = ""

    def take(self, rows: Sequence[ClipRow], root: str) -> list[ClipRow]:
        """Describes the clips of rows that can be used, and keeps those of the split, which are returned.

        Args:
            root: where the rows are from, for messages.

        Raises:
            SoraError: none can be used.
            DecodeError: one cannot be probed, and ``on_error`` is "raise".
        """
        banned = banned_among([row.id for row in rows], self._quarantine)
        usable = {row.id: row for row in rows if row.id not in banned}
        found, self.failures = _described(list(usable.values()), self._on_error)
        self.failures |= {row.id: f"quarantined: {banned[row.id]}" for row in rows if row.id in banned}
        also = f"; {self.passed_over}" if self.passed_over else ""
        if not found:
            raise SoraError(f"no usable video or image in {root}: {_listed(self.failures)}{also}")
        if self.failures:
            log.warning(
                "%d of %d clips of %s are left out: %s", len(self.failures), len(rows), root, _listed(self.failures)
            )
        if self.passed_over:
            log.warning("files under %s are passed over: %s", root, self.passed_over)
        splits = assign_splits({i: usable[i].split for i in found}, found, self._held_out)
        kept = [usable[i] for i in found if self.split in splits[i]]
        self.infos = [_info(row, found[row.id]) for row in kept]
        return kept


def media_of(row: ClipRow) -> Path | RemoteFile | ArchiveMember | FrameFolder:
    """What is to be opened."""
    if isinstance(row.place, ArchiveMember | RemoteFile | FrameFolder):
        return row.place
    return RemoteFile(str(row.place)) if is_remote(row.place) else Path(row.place)


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


def disagreement(row: ClipRow, true: decode.VideoInfo) -> str | None:
    """What a manifest says of a file that is not so, in words, or None."""
    told = {"frames": row.frames, "height": row.height, "width": row.width}
    there = {"frames": true.frames - row.start_frame, "height": true.height, "width": true.width}
    # Frame counts of containers are estimates; sizes are not.
    wrong = [
        (f"{name} {value}", f"{there[name]}")
        for name, value in told.items()
        if value is not None and (there[name] < value if name == "frames" else there[name] != value)
    ]
    if row.fps is not None and true.frames > 1 and abs(row.fps / true.fps - 1) > RATE_SLACK:
        wrong.append((f"fps {row.fps:g}", f"{true.fps:g}"))
    if wrong:
        said, found = zip(*wrong, strict=True)
        return f"the manifest says {', '.join(said)}, but it has {', '.join(found)}"
    if there["frames"] < 1:
        return f"its cut begins at frame {row.start_frame}, but it has {true.frames}"
    if row.crop is not None and (row.crop[2] > true.width or row.crop[3] > true.height):
        return f"its crop ends at {row.crop[2]}, {row.crop[3]}, but the picture has {true.width} x {true.height}"
    return None


def assign_splits(
    named: Mapping[str, str | None], found: Mapping[str, decode.VideoInfo], held_out: float
) -> dict[str, tuple[str, ...]]:
    """The splits of every clip; the rule is told at :class:`~lightning_sora.data.sources.FolderSource`."""
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


def _info(row: ClipRow, video: decode.VideoInfo) -> ClipInfo:
    first, *others = row.captions or ("",)
    height, width = video.height, video.width
    if row.crop is not None:
        height, width = row.crop[3] - row.crop[1], row.crop[2] - row.crop[0]
    return ClipInfo(
        row.id, video.frames, height, width, video.fps, first, row.split, alternatives=tuple(others),
        content=_content(row),
    )  # fmt: skip


def _content(row: ClipRow) -> str:
    place = media_of(row)
    if isinstance(place, RemoteFile):
        return ""  # a question to the store for each clip would take too long
    if isinstance(place, FrameFolder):
        return f"{len(place.files)} frames"
    return f"{place.length if isinstance(place, ArchiveMember) else place.stat().st_size} bytes"


@lru_cache(maxsize=1 << 18)
def _probe(place: Hashable, state: tuple[int, ...] | None) -> decode.VideoInfo | DecodeError:
    try:
        return decode.probe(place)  # type: ignore[arg-type]
    except DecodeError as problem:
        if state is None:  # what a store cannot give now it may give later
            raise
        return problem


def probed(place: MediaPath) -> decode.VideoInfo:
    """What a file is, asked once for all splits; a changed file is asked anew, but for one at a URL.

    Raises:
        DecodeError: it cannot be read.
    """
    assert isinstance(place, Hashable)
    held = place.archive if isinstance(place, ArchiveMember) else place
    state: tuple[int, ...] | None = None
    if isinstance(held, Path) and held.is_file():
        told = held.stat()
        state = (told.st_size, told.st_mtime_ns)
    elif isinstance(held, FrameFolder):
        files = held.files
        # The first image is the one that is decoded; a folder's own time stays where a file is overwritten.
        told = files[0].stat()
        state = (len(files), held.folder.stat().st_mtime_ns, told.st_size, told.st_mtime_ns)
    answer = _probe(place, state)
    if isinstance(answer, DecodeError):
        raise answer
    return answer


def _described(rows: Sequence[ClipRow], on_error: str) -> tuple[dict[str, decode.VideoInfo], dict[str, str]]:
    """What each clip is, as the manifest tells or as the file does."""

    def look(row: ClipRow) -> decode.VideoInfo | DecodeError:
        place = media_of(row)
        if isinstance(place, Path) and not os.path.isfile(place):  # which no name is too long for
            return DecodeError(f"{place}: no such file")
        rate = decode.STILL_FPS if row.frames == 1 else row.fps
        if row.frames is not None and row.height is not None and row.width is not None and rate is not None:
            return decode.VideoInfo(row.frames, row.height, row.width, rate)
        try:
            true = probed(place)
        except DecodeError as problem:
            return problem
        if lie := disagreement(replace(row, frames=None), true):
            return DecodeError(f"{place}: {lie}")
        there = true.frames - row.start_frame
        frames = min(row.frames or there, there)
        return decode.VideoInfo(frames, row.height or true.height, row.width or true.width, row.fps or true.fps)

    found: dict[str, decode.VideoInfo] = {}
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row, answer in zip(rows, pool.map(look, rows), strict=True):
            if isinstance(answer, decode.VideoInfo):
                found[row.id] = answer
            elif on_error == "raise":
                pool.shutdown(cancel_futures=True)
                raise answer
            else:
                failures[row.id] = str(answer).removeprefix(shown(f"{media_of(row)}: "))
    return found, failures


def _listed(failures: Mapping[str, str]) -> str:
    """Some of the failures with their reasons, and how many more there are."""
    shown = [f"{name} ({reason})" for name, reason in list(failures.items())[:SHOWN_REASONS]]
    more = len(failures) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
