"""Scores of texts that networks write: captions by the facts of their clips, expanded prompts by what was asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from lightning_sora.metrics.clip_means import ClipMeans
from lightning_sora.registry import Registry


class CaptionScore(ABC):
    """Scores captions by what is known of their clips.

    Attributes:
        names: of its scores.
        each: those of them that are recorded of every clip.
        method: how it scores, as a protocol says it.
    """

    names: ClassVar[tuple[str, ...]]
    each: ClassVar[tuple[str, ...]] = ()
    method: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, text: str, facts: Mapping[str, Any]) -> Mapping[str, float]:
        """The scores of a caption by name; none where the facts are of another source."""


class ExpansionScore(ABC):
    """Scores expanded prompts by the prompts; attributes as of :class:`CaptionScore`."""

    names: ClassVar[tuple[str, ...]]
    each: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, text: str, prompt: str) -> Mapping[str, float]:
        """The scores of an expanded prompt by name."""


#: All that are registered are taken.
CAPTION_SCORES: Registry[CaptionScore] = Registry(
    "caption score", name="caption_score", given=("text", "facts"), functions=True
)
EXPANSION_SCORES: Registry[ExpansionScore] = Registry(
    "expansion score", name="expansion_score", given=("text", "prompt"), functions=True
)


class TextScores(ClipMeans):
    """The means over texts of several scores.

    Args:
        scores: what :meth:`of` found.
    """

    def __init__(self, scores: Sequence[CaptionScore | ExpansionScore]) -> None:
        super().__init__([name for score in scores for name in score.names])
        self.scores = tuple(scores)

    @classmethod
    def of(cls, registry: Registry[Any]) -> TextScores | None:
        """All scores of a registry; None where there are none."""
        scores = [registry.create(name) for name in registry.list()]
        return cls(scores) if scores else None

    def add_texts(
        self, texts: Sequence[str], against: Sequence[Any], ids: Sequence[str]
    ) -> dict[str, tuple[list[str], list[float]]]:
        """Adds texts, each with what it is judged by; returns ids and values of what is recorded of every clip."""
        each = {}
        for score in self.scores:
            rows = [(name, score(text, by)) for name, text, by in zip(ids, texts, against, strict=True)]
            for name in score.names:
                values = {index: row[name] for index, (_, row) in enumerate(rows) if name in row}
                if values:
                    self.add({name: torch.tensor([float(value) for value in values.values()])})
                if name in score.each:
                    each[name] = [rows[index][0] for index in values], [float(value) for value in values.values()]
        return each
