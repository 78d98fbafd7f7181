"""A folder of real videos and images."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cached_property
from pathlib import Path

import torch

from lightning_sora.data.collection import open_collection
from lightning_sora.data.finding import find_media
from lightning_sora.data.manifest.folder import Folder
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo
from lightning_sora.data.sources.listed import ListedSource, ends_of, fingerprint_of
from lightning_sora.data.window import read_window
from lightning_sora.errors import SoraError
from lightning_sora.names import local_path, shown
from lightning_sora.spacetime import Crop

log = logging.getLogger(__name__)


@SOURCES.register("folder")
class FolderSource(ListedSource):
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
        super().__init__(split, held_out, quarantine, on_error, colours)
        style, self.root = Folder(captions), local_path(root)
        found = find_media(self.root)
        self.passed_over = found.passed_over
        if not found.names and (reader := open_collection(self.root).source) != "folder":
            raise SoraError(
                f"{shown(str(self.root))} holds no video or image by itself, but what the source {reader!r} reads; set "
                f"data.source={reader}"
            )
        self.take(style.rows(found), shown(str(self.root)))
        # Where a name is no text, the id is another.
        self._names = {info.id: name for info in self.infos if (name := found.names[info.id]) != info.id}
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
