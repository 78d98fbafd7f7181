"""Feature extractors by name: importing this package registers them."""

from lightning_sora.metrics.extractors.base import EXTRACTORS, Extractor

__all__ = ["EXTRACTORS", "Extractor"]
