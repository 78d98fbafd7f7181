"""Checkpoints that earlier versions wrote: their options in groups, and their weights by the names of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sora.models.configs import Config

EVALUATION = ("extractor", "clip")
RENAMED = {"start": "init_from"}


def grouped(arguments: Mapping[str, Any], groups: Mapping[str, type[Config]]) -> dict[str, Any]:
    """Constructor arguments with each option by its name of today, in the group that it belongs to.

    What the evaluation has now is left out.
    """
    found = {RENAMED.get(name, name): value for name, value in arguments.items() if name not in EVALUATION}
    for group, config in groups.items():
        inside = {name: found.pop(name) for name in config.names() if name in found and group not in found}
        if inside:
            found[group] = inside
    return found


def under_model(checkpoint: dict[str, Any], parts: tuple[str, ...]) -> None:
    """Names weights and averages of some parts as parts of ``model``, in place; those that are so named stay."""
    for tensors in (checkpoint.get("state_dict", {}), checkpoint.get("ema", {}).get("shadow", {})):
        for name in [name for name in tensors if name.startswith(parts)]:
            tensors[f"model.{name}"] = tensors.pop(name)
