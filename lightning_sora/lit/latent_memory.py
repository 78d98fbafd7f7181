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

    What was kept stays: once the limit is reached, further clips are encoded whenever they come. Each is encoded by
    itself: on some CPUs the rounding of a convolution depends on the batch, and a fit that goes on from a checkpoint
    meets a clip in other company than the fit that met it an epoch before.

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
            encode: makes the rows of a batch; called with each clip that is missing, or with a batch that is not kept.
        """
        if not batch.unchanging:
            return encode(batch)
        keys = list(zip(batch.ids, batch.layout.grids, strict=True))
        made = {i: encode(batch.select([i]))[0] for i, key in enumerate(keys) if key not in self._rows}
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
