"""Options of blocks that are one number per axis of a grid."""

from __future__ import annotations

from lightning_sora.errors import SoraError

Triple = tuple[int, int, int]


def triple(block: str, name: str, value: int | tuple[int, int, int], least: int) -> Triple:
    """``value`` along (frames, height, width); one number stands for all three.

    Raises:
        SoraError: not whole numbers of at least ``least``.
    """
    axes = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(axes) != 3 or not all(isinstance(a, int) and not isinstance(a, bool) and a >= least for a in axes):
        raise SoraError(
            f"{block} {name}={value} must be a whole number of at least {least}, or three: (frames, height, width)"
        )
    return axes
