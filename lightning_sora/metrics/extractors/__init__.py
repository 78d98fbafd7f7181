"""Feature extractors by name: importing this package registers them."""

from lightning_sora.metrics.extractors import clip, dino, i3d, inception, random, torchvision_video, videomae
from lightning_sora.metrics.extractors.base import EXTRACTORS, Extractor

__all__ = [
    "EXTRACTORS", "Extractor", "clip", "dino", "i3d", "inception", "random", "torchvision_video", "videomae",
]  # fmt: skip
