"""What a clip is read from, and the error when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from lightning_sora.errors import SoraError


class DecodeError(SoraError):
    """A clip could not be read; the message is ``file: reason``."""


@runtime_checkable
class Media(Protocol):
    """A video or image that is not a plain file: a member of an archive, an object in a store."""

    @property
    def name(self) -> str:
        """For messages; its suffix tells the kind, as that of a file does."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def open(self) -> BinaryIO:
        """A new seekable reader of its bytes."""
        ...


MediaPath = str | Path | Media
