"""The sizes of clips that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_sora.diffusion.timesteps import size_shift
from lightning_sora.errors import SoraError
from lightning_sora.nn.rope import SCALINGS, Stretch
from lightning_sora.spacetime import PatchSize, TokenGrid

AXES = ("frames", "height", "width")
Size = tuple[int, int, int]
#: What can be done about positions of sizes that were not seen; "none" takes them as they are.
ROPES = ("none", *SCALINGS)


def check_rope(rope: str) -> None:
    """Raises SoraError for a scaling of positions that is not known."""
    if rope not in ROPES:
        raise SoraError(f"rope={rope!r} must be 'none', {' or '.join(map(repr, SCALINGS))}")


class SeenSizes:
    """The least and the most of each axis, in pixels, of the clips of a training, and the longest clip.

    Attributes:
        native: frames, height and width of the longest clip so far; None before any.
        fps: frames per second of that.
    """

    def __init__(self) -> None:
        self.least: Size | None = None
        self.most: Size | None = None
        self.native: Size | None = None
        self.fps = 8.0

    def add(self, sizes: Sequence[Size], fps: float) -> None:
        """Takes the sizes of a batch into account."""
        known = [*sizes, *(one for one in (self.least, self.most) if one is not None)]
        of_axes = list(zip(*known, strict=True))
        self.least = (min(of_axes[0]), min(of_axes[1]), min(of_axes[2]))
        self.most = (max(of_axes[0]), max(of_axes[1]), max(of_axes[2]))
        largest = max(sizes)
        if self.native is None or largest > self.native:
            self.native, self.fps = largest, fps

    def beyond(self, size: Sequence[int]) -> str:
        """In words, where a size lies outside what was seen; empty if it does not, or if nothing is known."""
        if self.least is None or self.most is None:
            return ""
        return ", ".join(
            f"{axis}={asked} (trained on {least if least == most else f'{least} to {most}'})"
            for axis, asked, least, most in zip(AXES, size, self.least, self.most, strict=True)
            if not least <= asked <= most
        )

    def stretch(self, grids: Sequence[TokenGrid], patch: PatchSize, rope: str) -> Stretch | None:
        """By how much the axes of clips are longer than the longest seen, or shorter than the shortest.

        None where none is, or where nothing is known.

        Args:
            rope: what is to be done about it: one of ``SCALINGS``, or "none".

        Raises:
            SoraError: an unknown one.
        """
        check_rope(rope)
        if rope == "none" or self.least is None or self.most is None:
            return None
        least, most = (_lengths(TokenGrid.of(*size, patch)) for size in (self.least, self.most))
        factors = [
            [n / min(max(n, low), high) for n, low, high in zip(_lengths(grid), least, most, strict=True)]
            for grid in grids
        ]
        return Stretch(rope, torch.tensor(factors)) if any(one != 1 for row in factors for one in row) else None

    def shift(self, grid: TokenGrid, patch: PatchSize) -> float:
        """The shift of times that a clip needs beside the one that suits the longest seen; 1 if nothing is known."""
        return 1.0 if self.native is None else size_shift(grid.tokens, TokenGrid.of(*self.native, patch).tokens)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        bounds = {"least": self.least, "most": self.most}
        known = {name: [*size] for name, size in bounds.items() if size is not None}
        return {"size": list(self.native or ()), "fps": self.fps, **known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of a checkpoint that tells nothing, nothing is known."""
        self.least, self.most = (tuple(state[name]) if name in state else None for name in ("least", "most"))
        self.native, self.fps = tuple(state["size"]) or None, state["fps"]


def _lengths(grid: TokenGrid) -> tuple[int, int, int]:
    """How far tokens reach along each axis; the first in time is of no length, since it holds one frame alone."""
    return max(grid.frames - 1, 1), grid.height, grid.width
