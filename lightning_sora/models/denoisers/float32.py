"""Weights that stay in float32, whatever the precision that a model around them is cast to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


def uncast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What moves as ``fn`` does, and leaves the precision."""

    def moved(value: Tensor) -> Tensor:
        made = fn(value)
        return made if made.dtype == value.dtype else value.to(made.device)

    return moved


class KeptFloat32(nn.Module):
    """Keeps the parameters that it owns itself in float32, whatever the precision that a model around it is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(uncast(fn), recurse=False)


def kept_by_diffusers(network: nn.Module) -> Iterator[Tensor]:
    """What of a network of diffusers its ``from_pretrained`` keeps in float32: what is named so, or lies within."""
    named = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if not named.isdisjoint(name.split(".")):
            yield value
            if value.grad is not None:
                yield value.grad
