"""Reads clips and batches of them: decode, resize, put end to end."""

from __future__ import annotations

import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Dataset

from lightning_sora.data.blend import CaptionBlend
from lightning_sora.data.plan import PlannedBatch
from lightning_sora.data.sources import Clip, DecodeError, Source
from lightning_sora.errors import SoraError
from lightning_sora.lifeline import end_with_parent
from lightning_sora.randomness import generator
from lightning_sora.redaction import RedactedStream
from lightning_sora.spacetime import Crop, PatchSize, SpacetimeBatch, TokenGrid, TokenLayout

#: What torch says of a loader's worker that is gone.
_GONE = re.compile(r"(?:DataLoader worker .*|Pin memory thread )(?:exited unexpectedly|is killed by signal)")


def reader_died(problem: BaseException) -> bool:
    """Whether this is the death of a process that reads clips.

    Where its connection breaks before the system has it down as dead, torch passes on the broken connection alone.
    """
    if isinstance(problem, (ConnectionError, EOFError)):
        return any(frame.name == "_try_get_data" for frame in traceback.extract_tb(problem.__traceback__))
    return isinstance(problem, RuntimeError) and _GONE.search(str(problem)) is not None


def start_reader(worker: int) -> None:
    """Makes a process that reads clips end with the training alone, and print no secret, such as a part of a URL."""
    end_with_parent()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # also where its terminal closes: the training ends its step
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)


@dataclass(frozen=True)
class Read:
    """A clip that was read.

    Attributes:
        index: in the source.
        grid: that it is used at.
        visit: how often it was read before.
    """

    index: int
    grid: TokenGrid
    visit: int
    clip: Clip


def read_clip(source: Source, index: int, crop: Crop, *, seed: int, visit: int = 0) -> Clip:
    """Reads the window of a clip that one visit gets, the same for training, ``caption`` and ``data cache``.

    Args:
        seed: of its first frame and the place of its cut, which each clip draws by itself at each visit.

    Raises:
        DecodeError: the clip cannot be read.
    """
    return source.load(index, crop, generator=generator(seed, "crop", source.infos[index].id, visit))


def batch_of(
    source: Source, read: Sequence[Read], planned: PlannedBatch, patch: PatchSize, skipped: Sequence[str] = ()
) -> SpacetimeBatch:
    """Puts clips into a batch, with what is known of them.

    Args:
        read: at least one.
        planned: that they were read for.
        patch: what one row covers: pixels, or positions of the latent.
        skipped: why others were not read.
    """
    clips, grids = [one.clip for one in read], tuple(one.grid for one in read)
    infos = [source.infos[one.index] for one in read]
    facts = tuple(clip.facts for clip in clips if clip.facts is not None)
    layout = TokenLayout.pack(grids) if planned.packed else TokenLayout(grids)
    return SpacetimeBatch.of(
        [clip.video for clip in clips],
        layout=layout,
        patch=patch,
        captions=tuple(clip.caption for clip in clips),
        ids=tuple(info.id for info in infos),
        visits=tuple(one.visit for one in read),
        fps=tuple(clip.fps for clip in clips),
        space=source.space,
        vae_hash=source.vae_hash,
        facts=facts if len(facts) == len(clips) else None,
        skipped=tuple(skipped),
        sources=tuple(info.source for info in infos) if any(info.source for info in infos) else (),
        budget=planned.budget,
        mean_clips=planned.mean_clips,
        mean_tokens=planned.mean_tokens,
        unchanging=source.unchanging,
    )


class PlannedClips(Dataset[SpacetimeBatch]):
    """The batches of a plan, as a data set whose keys are planned batches.

    Args:
        grids: index of a clip -> the grid that it is used at, for clips that can be used.
        patch: pixels per token.
        blend: captions that replace the source's own.
        on_error: "skip" replaces a clip that cannot be read by the next of its size, or else by one that is larger, and
            reports it in the batch; where there is none, the batch is smaller. "raise" stops.

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
        self.resizes = source.space == "pixel"

    def __getitem__(self, planned: PlannedBatch) -> SpacetimeBatch:
        read: list[Read] = []
        skipped: list[str] = []
        for index, grid, visit in zip(planned.clips, planned.grids, planned.visits, strict=True):
            # Left out where none is as large, as for the one largest clip of all.
            read += self._read(self._as_large(index, grid), visit, skipped)
        if not read:
            read = self._read(self._any(planned), planned.visits[0], skipped)
        if not read:
            raise SoraError(f"no clip of this size can be read; first failure: {skipped[0]}")
        return batch_of(self.source, read, planned, self.rows, skipped)

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

    def _read(self, candidates: Iterable[tuple[int, TokenGrid]], visit: int, skipped: list[str]) -> list[Read]:
        """The first that can be read, if any; why the others cannot is added to ``skipped``."""
        for index, grid in candidates:
            try:
                crop = Crop(grid.size(self.patch), self.fps)
                clip = read_clip(self.source, index, crop, seed=self.seed, visit=visit)
            except DecodeError as problem:
                if self.on_error == "raise":
                    raise
                skipped.append(str(problem))
            else:
                return [Read(index, grid, visit, self._captioned(clip, index, visit))]
        return []

    def _as_large(self, index: int, grid: TokenGrid) -> Iterator[tuple[int, TokenGrid]]:
        """The clip itself, then others that fill its size: first those of just this size, from the next one round."""
        yield index, grid

        def fills(other: int) -> bool:
            return all(own >= wanted for own, wanted in zip(self.grids[other], grid, strict=True))

        # Latents have one size each.
        fitting = [i for i in self.grids if i != index and (self.grids[i] == grid or (self.resizes and fills(i)))]
        yield from ((i, grid) for i in sorted(fitting, key=lambda i: (self.grids[i] != grid, i < index, i)))

    def _any(self, planned: PlannedBatch) -> Iterator[tuple[int, TokenGrid]]:
        """Others of any size, from the next one round, that are no larger than what was planned."""
        first = planned.clips[0]
        others = [i for i, own in self.grids.items() if own.tokens <= planned.tokens and i not in planned.clips]
        yield from ((i, self.grids[i]) for i in sorted(others, key=lambda i: (i < first, i)))
