"""Every attention block, its operator alone and as a block, forward and backward, beside full attention.

    python -m benchmarks.operators [--quick] [--blocks SPEC ...] [--tokens 1024 4096 16384] [--out FILE.md]

For each number of tokens: time over that of `full`, the share of the pairs of `full` that the block declares, and what
the first call costs more than later ones (the plan), for four layers of one model. Over all sizes: the exponents with
which time and declared pairs grow. A video grows in two ways, in frames (16x16 tokens each) or in the size of its 16
frames: blocks whose field spans an axis, such as `temporal` and `spatial`, are linear in the one and quadratic in the
other, so that sparse blocks are timed in both. A block that alternates from layer to layer is timed over its turns.
Full attention is timed under its kernels too. Float32, eager, heads of 64; by default as many as DiT-S has.

A plan is measured in a process of its own, at the smallest width, where nothing else weighs. What would need more than
the memory limit is reported as such.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.measure import command_line, interleaved, markdown_table, page, write_page
from lightning_sora.memory import peak_memory_gib, reset_peak_memory
from lightning_sora.nn.attention import create_attention, list_attention
from lightning_sora.nn.attention.base import AttentionBlock
from lightning_sora.nn.rope import rotary
from lightning_sora.randomness import generator
from lightning_sora.spacetime import TokenGrid, TokenLayout

HEAD_DIM, LAYERS = 64, 4
LONGER = {64: (4, 4, 4), 128: (8, 4, 4), 256: (4, 8, 8), 1024: (4, 16, 16), 4096: (16, 16, 16), 16384: (64, 16, 16)}
LARGER = {128: (8, 4, 4), 256: (8, 4, 8), 1024: (16, 8, 8), 4096: (16, 16, 16), 16384: (16, 32, 32)}
WAYS = {"longer": LONGER, "larger": LARGER}
TURNS = {"axial": 3, "skiparse": 2, "window": 2}  # layers after which a block is the same again
SPARSE = 0.1  # share of pairs below which a block is timed in both ways of growing
KERNELS = ("sdpa", "matmul")
LIMIT_GIB = 4.0

Call = Callable[[], object]


def layout_of(tokens: int, way: str = "longer") -> TokenLayout:
    return TokenLayout.uniform(TokenGrid(*WAYS[way][tokens]), 1)


def turns_of(spec: str, width: int, heads: int, kernel: str | None = None) -> list[AttentionBlock]:
    """The layers of a model that differ from each other."""
    count = TURNS.get(spec.partition("(")[0], 1)
    return [create_attention(spec, width, heads, layer=i, depth=LAYERS, kernel=kernel) for i in range(count)]


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def memory_limit(gib: float) -> Iterator[None]:
    """Lets this process hold so much more data than it does; an allocation beyond raises (Linux)."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    held = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(gib * 2**30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def operator_calls(blocks: Sequence[AttentionBlock], layout: TokenLayout) -> dict[str, Call]:
    """The operator alone, from queries, keys and values to what is mixed, and the block around it, of all turns."""
    first = blocks[0]
    x = torch.randn(*layout.shape, first.dim, generator=generator(0, "x"))
    rope = rotary(layout.coordinates()[:, 1:], first.dim // first.num_heads)
    with torch.no_grad():
        projected = first.project(x, rope)
    q, k, v = (part.contiguous().requires_grad_() for part in projected)
    x.requires_grad_()
    weights = torch.randn(v.shape, generator=generator(0, "weights"))

    def alone() -> None:
        for block in blocks:
            q.grad = k.grad = v.grad = None
            block.attend(q, k, v, layout).backward(weights)

    def whole() -> None:
        for block in blocks:
            x.grad = None
            block.zero_grad(set_to_none=True)
            block(x, layout, rope).backward(weights.flatten(2))

    return {"alone": alone, "block": whole}


def plan_cost(spec: str, tokens: int) -> tuple[float, float]:
    """Seconds and MiB that the first pass over the layers of one model costs more than the second.

    At the smallest width, so that what is not the plan is next to nothing.
    """
    width = 8
    layers = [create_attention(spec, width, 1, layer=i, depth=LAYERS) for i in range(LAYERS)]

    def forward(layout: TokenLayout, q: torch.Tensor) -> float:
        begun = time.process_time()
        with torch.no_grad():
            for layer in layers:
                layer.attend(q, q, q, layout)
        return time.process_time() - begun

    small, layout = layout_of(64), layout_of(tokens)
    forward(small, torch.randn(*small.shape, 1, width))  # what only the process's first call costs
    q = torch.randn(*layout.shape, 1, width)
    reset_peak_memory()
    before = peak_memory_gib()
    first = forward(layout, q)
    peak = peak_memory_gib()
    reset_peak_memory()
    held = peak_memory_gib()
    later = min(forward(layout, q) for _ in range(2))
    working = peak_memory_gib() - held
    return max(first - later, 0.0), 1024 * max(peak - before - working, 0.0)


def _answer(connection: Any, task: Callable[[], object], limit: float) -> None:
    try:
        with memory_limit(limit):
            connection.send(task())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        connection.send(None)


def in_a_process(task: Callable[[], Any], limit: float = LIMIT_GIB) -> Any:
    """The task's result from a process of its own, or None where it needs more memory than the limit, in GiB.

    Raises:
        RuntimeError: the process died.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, task, limit))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"the measuring process died; it was to run {task}") from error
    finally:
        process.join()


def timings(blocks: Blocks, tokens: int, way: str, heads: int, repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds per layer of each block, alone and whole; nothing for those that do not fit into the limit."""
    print(f"timing {tokens:,} tokens, {way}", file=sys.stderr)
    layout, turns = layout_of(tokens, way), {}
    calls: dict[str, dict[str, Call]] = {"alone": {}, "block": {}}
    for name, (spec, kernel) in blocks.items():
        made_of = turns_of(spec, heads * HEAD_DIM, heads, kernel)
        turns[name], made = len(made_of), operator_calls(made_of, layout)
        try:
            with memory_limit(LIMIT_GIB):
                made["alone"]()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        for what, call in made.items():
            calls[what][name] = call
    warmup, least = int(tokens <= 4096), 0.05 if repeats > 1 else 0.0
    seconds = {what: interleaved(some, repeats=repeats, warmup=warmup, least=least) for what, some in calls.items()}
    return {what: {name: value / turns[name] for name, value in some.items()} for what, some in seconds.items()}


@cache
def declared(spec: str, tokens: int, way: str = "longer") -> float:
    """Query-key pairs that a block declares, per layer."""
    return fmean(block.pairs(layout_of(tokens, way)) for block in turns_of(spec, HEAD_DIM, 1))


def exponent(values: Sequence[float], tokens: Sequence[int]) -> float:
    """The slope of log value over log tokens, from the smallest size to the largest."""
    return math.log(values[-1] / values[0]) / math.log(tokens[-1] / tokens[0])


Blocks = dict[str, tuple[str, str | None]]
Found = dict[int, dict[str, dict[str, float]]]
TOO_MUCH = f"> {LIMIT_GIB:.0f} GiB"


def pages(specs: Sequence[str], sizes: Sequence[int], heads: int, repeats: Sequence[int]) -> list[str]:
    """The tables: one per size, and one of the exponents."""
    # Plans first: what this process has freed, its children would use without a trace.
    plans = {(spec, n): in_a_process(partial(plan_cost, spec, n)) for n in sizes for spec in specs}
    blocks: Blocks = {spec: (spec, None) for spec in specs}
    blocks |= {f"full, {kernel} kernel": ("full", kernel) for kernel in KERNELS}
    found: Found = {n: timings(blocks, n, "longer", heads, count) for n, count in zip(sizes, repeats, strict=True)}
    sections = [section(blocks, n, "longer", found[n], plans) for n in sizes]
    if len(sizes) > 1:
        sections.append(exponents(blocks, sizes, "longer", found))
        few = {name: block for name, block in blocks.items() if name == "linear" or is_sparse(block[0], sizes[-1])}
        wide = {n: timings(few, n, "larger", heads, count) for n, count in zip(sizes, repeats, strict=True)}
        sections.append(exponents(few, sizes, "larger", wide))
    return sections


def is_sparse(spec: str, tokens: int) -> bool:
    return declared(spec, tokens) < SPARSE * declared("full", tokens)


def section(blocks: Blocks, n: int, way: str, found: dict[str, dict[str, float]], plans: dict[Any, Any]) -> str:
    """The table of one size."""
    rows = []
    for name, (spec, _) in blocks.items():
        plan = plans.get((name, n), ())
        costs = (TOO_MUCH, "-") if plan is None else (f"{plan[0]:.2f}", f"{plan[1]:.0f}") if plan else ("-", "-")
        rows.append((name, *figures(name, declared(spec, n) / declared("full", n), found), *costs))
    return f"## {n:,} tokens ({'x'.join(map(str, WAYS[way][n]))})\n\n{markdown_table(HEADER, rows)}"


HEADER = (
    *("block", "alone, ms", "ratio to full", "share of pairs", "ratio / share"),
    *("block, ms", "ratio to full", "plan, s", "plan, MiB"),
)


def figures(name: str, share: float, found: dict[str, dict[str, float]]) -> tuple[str, ...]:
    """The cells of one block from its time alone to its ratio as a block."""
    if name not in found["alone"]:
        return (TOO_MUCH, "-", f"{share:.3f}", "-", "-", "-")
    (alone, whole), (full, full_block) = ([found[what][n] for what in ("alone", "block")] for n in (name, "full"))
    of_operator = (f"{1e3 * alone:,.1f}", f"{alone / full:.3f}", f"{share:.3f}", f"{alone / full / share:.2f}")
    return (*of_operator, f"{1e3 * whole:,.1f}", f"{whole / full_block:.3f}")


def exponents(blocks: Blocks, sizes: Sequence[int], way: str, found: Found) -> str:
    """The table of how time and declared pairs grow, of the blocks that fit into the limit at every size."""
    rows = []
    for name, (spec, _) in blocks.items():
        if all(name in found[n]["alone"] for n in sizes):
            grown = [[found[n][what][name] for n in sizes] for what in ("alone", "block")]
            grown.append([declared(spec, n, way) for n in sizes])
            rows.append((name, *(f"{exponent(values, sizes):.2f}" for values in grown)))
    table = markdown_table(("block", "time alone", "time of the block", "pairs"), rows)
    grids = ", ".join("x".join(map(str, WAYS[way][n])) for n in sizes)
    return f"## Exponents over tokens, {way} videos: {grids}\n\n{table}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tiny sizes, to see that it runs")
    parser.add_argument("--blocks", nargs="+", metavar="SPEC", help="default: every registered block")
    parser.add_argument("--tokens", nargs="+", type=int, choices=sorted(LARGER), help="default: 1024 4096 16384")
    parser.add_argument("--heads", type=int, default=6, help="of 64; default 6")
    parser.add_argument("--out", type=Path, help="write the page here too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = sorted(args.tokens or ((128, 256) if args.quick else (1024, 4096, 16384)))
    specs = list(dict.fromkeys(["full", *(args.blocks or list_attention())]))
    repeats = [1 if args.quick else 7 if n <= 1024 else 3 if n <= 4096 else 1 for n in sizes]
    sections = pages(specs, sizes, args.heads, repeats)
    intro = (
        f"Eager, float32, one thread, {args.heads} heads of {HEAD_DIM}, one clip, no text; forward and backward. CPU "
        "milliseconds are medians of interleaved repeats (one call at 16,384 tokens). Alone: from queries, keys and "
        "values to the mixed values; block: with projections, norms and rotary positions. Share of pairs: declared by "
        f"the block, of those of `full`. Plan: what the first pass over {LAYERS} layers of one model costs more than "
        f"the second, in CPU seconds and peak memory. Memory limit {LIMIT_GIB:.0f} GiB."
    )
    title, command = "Attention blocks beside full attention", command_line("operators", arguments)
    write_page(args.out, page(title, command, [intro, *sections]))


if __name__ == "__main__":
    main()
