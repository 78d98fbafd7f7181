"""The clips of a manifest, of any style that the field writes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from lightning_sora.data import decode
from lightning_sora.data.manifest import ClipRow, read_manifest
from lightning_sora.data.picture import COLOURS
from lightning_sora.data.places import DecodeError, MediaPath
from lightning_sora.data.quarantine import banned_among
from lightning_sora.data.records import SPLITS
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source
from lightning_sora.data.sources.folder import assign_splits, ends_of, fingerprint_of, listed
from lightning_sora.data.storage import ArchiveMember, RemoteFile, is_remote, located
from lightning_sora.data.window import Region, misfit, read_window
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.spacetime import Crop

log = logging.getLogger(__name__)

ON_ERROR = ("skip", "raise")
RATE_SLACK = 0.05  # manifests round rates, and those of a variable rate are averages


@SOURCES.register("manifest")
class ManifestSource(Source):
    """Clips that a manifest lists: a table, a list, a tar, a folder of one of these, or the URL of one.

    Sizes that the manifest tells are believed until a clip is read: one that turns out otherwise is refused then, as
    unreadable; of one that turns out shorter, what still fits is read. What the manifest does not tell is probed.
    Splits are those that it names, and otherwise as of the source "folder".

    Args:
        root: the manifest.
        split: "train", "val" or "test".
        seed: accepted by contract; nothing here depends on it.
        style: of the manifest; "auto" finds out.
        held_out: the share of clips that val and test each take out of train where nothing names them.
        quarantine: a list of ``lightning-sora data check``; what is on it is left out.
        on_error: what to do with files that cannot be probed: "skip" leaves them out with a warning, "raise" stops.
        colours: how YUV becomes RGB: "exact", or "fast" at a cost in pixels that
            :func:`~lightning_sora.data.decode.read_clip` states. Part of the fingerprint.
        confined: refuse a manifest that names files out of its own folder, but for those at public addresses of the
            web. None: where it comes from elsewhere, which is a URL. A local manifest may name any file and address.

    Attributes:
        style: as found.
        failures: clip -> reason, of those left out.

    Raises:
        SoraError: no manifest, wrong columns, nothing usable.
        DecodeError: a file cannot be probed and ``on_error`` is "raise".
    """

    def __init__(
        self,
        *,
        root: str | None,
        split: str = "train",
        seed: int = 0,
        style: str = "auto",
        held_out: float = 0.05,
        quarantine: str | None = None,
        on_error: str = "skip",
        colours: str = "exact",
        confined: bool | None = None,
    ) -> None:
        if root is None:
            raise SoraError("source 'manifest' needs a root; give the manifest, as in --data.root=PATH")
        if split not in SPLITS or on_error not in ON_ERROR or not 0 < held_out < 0.5:
            raise SoraError(
                f"split={split!r} must be of {', '.join(SPLITS)}, on_error={on_error!r} of {', '.join(ON_ERROR)} and "
                f"held_out={held_out} between 0 and 0.5"
            )
        if colours not in COLOURS:
            raise SoraError(f"colours={colours!r} must be one of {', '.join(COLOURS)}")
        self.root, self.split, self.colours = root, split, colours
        self.style, rows = read_manifest(located(root), style, confined)
        banned = banned_among([row.id for row in rows], quarantine)
        kept = {row.id: row for row in rows if row.id not in banned}
        found, self.failures = _described(list(kept.values()), on_error)
        self.failures |= {row.id: f"quarantined: {banned[row.id]}" for row in rows if row.id in banned}
        if self.failures:
            log.warning(
                "%d of %d clips of %s are left out: %s", len(self.failures), len(rows), root, listed(self.failures)
            )
        if not found:
            raise SoraError(f"no usable clip in {root}: {listed(self.failures)}")
        splits = assign_splits({i: kept[i].split for i in found}, found, held_out)
        self.rows = [kept[i] for i in found if split in splits[i]]
        self.infos: Sequence[ClipInfo] = [_info(row, found[row.id]) for row in self.rows]

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        row, info = self.rows[index], self.infos[index]
        place = media_of(row)
        true = _probed(place)
        info, reason = _readable(row, info, true, crop)
        if reason is not None:
            raise DecodeError(f"{place}: {reason}")
        region = None if row.crop is None else Region(row.crop[0], row.crop[1], true.height, true.width)
        video = read_window(
            place, info, crop, generator=generator, centred=self.split != "train",
            # By the file's rate: the manifest's may be rounded, which moves a late cut by whole frames.
            start_seconds=row.start_frame / true.fps, region=region, colours=self.colours,
        )  # fmt: skip
        return Clip(video, info.caption, crop.fps or info.fps, alternatives=info.alternatives)

    def refusal(self, index: int, crop: Crop) -> str | None:
        row = self.rows[index]
        place = media_of(row)
        try:
            return _readable(row, self.infos[index], _probed(place), crop)[1]
        except DecodeError as problem:
            return str(problem).removeprefix(shown(f"{place}: "))

    def fingerprint(self) -> str:
        """Hash of the rows of the split, with size and 64 KiB of either end of every local file; remote ones by URL."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(f"manifest {self.split}{fingerprint_of(self.colours)}".encode(), digest_size=16)
        for row, info in zip(self.rows, self.infos, strict=True):
            told = [info.id, info.frames, info.height, info.width, info.fps, info.caption, info.alternatives]
            digest.update(json.dumps([*told, row.start_frame, row.crop]).encode())
            place = media_of(row)
            holder = place.archive if isinstance(place, ArchiveMember) else place
            if isinstance(holder, RemoteFile):
                digest.update(str(place).encode())  # a question to the store for each clip would take too long
                continue
            size, ends = ends_of(place)
            digest.update(f"{size}".encode() + ends)
        return digest.hexdigest()


def media_of(row: ClipRow) -> Path | RemoteFile | ArchiveMember:
    """What is to be opened."""
    if isinstance(row.place, ArchiveMember | RemoteFile):
        return row.place
    return RemoteFile(str(row.place)) if is_remote(row.place) else Path(row.place)


def _readable(row: ClipRow, info: ClipInfo, true: decode.VideoInfo, crop: Crop) -> tuple[ClipInfo, str | None]:
    """The clip with no more frames than its file has, and why a window cannot be read, if it cannot.

    That a manifest counts a frame too many is common, and no reason to refuse what is there.
    """
    there = min(info.frames, true.frames - row.start_frame)
    short = replace(info, frames=max(1, there))
    reason = disagreement(replace(row, frames=None), true)
    if reason is None and misfit(short, crop) is not None:
        reason = disagreement(row, true) or misfit(short, crop)
    return short, reason


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
    return f"{place.length if isinstance(place, ArchiveMember) else place.stat().st_size} bytes"


@lru_cache(maxsize=1 << 16)
def _probe(place: Hashable, state: tuple[int, int] | None) -> decode.VideoInfo:
    return decode.probe(place)  # type: ignore[arg-type]


def _probed(place: MediaPath) -> decode.VideoInfo:
    """What a file is, asked once; a changed file is asked anew, but for one at a URL."""
    assert isinstance(place, Hashable)
    held = place.archive if isinstance(place, ArchiveMember) else place
    if not isinstance(held, Path) or not held.is_file():
        return _probe(place, None)
    told = held.stat()
    return _probe(place, (told.st_size, told.st_mtime_ns))


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
            true = _probed(place)
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
