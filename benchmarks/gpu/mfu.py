"""Model FLOPs utilization of training a DiT (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

FLOPs of a step are three times ``DiT.flops``: a backward pass costs twice the forward one. What checkpointing computes
again does not count as the model's; rows say where it was needed. Seconds are those of a whole step in bfloat16 by
autocast: forward, backward, fused AdamW. The rate is compared with the data sheet's and with that of a large product in
the same process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.devices import device_name, matmul_tflops, peak_tflops
from benchmarks.gpu.models import GRIDS, REDUCED_GRID, SIZES, TEXT_TOKENS, adamw, make_dit, make_inputs, training_step
from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session
from lightning_sora.models.denoisers import DiT
from lightning_sora.spacetime import TokenGrid, TokenLayout

FORWARD_AND_BACKWARD = 3
#: Of the memory that is free, what a batch is to fill; and the tokens beyond which more bring nothing.
FILL, MOST_TOKENS = 0.6, 131_072
#: The best that is published for training a video DiT (on H100), and what this project is after.
PUBLISHED, BAR = 0.33, 0.45


def mfu(flops: float, seconds: float, peak_tflops: float) -> float:
    """The share of a peak rate that computing so many FLOPs in so many seconds comes to."""
    return flops / seconds / (peak_tflops * 1e12)


def cases(session: Session) -> list[Case]:
    """Large models at usual lengths first."""
    if session.reduced:
        return [Case({"model": "S", "tokens": REDUCED_GRID.tokens}, partial(_measure, session, "S", REDUCED_GRID))]
    return [
        Case({"model": size, "tokens": tokens}, partial(_measure, session, size, GRIDS[tokens]), seconds=20)
        for tokens in (4096, 16384, 1024, 65536)
        for size in reversed(SIZES)
    ]


def _measure(session: Session, size: str, grid: TokenGrid) -> Iterator[Row]:
    measured, peak = matmul_tflops(session), peak_tflops(device_name(session.device))
    model = make_dit(session, size)
    optimizer = adamw(session, model)
    layout = TokenLayout.uniform(grid, fitting_clips(session, model, optimizer, grid))
    step = training_step(session, model, make_inputs(session, layout), optimizer)
    flops = FORWARD_AND_BACKWARD * model.flops(layout, TEXT_TOKENS)
    for mode in ("eager", "compiled"):
        counters.clear()
        if mode == "compiled":
            # Layer by layer: alike, they are compiled once.
            for block in model.blocks:
                session.compile(block)
        seconds = session.seconds(step, warmup=3)
        yield {
            "mode": mode,
            "batch": layout.clips,
            "checkpointing": model.checkpoint,
            "parameters_M": sum(p.numel() for p in model.parameters()) / 1e6,
            "step_ms": 1000 * seconds,
            "tokens_per_s": layout.total / seconds,
            "TFLOP_per_step": flops / 1e12,
            "TFLOP_per_s": flops / seconds / 1e12,
            "mfu": None if peak is None else mfu(flops, seconds, peak),
            "mfu_of_measured_matmul": mfu(flops, seconds, measured),
            "matmul_TFLOP_per_s": measured,
            "peak_GiB": session.peak_gib(step),
            "graph_breaks": sum(counters["graph_break"].values()) if mode == "compiled" else None,
        }


def fitting_clips(session: Session, model: DiT, optimizer: torch.optim.Optimizer, grid: TokenGrid) -> int:
    """How many clips fill the memory moderately; sets checkpointing where not even one fits without."""
    if not session.cuda:
        return 2
    try:
        return _clips(session, model, optimizer, grid)
    except torch.OutOfMemoryError:
        model.checkpoint = True
    model.zero_grad(set_to_none=True)
    session.clean()
    return _clips(session, model, optimizer, grid)


def _clips(session: Session, model: DiT, optimizer: torch.optim.Optimizer, grid: TokenGrid) -> int:
    """Clips that fill :data:`FILL` of the memory, reckoned from the peaks of one and of two.

    Raises:
        torch.OutOfMemoryError: not even one fits.
    """
    used = []
    for clips in (1, 1, 2):  # the first makes the optimizer's state
        step = training_step(session, model, make_inputs(session, TokenLayout.uniform(grid, clips)), optimizer)
        try:
            used.append(session.peak_gib(step) or 0.0)
        except torch.OutOfMemoryError:
            if clips == 1:
                raise
            break
    model.zero_grad(set_to_none=True)
    session.clean()
    if len(used) < 3:
        return 1
    per_clip = max(used[2] - used[1], 1e-3)
    return max(1, min(int(1 + (FILL * session.capacity_gib() - used[1]) / per_clip), MOST_TOKENS // grid.tokens))
