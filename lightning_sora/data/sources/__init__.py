"""Where clips come from: the world, folders of real videos, and mixtures."""

from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source
from lightning_sora.data.sources.folder import FolderSource
from lightning_sora.data.sources.latents import LatentSource
from lightning_sora.data.sources.manifest import ManifestSource
from lightning_sora.data.sources.mixture import MixtureSource
from lightning_sora.data.sources.world import WorldSource
from lightning_sora.data.sources.worlds import WorldsSource

__all__ = [
    "SOURCES",
    "Clip",
    "ClipInfo",
    "DecodeError",
    "FolderSource",
    "LatentSource",
    "ManifestSource",
    "MixtureSource",
    "Source",
    "WorldSource",
    "WorldsSource",
]
