"""Layers that have low-rank adapters of peft in them: which they are, and computing without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def adapted(denoiser: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of peft, which are told by what they have: those who have none need no peft."""
    for name, module in denoiser.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield name, module


def has_adapters(denoiser: nn.Module) -> bool:
    """Whether there are adapters in it."""
    return next(adapted(denoiser), None) is not None


@contextmanager
def without_adapters(denoiser: nn.Module) -> Iterator[None]:
    """Computes as the frozen layers do, on leaving as before."""
    layers = [layer for _, layer in adapted(denoiser)]
    if not layers:
        yield
        return
    before = [layer.disable_adapters for layer in layers]
    learns = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer.enable_adapters(not off)
        for parameter, asked in learns.items():  # which peft sets, too
            parameter.requires_grad_(asked)
