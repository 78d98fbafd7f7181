"""The vocabulary that every room shares: patches, grids, layouts, batches."""

from lightning_sora.spacetime.batch import SpacetimeBatch
from lightning_sora.spacetime.crop import Crop, VideoSize
from lightning_sora.spacetime.data_spec import DataSpec
from lightning_sora.spacetime.grid import PatchSize, TokenGrid, patchify, unpatchify
from lightning_sora.spacetime.layout import Groups, TokenLayout

__all__ = [
    "Crop",
    "DataSpec",
    "Groups",
    "PatchSize",
    "SpacetimeBatch",
    "TokenGrid",
    "TokenLayout",
    "VideoSize",
    "patchify",
    "unpatchify",
]
