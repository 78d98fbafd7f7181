"""Prompt adherence: does the clip show what the caption says? Judged from pixels, with no learned part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics import Metric

from lightning_sora.world import COLORS, DIRECTIONS, SHAPES, measure

VOCABULARY: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": tuple(SHAPES),
    "motion": tuple(DIRECTIONS),
}
"""The facts that :func:`lightning_sora.world.measure` reads, and their values."""

UNKNOWN = -1


class WorldAdherence(Metric):
    """The fraction of world clips whose colour, shape and motion direction are as asked.

    Only clips of one object are judged, and motion only where it is one of the eight directions.
    ``compute`` also gives each rate under shuffled captions: the chance that a clip shows what
    *another* caption of the set asks for, over all pairs.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    found: list[Int[Tensor, "clips facts"]]
    asked: list[Int[Tensor, "clips facts"]]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", default=[], dist_reduce_fx="cat")
        self.add_state("asked", default=[], dist_reduce_fx="cat")

    def update(
        self,
        videos: Sequence[UInt8[Tensor, "frames height width 3"]],
        facts: Sequence[Mapping[str, Any]],
        fps: Sequence[float],
    ) -> None:
        """Judges videos by the facts of the clips whose captions they were made from.

        Args:
            facts: ``Facts.as_dict()`` with, under "config", the world's configuration.
        """
        self.add(*read_facts(videos, facts, fps))

    def add(self, found: Int[Tensor, "clips facts"], asked: Int[Tensor, "clips facts"]) -> None:
        """Adds clips whose facts are read."""
        if len(found):
            self.found.append(found.to(self.device))
            self.asked.append(asked.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """In [0, 1]: ``adherence_<fact>`` and ``adherence_<fact>_shuffled``, their mean over facts ``adherence``, and
        ``adherence_all``, the clips with every fact right; ``adherence_clips`` is how many were judged."""
        if not isinstance(self.found, Tensor) and not self.found:
            return {"adherence_clips": torch.tensor(0.0)}
        found = torch.cat(self.found) if isinstance(self.found, list) else self.found
        asked = torch.cat(self.asked) if isinstance(self.asked, list) else self.asked
        rates = {"adherence_clips": torch.tensor(float(len(found)))}
        hits = (found == asked) | (asked == UNKNOWN)
        for index, name in enumerate(VOCABULARY):
            judged = asked[:, index] != UNKNOWN
            count = int(judged.sum())
            if not count:
                continue
            seen, wanted = found[judged, index], asked[judged, index]
            matches = (seen[:, None] == wanted[None, :]).double()
            rates[f"adherence_{name}"] = matches.diagonal().mean()
            if count > 1:
                others = matches.sum() - matches.diagonal().sum()
                rates[f"adherence_{name}_shuffled"] = others / (count * (count - 1))
        rates["adherence"] = clip_adherence(found, asked).mean()
        rates["adherence_all"] = hits.all(dim=1).double().mean()
        return rates


def read_facts(
    videos: Sequence[UInt8[Tensor, "frames height width 3"]], facts: Sequence[Mapping[str, Any]], fps: Sequence[float]
) -> tuple[Int[Tensor, "clips facts"], Int[Tensor, "clips facts"]]:
    """What each video shows and what its caption asked for, as codes; videos of several objects are left out."""
    found, asked = [], []
    for video, fact, rate in zip(videos, facts, fps, strict=True):
        if len(fact["objects"]) != 1:
            continue
        reading = measure(video, fact["config"], rate)
        found.append(_encode({name: getattr(reading, name) for name in VOCABULARY}))
        asked.append(_encode({name: fact["objects"][0][name] for name in VOCABULARY}))
    if not found:
        nothing = torch.zeros((0, len(VOCABULARY)), dtype=torch.int64)
        return nothing, nothing
    return torch.cat(found), torch.cat(asked)


def clip_adherence(found: Int[Tensor, "clips facts"], asked: Int[Tensor, "clips facts"]) -> Float[Tensor, " clips"]:
    """The fraction of each clip's facts that are as asked, of those that can be judged; float64."""
    judged = asked != UNKNOWN
    return ((found == asked) & judged).sum(dim=1).double() / judged.sum(dim=1).clamp(min=1)


def _encode(values: Mapping[str, str | None]) -> Int[Tensor, "1 facts"]:
    codes = [VOCABULARY[name].index(value) if value in VOCABULARY[name] else UNKNOWN for name, value in values.items()]
    return torch.tensor([codes])
