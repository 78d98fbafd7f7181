"""lightning_sora: controlled experiments on Sora-class text-to-video models."""

__version__ = "0.1.0"
