"""SpacetimeBatch: the one thing that passes from data to training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.spacetime.grid import PatchSize, TokenGrid, unpatchify
from lightning_sora.spacetime.layout import TokenLayout


@dataclass(frozen=True)
class SpacetimeBatch:
    """Tokenized spacetime patches of some clips, with what is known of them.

    Attributes:
        patches: rows of pixels (uint8) or of latents (float), one per token.
        layout: where the rows lie.
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
        unchanging: whether each clip has these rows whenever it comes at this grid.

    Example:
        >>> import lightning_sora as ls
        >>> data = ls.SpacetimeDataModule("world(level='tiny', heldout_clips=8)", frames=9, batch_size=4)
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch.patches.shape, batch.layout.grids[0], tuple(batch.videos()[0].shape)
        (torch.Size([4, 48, 768]), TokenGrid(frames=3, height=4, width=4), (9, 32, 32, 3))
    """

    patches: Shaped[Tensor, "batch tokens patch_dim"]
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
        if tuple(self.patches.shape[:2]) != self.layout.shape:
            raise SoraError(f"patches {tuple(self.patches.shape)} do not fit the layout {self.layout.shape}")
        for name in ("captions", "ids", "visits", "fps"):
            if len(getattr(self, name)) != self.layout.clips:
                raise SoraError(f"{len(getattr(self, name))} {name} for {self.layout.clips} clips")
        if self.sources and len(self.sources) != self.layout.clips:
            raise SoraError(f"{len(self.sources)} sources for {self.layout.clips} clips")
        if self.space == "pixel" and self.patches.dtype != torch.uint8:
            raise SoraError(f"pixel rows must be uint8, got {self.patches.dtype}")

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
        rows = self.layout.split(self.patches)
        layout = TokenLayout(tuple(self.layout.grids[i] for i in clips), self.layout.packed)
        chosen: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in clips) for name in ("captions", "ids", "visits", "fps")
        }
        for name in ("facts", "sources"):
            chosen[name] = tuple(getattr(self, name)[i] for i in clips) if getattr(self, name) else getattr(self, name)
        return replace(self, patches=layout.join([rows[i] for i in clips]), layout=layout, skipped=(), **chosen)

    def split_by_grid(self) -> Iterator[tuple[list[int], SpacetimeBatch]]:
        """Yields the parts of one grid each, which networks over whole pictures take at once, with clips' places."""
        places: dict[TokenGrid, list[int]] = {}
        for place, grid in enumerate(self.layout.grids):
            places.setdefault(grid, []).append(place)
        if len(places) == 1:
            yield list(range(len(self))), self
            return
        for members in places.values():
            yield members, self.select(members)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SpacetimeBatch:
        return replace(self, patches=self.patches.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SpacetimeBatch:
        return replace(self, patches=self.patches.pin_memory())

    def videos(self) -> list[Shaped[Tensor, "frames height width channels"]]:
        """The clips themselves, uncut."""
        rows = self.layout.split(self.patches)
        return [unpatchify(r, grid, self.patch) for r, grid in zip(rows, self.layout.grids, strict=True)]
