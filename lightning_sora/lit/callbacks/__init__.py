"""Callbacks: speed and memory, and the gallery."""

from lightning_sora.lit.callbacks.gallery import Gallery
from lightning_sora.lit.callbacks.speed import Speed

__all__ = ["Gallery", "Speed"]
