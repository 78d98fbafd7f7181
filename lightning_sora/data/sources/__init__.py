"""Where clips come from: folders and tables of real videos, cached latents, and mixtures; the world is a plugin's."""

from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source, create_source
from lightning_sora.data.sources.folder import FolderSource
from lightning_sora.data.sources.latents import LatentSource
from lightning_sora.data.sources.manifest import ManifestSource
from lightning_sora.data.sources.mixture import MixtureSource

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
    "create_source",
]
