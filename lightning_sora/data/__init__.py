"""From files and worlds to batches of tokenized spacetime patches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_sora.data.datamodule import SpacetimeDataModule

__all__ = ["SpacetimeDataModule"]


def __getattr__(name: str) -> object:
    # Lightning takes many seconds to import; sources and decoders do without it.
    if name == "SpacetimeDataModule":
        from lightning_sora.data.datamodule import SpacetimeDataModule

        return SpacetimeDataModule
    raise AttributeError(name)
