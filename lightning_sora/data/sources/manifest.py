"""The clips of a manifest, of any style that the field writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cached_property

import torch

from lightning_sora.data import decode
from lightning_sora.data.manifest import ClipRow, read_manifest
from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo
from lightning_sora.data.sources.listed import ListedSource, disagreement, ends_of, fingerprint_of, media_of, probed
from lightning_sora.data.storage import ArchiveMember, RemoteFile, located
from lightning_sora.data.window import Region, misfit, read_window
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.spacetime import Crop


@SOURCES.register("manifest")
class ManifestSource(ListedSource):
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
        super().__init__(split, held_out, quarantine, on_error, colours)
        self.style, rows = read_manifest(located(root), style, confined)
        self.rows = self.take(rows, root)

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        row, info = self.rows[index], self.infos[index]
        place = media_of(row)
        true = probed(place)
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
            return _readable(row, self.infos[index], probed(place), crop)[1]
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
