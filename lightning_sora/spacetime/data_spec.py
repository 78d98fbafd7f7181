"""What data say of themselves to a model, before the first batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lightning_sora.spacetime.crop import Crop
from lightning_sora.spacetime.grid import PatchSize


@dataclass(frozen=True)
class DataSpec:
    """What data say of themselves to a model, before the first batch, so that what does not fit is told at once.

    Attributes:
        patch: pixels per token.
        crop: the longest and largest windows of clips, and their rate; None for data without clips.
        vae_hash: of the VAE that made the latents; None for pixels, or before a source is made.
        captions: gives those of all clips, as far as they are known before clips are read; None where none are.

    Example:
        >>> import lightning_sora as ls
        >>> ls.SpacetimeDataModule("world(level='tiny')", patch=(4, 8, 8), frames=17).describe().crop
        Crop(size=VideoSize(frames=17, height=32, width=32), fps=None)
    """

    patch: PatchSize
    crop: Crop | None = None
    vae_hash: str | None = None
    captions: Callable[[], Iterable[str]] | None = field(default=None, compare=False, repr=False)
