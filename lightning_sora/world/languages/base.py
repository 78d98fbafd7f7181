"""What a language must tell of a clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_sora.world.facts import ObjectFacts

Choose = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Language:
    """A language of short captions.

    Attributes:
        name: in English.
        clause: tells an object with its motion: its facts, whether its motion is told as one across the ground, and
            the choice among wordings, the first of which is the plainest.
        cameras: wordings of each motion of the camera; one at rest goes without saying.
        comma: between clauses.
    """

    name: str
    clause: Callable[[ObjectFacts, bool, Choose], str]
    cameras: Mapping[str, Sequence[str]]
    comma: str = ", "
