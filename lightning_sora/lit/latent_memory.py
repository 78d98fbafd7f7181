"""Latents of a frozen VAE in memory, so that a clip which comes again is not encoded again."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from lightning_sora.spacetime import SpacetimeBatch, TokenGrid

LIMIT = 64 << 20
"""Bytes of rows that are kept by default; the 2,048 clips of `recipes/world_dit.yaml` take 10 MB."""

Rows = list[Float[Tensor, "tokens latent_dim"]]


class LatentMemory:
    """Keeps latent rows by clip and grid, of batches whose clips have equal pixels at every visit.

    What was kept stays: once the limit is reached, further clips are encoded whenever they come.

    Args:
        limit: bytes that all rows together may take.

    Example:
        >>> LatentMemory(limit=1 << 20).bytes
        0
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.bytes = limit, 0
        self._rows: dict[tuple[str, TokenGrid], Tensor] = {}

    def rows(self, batch: SpacetimeBatch, encode: Callable[[SpacetimeBatch], Rows]) -> Rows:
        """The rows of each clip of a batch, kept ones where there are such.

        Args:
            encode: makes the rows of a batch; called with the clips that are missing, if any.
        """
        if not batch.unchanging:
            return encode(batch)
        keys = list(zip(batch.ids, batch.layout.grids, strict=True))
        missing = [place for place, key in enumerate(keys) if key not in self._rows]
        part = batch if len(missing) == len(batch) else batch.select(missing) if missing else None
        made = dict(zip(missing, encode(part), strict=True)) if part is not None else {}
        found = [made[place] if place in made else self._rows[key] for place, key in enumerate(keys)]
        for place, rows in made.items():
            size = rows.numel() * rows.element_size()
            if keys[place] not in self._rows and self.bytes + size <= self.limit:
                self._rows[keys[place]] = rows.clone()  # not a view that holds a whole batch
                self.bytes += size
        return found

    def clear(self) -> None:
        """Forgets all rows: the VAE may be another one."""
        self._rows.clear()
        self.bytes = 0
