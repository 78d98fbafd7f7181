"""What a source of clips must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry


class DecodeError(SoraError):
    """A clip could not be read; the message is ``file: reason``."""


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before its pixels are read.

    Attributes:
        id: stable across runs; the key of all the clip's randomness.
        frames, height, width: as shown, after rotation.
        fps: frames per second.
        split: the split that the source's own metadata assigns, if any.
    """

    id: str
    frames: int
    height: int
    width: int
    fps: float
    caption: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Clip:
    """One decoded window of a clip."""

    video: UInt8[Tensor, "frames height width 3"]
    caption: str
    fps: float
    facts: Mapping[str, Any] | None = None


class Source(ABC):
    """A sequence of clips: cheap to describe, costly to load.

    Builders get ``root``, ``split`` (train, val, test) and ``seed`` from the framework.
    """

    infos: Sequence[ClipInfo]

    def prepare(self, sizes: Collection[tuple[int, int, int]], fps: float | None) -> None:  # noqa: B027 (most need none)
        """Does once what would slow down loading, if there is such a thing.

        Args:
            sizes: (frames, height, width) of the windows to come.
            fps: the rate that they are loaded at.
        """

    @abstractmethod
    def load(
        self, index: int, frames: int, height: int, width: int, *, generator: torch.Generator, fps: float | None
    ) -> Clip:
        """Reads a window of exactly the asked size.

        Args:
            generator: where every random choice (start, crop) is drawn from.
            fps: resample to this rate by timestamps; None keeps the clip's own.

        Raises:
            DecodeError: the clip cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what the source would yield: identical data, identical fingerprint."""


SOURCES: Registry[Source] = Registry("source")
