"""SpacetimeBatch: the one thing that passes from data to training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.spacetime.grid import PatchSize, TokenGrid, patchify
from lightning_sora.spacetime.layout import TokenLayout


@dataclass(frozen=True)
class SpacetimeBatch:
    """Clips, and how they are cut into spacetime patches, with what is known of them.

    Each clip travels once, as it is; :attr:`patches` cuts them where rows are needed.

    Attributes:
        content: pixels (uint8) or scaled latents (float) of all clips, end to end.
        layout: the tokens of each clip, and where their rows lie.
        patch: what one row covers: pixels, or positions of the latent.
        captions: one per clip; empty where there is none.
        ids: one per clip, stable across runs; keys of all per-clip randomness.
        visits: how many times each clip was seen before in this run; the second key.
        fps: frames per second of each clip.
        space: what the rows hold.
        vae_hash: of the VAE that made latent rows; None for pixels.
        facts: what the source knows of each clip (for the world: everything), else None.
        skipped: files that could not be read and were replaced, each "name: reason".
        sources: which source of a mixture each clip came from; empty where there is one only.
        budget: tokens that a full batch would have; 0 where there is no such thing.
        mean_clips, mean_tokens: of the batches of this one's epoch, on all ranks; 0 where there is no plan.
        unchanging: whether each clip has these values whenever it comes at this grid.

    Example:
        >>> import lightning_sora as ls
        >>> data = ls.SpacetimeDataModule("world(level='tiny', heldout_clips=8)", frames=9, batch_size=4)
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch.patches.shape, batch.layout.grids[0], tuple(batch.videos()[0].shape)
        (torch.Size([4, 48, 768]), TokenGrid(frames=3, height=4, width=4), (9, 32, 32, 3))
    """

    content: Shaped[Tensor, " values"]
    layout: TokenLayout
    patch: PatchSize
    captions: tuple[str, ...]
    ids: tuple[str, ...]
    visits: tuple[int, ...]
    fps: tuple[float, ...]
    space: Literal["pixel", "latent"] = "pixel"
    vae_hash: str | None = None
    facts: tuple[Mapping[str, Any], ...] | None = None
    skipped: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    budget: int = 0
    mean_clips: float = 0.0
    mean_tokens: float = 0.0
    unchanging: bool = False

    def __post_init__(self) -> None:
        positions = sum(self._positions)
        if self.content.ndim != 1 or not len(self.content) or len(self.content) % positions:
            raise SoraError(
                f"content of shape {tuple(self.content.shape)} does not hold the {positions} positions of these clips"
            )
        for name in ("captions", "ids", "visits", "fps"):
            if len(getattr(self, name)) != self.layout.clips:
                raise SoraError(f"{len(getattr(self, name))} {name} for {self.layout.clips} clips")
        if self.sources and len(self.sources) != self.layout.clips:
            raise SoraError(f"{len(self.sources)} sources for {self.layout.clips} clips")
        if self.space == "pixel" and self.content.dtype != torch.uint8:
            raise SoraError(f"pixels must be uint8, got {self.content.dtype}")

    @classmethod
    def of(cls, videos: Sequence[Shaped[Tensor, "_ _ _ channels"]], **known: Any) -> SpacetimeBatch:
        """Puts clips end to end.

        Args:
            videos: frames, height, width and channels, of the sizes of the layout's grids, in order.
            known: the other attributes.
        """
        return cls(torch.cat([video.reshape(-1) for video in videos]), **known)

    def __len__(self) -> int:
        return self.layout.clips

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(clip id, visit) of each clip: the keys of its random streams."""
        return list(zip(self.ids, self.visits, strict=True))

    def weighed(self, losses: Float[Tensor, " clips"], equal: str) -> Float[Tensor, ""]:
        """What a batch adds to the loss, so that clips, tokens or batches weigh the same over an epoch.

        A batch's mean would let its clips weigh the more, the fewer they are: a still that trains alone would count as
        much as a batch of sixteen films. Instead the sum is divided by what a batch of this epoch has on average,
        whatever its own size, on any number of ranks, whose gradients are averaged.

        Args:
            losses: one per clip.
            equal: ``"clip"``, ``"token"`` or ``"batch"``.
        """
        if equal == "clip" and self.mean_clips:
            return losses.mean() * (len(self) / self.mean_clips)
        if equal == "token":
            lengths = losses.new_tensor(self.layout.lengths)
            return (losses * lengths).sum() / (self.mean_tokens or self.layout.total)
        return losses.mean()

    def select(self, clips: Sequence[int]) -> SpacetimeBatch:
        """The batch of these clips alone, in this order."""
        videos = self.videos()
        layout = TokenLayout(tuple(self.layout.grids[i] for i in clips), self.layout.packed)
        chosen: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in clips) for name in ("captions", "ids", "visits", "fps")
        }
        for name in ("facts", "sources"):
            chosen[name] = tuple(getattr(self, name)[i] for i in clips) if getattr(self, name) else getattr(self, name)
        content = torch.cat([videos[i].reshape(-1) for i in clips])
        return replace(self, content=content, layout=layout, skipped=(), **chosen)

    def split_by_grid(self) -> Iterator[tuple[list[int], SpacetimeBatch]]:
        """Yields the parts of one grid each, which networks over whole pictures take at once, with indices of clips."""
        members: dict[TokenGrid, list[int]] = {}
        for index, grid in enumerate(self.layout.grids):
            members.setdefault(grid, []).append(index)
        if len(members) == 1:
            yield list(range(len(self))), self
            return
        for indices in members.values():
            yield indices, self.select(indices)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SpacetimeBatch:
        return replace(self, content=self.content.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SpacetimeBatch:
        return replace(self, content=self.content.pin_memory())

    @property
    def _positions(self) -> list[int]:
        """How many pixels or positions of the latent each clip has."""
        return [math.prod(grid.size(self.patch)) for grid in self.layout.grids]

    def videos(self) -> list[Shaped[Tensor, "_ _ _ channels"]]:
        """The clips themselves, each [frames height width channels]: views of :attr:`content`."""
        positions = self._positions
        parts = self.content.view(sum(positions), -1).split(positions)
        return [part.view(*grid.size(self.patch), -1) for part, grid in zip(parts, self.layout.grids, strict=True)]

    @property
    def patches(self) -> Shaped[Tensor, "batch tokens patch_dim"]:
        """Rows of pixels or latents, one per token, cut anew at each call."""
        if self.layout.packed:
            return self.layout.join([patchify(video, self.patch) for video in self.videos()])
        return patchify(self.content.view(len(self), *self.layout.grids[0].size(self.patch), -1), self.patch)
