"""Patterns: which attention block each layer has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.specs import Spec, canonical

_REPEATED = re.compile(r"(?P<spec>.*?)\s*\*\s*(?P<count>\d+)", re.DOTALL)


def layer_specs(pattern: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]], depth: int) -> list[Spec]:
    """The spec of each layer: the pattern, tiled over ``depth``.

    ``"full"``; ``"spatial, temporal"``; ``"window(size=(2, 4, 4))*3, full"`` (three windowed layers, then
    a full one); a spec as a mapping; or a list of such.

    Raises:
        SoraError: unreadable, empty, or longer than ``depth``.
    """
    texts = [canonical(one) for one in ([pattern] if isinstance(pattern, str | Mapping) else pattern)]
    specs: list[Spec] = []
    for item in (item for text in texts for item in _split(text)):
        repeated = _REPEATED.fullmatch(item)
        count = int(repeated["count"]) if repeated else 1
        if count < 1:
            raise SoraError(f"attention {item!r} is repeated {count} times; repeat it at least once or leave it out")
        specs += [Spec.parse(repeated["spec"] if repeated else item)] * count
    if not specs:
        raise SoraError(f"the attention pattern {pattern!r} is empty; name at least one block, such as 'full'")
    if len(specs) > depth:
        raise SoraError(
            f"the attention pattern {pattern!r} spans {len(specs)} layers but depth={depth}; "
            "shorten it or deepen the model"
        )
    return [specs[layer % len(specs)] for layer in range(depth)]


def _split(text: str) -> list[str]:
    """Cuts at the commas outside all brackets."""
    items, nesting = [""], 0
    for character in text:
        nesting += (character in "([{") - (character in ")]}")
        if character == "," and nesting == 0:
            items.append("")
        else:
            items[-1] += character
    items = [item.strip() for item in items]
    if len(items) > 1 and not items[-1]:
        items.pop()
    if text.strip() and not all(items):
        raise SoraError(f"the attention pattern {text!r} has an empty place between commas; name a block there")
    return [item for item in items if item]
