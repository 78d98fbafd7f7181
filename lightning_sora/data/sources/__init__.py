"""Where clips come from: the world, and folders of real videos."""

from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, DecodeError, Source
from lightning_sora.data.sources.folder import FolderSource
from lightning_sora.data.sources.world import WorldSource
from lightning_sora.data.sources.worlds import WorldsSource

__all__ = ["SOURCES", "Clip", "ClipInfo", "DecodeError", "FolderSource", "Source", "WorldSource", "WorldsSource"]
