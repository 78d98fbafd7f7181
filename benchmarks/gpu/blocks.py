"""Attention blocks against full attention: the operator alone, forward and backward, in bfloat16.

One clip, 16 heads of 64 channels. ``pairs_share`` and ``flops_share`` are what a block has of the pairs and FLOPs of
full attention: where its time is a larger share (``ratio``), sparsity does not pay. The first call makes the plan and
compiles what is compiled; its seconds are told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.models import GRIDS, REDUCED_GRID
from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session
from lightning_sora.nn.attention import AttentionBlock, create_attention, list_attention
from lightning_sora.spacetime import TokenGrid, TokenLayout

HEADS, HEAD_DIM = 16, 64
REDUCED_BLOCKS = ("window", "neighborhood", "linear")
#: Beside a block's own first kernel.
FURTHER_KERNELS = ("flex", "varlen")
REFERENCE = "full"


def cases(session: Session) -> list[Case]:
    """Every block at each length, short ones first."""
    grids = [REDUCED_GRID] if session.reduced else [GRIDS[n] for n in (4096, 16384, 65536)]
    blocks = REDUCED_BLOCKS if session.reduced else (REFERENCE, *(b for b in list_attention() if b != REFERENCE))
    found = []
    for grid in grids:
        for spec in blocks:
            kernels = _block(spec, None).kernels
            for kernel in (kernels[0], *(k for k in FURTHER_KERNELS if k in kernels and session.cuda)):
                labels = {"block": spec, "kernel": kernel, "tokens": grid.tokens}
                found.append(Case(labels, partial(_measure, session, spec, kernel, grid)))
    return found


def _measure(session: Session, spec: str, kernel: str, grid: TokenGrid) -> Iterator[Row]:
    layout = TokenLayout.uniform(grid, 1)
    full, block = (_block(name, how).to(session.device) for name, how in ((REFERENCE, "sdpa"), (spec, kernel)))
    runs = {"full": _run(session, full, layout), "block": _run(session, block, layout)}
    begun = time.perf_counter()
    runs["block"]()
    session.synchronize()
    first = time.perf_counter() - begun
    seconds = session.interleaved(runs)
    yield {
        "ms": 1000 * seconds["block"],
        "full_ms": 1000 * seconds["full"],
        "ratio": seconds["block"] / seconds["full"],
        "pairs_share": block.pairs(layout) / full.pairs(layout),
        "flops_share": _flops(block, layout) / _flops(full, layout),
        "peak_GiB": session.peak_gib(runs["block"]),
        "full_peak_GiB": session.peak_gib(runs["full"]),
        "first_call_s": first,
    }


def _block(spec: str, kernel: str | None) -> AttentionBlock:
    # An odd layer: windows are shifted there.
    return create_attention(spec, HEADS * HEAD_DIM, HEADS, layer=1, depth=2, kernel=kernel)


def _flops(block: AttentionBlock, layout: TokenLayout) -> int:
    """Of the operator alone: less the projections to queries, keys, values and out."""
    return block.flops(layout) - 8 * layout.total * block.dim**2


def _run(session: Session, block: AttentionBlock, layout: TokenLayout) -> Callable[[], None]:
    # Projections are no part of the operator, but a block may have parameters of its own.
    block.to(torch.bfloat16)
    shape = (*layout.shape, HEADS, HEAD_DIM)
    q, k, v, weight = (torch.randn(shape, device=session.device, dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def run() -> None:
        torch.autograd.grad(block.attend(q, k, v, layout), leaves, weight)

    return run
