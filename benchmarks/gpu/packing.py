"""Clips of mixed sizes, packed end to end, padded to the largest, and one by one: useful tokens a second of training.

A DiT-B, forward and backward, in bfloat16 by autocast. Padding is a batch of clips that are all of the largest grid:
what padding costs, whatever a mask then hides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.models import Inputs, make_dit, make_inputs, training_step
from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session
from lightning_sora.models.denoisers import DiT
from lightning_sora.models.text import TextContext
from lightning_sora.spacetime import TokenGrid, TokenLayout

#: Images beside videos of several lengths, areas and aspects; about 16 k tokens.
MIX = (
    *(TokenGrid(1, 16, 16), TokenGrid(1, 24, 16), TokenGrid(1, 18, 32), TokenGrid(1, 32, 32)),
    *(TokenGrid(5, 16, 16), TokenGrid(7, 12, 20), TokenGrid(8, 24, 16), TokenGrid(13, 18, 32)),
)
REDUCED_MIX = (TokenGrid(1, 2, 3), TokenGrid(2, 3, 2), TokenGrid(3, 3, 3))


def cases(session: Session) -> list[Case]:
    attention = [("full", "sdpa"), ("window", "sdpa"), ("full", "varlen"), ("full", "flex")]
    return [
        Case({"attention": spec, "kernel": kernel}, partial(_measure, session, spec, kernel))
        for spec, kernel in (attention if session.cuda else attention[:1])
    ]


def _measure(session: Session, attention: str, kernel: str) -> Iterator[Row]:
    grids = REDUCED_MIX if session.reduced else MIX
    packed = TokenLayout.pack(grids)
    padded = TokenLayout.uniform(max(grids, key=lambda grid: grid.tokens), len(grids))
    model = make_dit(session, "B", attention=attention, kernel=kernel)
    together = make_inputs(session, packed)
    alone = [
        training_step(session, model, one, None) for one in (_clip(together, index) for index in range(packed.clips))
    ]
    runs = {
        "packed": training_step(session, model, together, None),
        "padded": training_step(session, model, make_inputs(session, padded), None),
        "one by one": lambda: [step() for step in alone],
    }
    seconds = session.interleaved(runs)
    for way, run in runs.items():
        yield {
            "way": way,
            "tokens": packed.total,
            "computed_tokens": padded.total if way == "padded" else packed.total,
            "ms": 1000 * seconds[way],
            "useful_tokens_per_s": packed.total / seconds[way],
            "times_padded": seconds["padded"] / seconds[way],
            "peak_GiB": session.peak_gib(run),
        }
    yield {"way": "largest difference of packed and one by one", "value": _difference(session, model, together)}


def _clip(inputs: Inputs, index: int) -> Inputs:
    text = TextContext(inputs.text.embeddings[index : index + 1], inputs.text.mask[index : index + 1])
    rows = inputs.layout.split(inputs.x)[index][None]
    return Inputs(rows, inputs.t[index : index + 1], text, inputs.layout.clip(index))


@torch.no_grad()
def _difference(session: Session, model: DiT, inputs: Inputs) -> float:
    """Of predictions, as a share of the largest."""
    with session.half():
        together = inputs.layout.split(model(inputs.x, inputs.t, inputs.text, inputs.layout))
        one_by_one = [
            model(one.x, one.t, one.text, one.layout)[0]
            for one in (_clip(inputs, i) for i in range(inputs.layout.clips))
        ]
    a, b = torch.cat(list(together)).float(), torch.cat(one_by_one).float()
    return float((a - b).abs().max() / b.abs().max())
