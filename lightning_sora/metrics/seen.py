"""Which clips an evaluation was given: what stands for them in its protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sora.metrics.clip_lists import ClipListMetric
from lightning_sora.metrics.extractors.base import Clip


class Seen(ClipListMetric):
    """Which clips a side has: hashes of ids and contents, and sizes; from any number of processes."""

    def __init__(self) -> None:
        super().__init__()
        for name, width in (("ids", 0), ("contents", 0), ("sizes", 4)):
            shape = (0, width) if width else (0,)
            self.add_list(name, torch.zeros(shape, dtype=torch.float64 if width else torch.int64))

    def update(
        self, ids: Sequence[str], clips: Sequence[Clip], contents: Sequence[str], fps: Sequence[float | None]
    ) -> None:
        """Adds clips."""
        sizes = [[*clip.shape[:3], 0.0 if rate is None else rate] for clip, rate in zip(clips, fps, strict=True)]
        self.ids.append(self.hashes(ids))
        self.contents.append(self.hashes(contents))
        self.sizes.append(torch.tensor(sizes, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """All of it, as torchmetrics gives it: of a single clip, plain numbers."""
        return {name: self.collected(name).cpu() for name in self._empty}

    def known(self) -> dict[str, Tensor]:
        """All of it: a row a clip."""
        return {name: rows.view(-1, *self._empty[name].shape[1:]) for name, rows in self.compute().items()}


def sizes_told(rows: Tensor) -> list[str]:
    """The different sizes, in words."""
    found = {tuple(row) for row in rows.tolist()}
    return [
        f"{frames:g}x{height:g}x{width:g}" + (f" at {fps:g} fps" if fps else "")
        for frames, height, width, fps in sorted(found)
    ]


def clip_digest(clip: Clip) -> str:
    """A digest of a clip's pixels and size, whatever file they came from."""
    values = clip.detach().cpu().contiguous()
    return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()
