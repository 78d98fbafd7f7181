"""A step of Muon against one of fused AdamW, on the parameters of a DiT."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.models import SIZES, make_dit
from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session

REFERENCE = "AdamW, fused"


def cases(session: Session) -> list[Case]:
    sizes = ["S"] if session.reduced else list(SIZES)
    return [Case({"model": size}, partial(_measure, session, size)) for size in sizes]


def _measure(session: Session, size: str) -> Iterator[Row]:
    from lightning_sora.lit.optimizers import create_optimizer

    model = make_dit(session, size)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    made = {
        REFERENCE: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
        "muon": create_optimizer("muon(lr=1e-6, adamw_lr=1e-6)", model.named_parameters(), ["embed.*", "unembed.*"]),
    }
    seconds = session.interleaved({name: optimizer.step for name, optimizer in made.items()})
    for name, optimizer in made.items():
        yield {
            "optimizer": name,
            "parameters_M": sum(p.numel() for p in model.parameters()) / 1e6,
            "ms": 1000 * seconds[name],
            "times_adamw": seconds[name] / seconds[REFERENCE],
            "peak_GiB": session.peak_gib(optimizer.step),
        }
