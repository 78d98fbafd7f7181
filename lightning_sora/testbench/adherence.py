"""Prompt adherence: does the clip show what the caption says? Fact by fact, as the world evaluator reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_lists import ClipListMetric
from lightning_sora.testbench.evaluator.reading import Reading
from lightning_sora.testbench.evaluator.vocabulary import OF_OBJECTS, VOCABULARY, code

FACTS = ("color", "count", *OF_OBJECTS, "camera")
"""What is judged: the set of colours, the number of objects, each object's shape, size and motion, the camera."""

COLORS = len(VOCABULARY["color"])
WIDTH = COLORS * (1 + len(OF_OBJECTS)) + 1
SHUFFLES = 8  # other captions that each clip is judged by, for chance

Codes = Float[Tensor, "clips codes"]


def read_codes(readings: Sequence[Reading]) -> Codes:
    """What clips show: per colour its coverage (0 if absent) and the codes of its object's facts, then the camera."""
    found = torch.zeros((len(readings), WIDTH), dtype=torch.float64)
    for row, reading in zip(found, readings, strict=True):
        slots = row[:-1].view(COLORS, -1)
        for thing in reading.objects:
            values = [float(code(name, getattr(thing, name))) for name in OF_OBJECTS]
            # What was found covers something, however small.
            slots[code("color", thing.color)] = torch.tensor([max(thing.coverage, 1e-9), *values], dtype=torch.float64)
        row[-1] = code("camera", reading.camera)
    return found


def asked_codes(facts: Sequence[Mapping[str, Any]]) -> Codes:
    """What clips should show, in the same form, from ``Facts.as_dict()``; NaN where the evaluator does not read it."""
    asked = torch.zeros((len(facts), WIDTH), dtype=torch.float64)
    for row, fact in zip(asked, facts, strict=True):
        slots = row[:-1].view(COLORS, -1)
        for thing in fact["objects"]:
            values = [code(n, thing[n]) if thing[n] in VOCABULARY[n] else math.nan for n in OF_OBJECTS]
            slots[code("color", thing["color"])] = torch.tensor([1.0, *values], dtype=torch.float64)
        row[-1] = code("camera", fact["camera"]["motion"])
    return asked


def agreement(found: Codes, asked: Codes) -> Float[Tensor, "clips facts"]:
    """The share of each fact that is as asked, in [0, 1]; facts in the order of ``FACTS``.

    NaN where the evaluator reads none of what is asked, such as the motions of a collision.
    """
    rows = [_judge_one(f, a) for f, a in zip(found, asked, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(FACTS))


def _judge_one(found: Tensor, asked: Tensor) -> list[float]:
    shown, wanted = found[:-1].view(COLORS, -1), asked[:-1].view(COLORS, -1)
    seen = shown[:, 0].nonzero().flatten().tolist()
    sought = wanted[:, 0].nonzero().flatten().tolist()
    partner = {color: color for color in sought if color in seen}
    # An object of another colour than asked may still have the shape: the largest are matched first.
    spare = sorted(set(seen) - set(partner), key=lambda color: -float(shown[color, 0]))
    for color in sought:
        if color not in partner and spare:
            partner[color] = spare.pop(0)
    hits = []
    for i in range(1, 1 + len(OF_OBJECTS)):
        read = [c for c in sought if not wanted[c, i].isnan()]
        right = [float(shown[partner[c], i] == wanted[c, i]) for c in read if c in partner]
        hits.append(math.nan if sought and not read else sum(right) / max(len(read), 1))
    return [float(seen == sought), float(len(seen) == len(sought)), *hits, float(found[-1] == asked[-1])]


class PromptAdherence(ClipListMetric):
    """The mean of every fact's share over clips, and the same for captions of other clips of the set: chance."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_list("ids", torch.zeros(0, dtype=torch.int64))
        for name in ("found", "asked"):
            self.add_list(name, torch.zeros((0, WIDTH), dtype=torch.float64))

    def update(self, readings: Sequence[Reading], facts: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> None:
        """Adds clips by what was read from them and the facts that their captions were made from."""
        if not len(ids):
            return
        for name, rows in (("found", read_codes(readings)), ("asked", asked_codes(facts)), ("ids", self.hashes(ids))):
            getattr(self, name).append(rows.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """In [0, 1]: per fact ``FACT`` and ``FACT_shuffled``; ``mean`` over facts; ``all``, the share of clips with
        every fact right; and ``clips``, how many were judged."""
        ids = self.collected("ids")
        if twice := len(ids) - len(ids.unique()):
            raise SoraError(
                f"{twice} of {len(ids)} clips were given more than once; give each once, with ids that differ"
            )
        order = ids.argsort()
        found, asked = (self.collected(name)[order].cpu() for name in ("found", "asked"))
        clips = len(found)
        rates = {"clips": torch.tensor(float(clips))}
        if not clips:
            return rates
        scores = agreement(found, asked)
        rates |= {name: scores[:, i].nanmean() for i, name in enumerate(FACTS)}
        rates |= {"mean": scores.nanmean(), "all": ((scores == 1) | scores.isnan()).all(dim=1).double().mean()}
        if clips > 1:
            turns = torch.linspace(1, clips - 1, min(SHUFFLES, clips - 1)).round().long().tolist()
            shuffled = torch.cat([agreement(found, asked.roll(turn, 0)) for turn in turns])
            rates |= {f"{name}_shuffled": shuffled[:, i].nanmean() for i, name in enumerate(FACTS)}
        return rates
