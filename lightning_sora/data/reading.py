"""Reads planned batches: decode, resize, cut into patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from lightning_sora.data.blend import CaptionBlend
from lightning_sora.data.plan import PlannedBatch
from lightning_sora.data.sources import Clip, DecodeError, Source
from lightning_sora.errors import SoraError
from lightning_sora.randomness import generator
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout, patchify


class PlannedClips(Dataset[SpacetimeBatch]):
    """The batches of a plan, as a data set whose keys are planned batches.

    Args:
        grids: index of a clip -> the grid that it is used at, for clips that can be used.
        patch: pixels per token.
        blend: captions that replace the source's own.
        on_error: "skip" replaces a clip that cannot be read by the next of its size and reports it
            in the batch; "raise" stops.

    Raises:
        SoraError: an unknown ``on_error``; latents whose stride does not divide the patch.
    """

    def __init__(
        self,
        source: Source,
        grids: Mapping[int, TokenGrid],
        patch: PatchSize,
        *,
        fps: float | None,
        seed: int,
        blend: CaptionBlend | None = None,
        on_error: str = "skip",
    ) -> None:
        if on_error not in ("skip", "raise"):
            raise SoraError(f"on_error={on_error!r} must be 'skip' or 'raise'")
        if any(p % s for p, s in zip(patch, source.vae_stride, strict=True)):
            raise SoraError(
                f"data.patch={list(patch)} is no multiple of {list(source.vae_stride)}, the stride of the VAE that "
                "made the latents; give the patch that they were made with"
            )
        self.source, self.grids, self.patch = source, dict(grids), patch
        self.rows = PatchSize(*(p // s for p, s in zip(patch, source.vae_stride, strict=True)))
        self.fps, self.seed, self.on_error, self.blend = fps, seed, on_error, blend

    def __getitem__(self, planned: PlannedBatch) -> SpacetimeBatch:
        clips, infos, skipped = [], [], []
        for index, grid, visit in zip(planned.clips, planned.grids, planned.visits, strict=True):
            used, clip, failures = self._read(index, grid, visit)
            clips.append(self._captioned(clip, used, visit))
            infos.append(self.source.infos[used])
            skipped.extend(failures)
        facts = tuple(c.facts for c in clips if c.facts is not None)
        layout = TokenLayout.pack(planned.grids) if planned.packed else TokenLayout(planned.grids)
        return SpacetimeBatch(
            patches=layout.join([patchify(clip.video, self.rows) for clip in clips]),
            layout=layout,
            patch=self.rows,
            captions=tuple(clip.caption for clip in clips),
            ids=tuple(info.id for info in infos),
            visits=planned.visits,
            fps=tuple(clip.fps for clip in clips),
            space=self.source.space,
            vae_hash=self.source.vae_hash,
            facts=facts if len(facts) == len(clips) else None,
            skipped=tuple(skipped),
            sources=tuple(info.source for info in infos) if any(info.source for info in infos) else (),
            budget=planned.budget,
        )

    def __len__(self) -> int:
        """The clips of the split that are used, on all ranks together."""
        return len(self.grids)

    def _captioned(self, clip: Clip, index: int, visit: int) -> Clip:
        clip_id = self.source.infos[index].id
        if self.blend is not None:
            found = self.blend.caption(clip_id, visit, self.seed)
            return clip if found is None else replace(clip, caption=found)
        if not clip.alternatives:
            return clip
        captions = (clip.caption, *clip.alternatives)
        key = generator(self.seed, "caption", clip_id, visit)
        return replace(clip, caption=captions[int(torch.randint(len(captions), (), generator=key))])

    def _read(self, index: int, grid: TokenGrid, visit: int) -> tuple[int, Clip, list[str]]:
        failures: list[str] = []
        for candidate in self._candidates(index, grid):
            try:
                key = generator(self.seed, "crop", self.source.infos[candidate].id, visit)
                clip = self.source.load(candidate, *grid.size(self.patch), generator=key, fps=self.fps)
            except DecodeError as problem:
                if self.on_error == "raise":
                    raise
                failures.append(str(problem))
            else:
                return candidate, clip, failures
        raise SoraError(f"no clip of this size can be read; first failure: {failures[0]}")

    def _candidates(self, index: int, grid: TokenGrid) -> Iterator[int]:
        """The clip itself, then the others of its size in order, from the next one round."""
        yield index
        others = [i for i in self.grids if self.grids[i] == grid and i != index]
        yield from sorted(others, key=lambda i: (i < index, i))
