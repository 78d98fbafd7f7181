"""Evaluations of noise: clips, the metrics that look at them, and what these say."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.results import Results

RANDOM = "random(width=4, side=16)"
CUT = {"clip": {"frames": 4, "fps": None, "resampled": False, "offset": "first"}}


def clips_of(count: int, seed: int, sides: Sequence[int] = (16, 20, 24)) -> list[Tensor]:
    """Noise in clips of mixed sizes, each of its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        top = int(torch.randint(100, 256, (), generator=generator))
        side = sides[index % len(sides)]
        found.append(torch.randint(0, top, (4, side, side, 3), generator=generator, dtype=torch.uint8))
    return found


def evaluation_of(*metrics: Any, **options: Any) -> Evaluation:
    return Evaluation(metrics, **{"extractor": RANDOM, **options})


def add(
    evaluation: Evaluation, clips: Sequence[Tensor], side: str, prefix: str = "", batch: int = 5, backward: bool = False
) -> None:
    order = list(range(len(clips)))[:: -1 if backward else 1]
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        evaluation.update([f"{prefix}{index:03d}" for index in some], **{side: [clips[index] for index in some]})


def scored(*metrics: str, counts: tuple[int, int] = (24, 20), **options: Any) -> Results:
    evaluation = evaluation_of(*metrics, **options)
    add(evaluation, clips_of(counts[0], 0), "real", "r")
    add(evaluation, clips_of(counts[1], 1), "generated", "g")
    return evaluation.compute()
