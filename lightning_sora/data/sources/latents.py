"""Latents that ``lightning-sora data cache`` made, as a source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_sora.data import latents as cache
from lightning_sora.data import storage
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import Crop, PatchSize, VideoSize

#: What a header must tell to train on its latents.
NEEDED = ("vae_hash", "vae_stride", "dtype", "splits", "clips", "data")


@SOURCES.register("latents")
class LatentSource(Source):
    """Clips as latents of a frozen VAE, each at the size that it was cached at.

    Every latent is verified when a process first reads it (see :class:`~lightning_sora.data.latents.LatentReader`).

    Args:
        root: the folder of the cache, or its URL.
        split: "train", "val" or "test".
        seed: accepted by contract; nothing here depends on it.

    Raises:
        SoraError: no finished cache there, or its parts disagree.
    """

    space = "latent"

    def __init__(self, *, root: str | None, split: str = "train", seed: int = 0) -> None:
        if root is None:
            raise SoraError("source 'latents' needs a root; give the folder that `lightning-sora data cache` wrote")
        root = str(storage.located(root))
        self.root, self.split = root, split
        self.reader = cache.LatentReader(root)
        self.header = cache.read_header(root)
        if missing := [name for name in NEEDED if name not in self.header]:
            raise SoraError(
                f"{root}/{cache.HEADER} is damaged: it lacks {', '.join(missing)}; delete it and run `data cache` again"
            )
        if split not in self.header["splits"]:
            raise SoraError(
                f"the cache {root} has no split {split!r}, only {', '.join(self.header['splits'])}; cache that too"
            )
        self.vae_hash, self.vae_stride = self.header["vae_hash"], PatchSize.of(self.header["vae_stride"])
        if type(self.header["clips"].get(split)) is not int:
            raise SoraError(
                f"{root}/{cache.HEADER} is damaged: it does not count the clips of {split!r}; delete it and run "
                "`data cache` again"
            )
        self.rows = cache.read_table(root, split)
        self._check_shards()
        self.infos: Sequence[ClipInfo] = [
            ClipInfo(
                row["id"], row["own_frames"], row["own_height"], row["own_width"], row["own_fps"], row["caption"],
                alternatives=tuple(row["alternatives"]), source=row["source"], content=row["content"],
            )
            for row in self.rows
        ]  # fmt: skip

    def _check_shards(self) -> None:
        """Every shard is there, whole, of this VAE, and as the table says, before anything is trained."""
        if storage.is_remote(self.root):
            return  # a question to the store for each shard; reading tells
        wanted: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            wanted.setdefault(row["shard"], []).append(row)
        for name, rows in wanted.items():
            path: Any = storage.join(self.root, f"shards/{name}")
            if not os.path.isfile(path):
                raise SoraError(f"{path} is missing; run `lightning-sora data cache` again")
            if cache.shard_rows(path, str(self.vae_hash)) != rows:
                raise SoraError(f"{path} and its table disagree; delete both and run `lightning-sora data cache` again")

    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        # That of all clips of the source, so that those that are cached come as they would from pixels.
        drawn = torch.randperm(
            self.header["clips"][self.split], generator=coarse_generator(seed, "order", epoch)
        ).tolist()
        indices = {row["place"]: index for index, row in enumerate(self.rows)}
        return [(indices[place], epoch) for place in drawn if place in indices]

    def prepare(self, crops: Mapping[int, Crop]) -> None:
        """Refuses windows that are not those of the cache, before anything is trained."""
        for index, crop in crops.items():
            self._check(index, crop)

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        self._check(index, crop)
        row, info = self.rows[index], self.infos[index]
        return Clip(
            self.reader.read(row),
            info.caption,
            row["fps"],
            facts_of(row["facts"]),
            alternatives=info.alternatives,
        )

    def _check(self, index: int, crop: Crop) -> None:
        row = self.rows[index]
        size = VideoSize(row["frames"], row["height"], row["width"])
        if crop.size != size or crop.fps not in (None, row["fps"]):
            raise SoraError(
                f"{row['id']} is cached as {size} at {row['fps']:g} frames per second, but {crop.size} at "
                f"{crop.fps or row['fps']:g} are asked for; train at the size of the cache, or cache at this one"
            )

    def fingerprint(self) -> str:
        told = [self.vae_hash, self.header["data"], self.header["dtype"], [row["id"] for row in self.rows]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def facts_text(facts: Mapping[str, Any] | None) -> str:
    """Facts as JSON; empty for none."""
    return "" if facts is None else json.dumps(facts, sort_keys=True)


def facts_of(text: str) -> dict[str, Any] | None:
    """The inverse of :func:`facts_text`; tuples come back as lists."""
    return json.loads(text) if text else None
