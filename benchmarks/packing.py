"""What padding, buckets and packing waste on a realistic mix of sizes, and how long ranks wait for each other.

    python benchmarks/packing.py [--clips 40000]

The mix: 35 % images; videos of 5 to 64 frames (log-normal, median 28); areas of 256^2, 384^2 and 512^2 pixels, each
jittered; aspects from 9:16 to 16:9. Patches of 4x16x16 pixels (a VAE of 4x8x8 under a DiT of 1x2x2). Nothing is
decoded: sizes are all that a plan knows.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import numpy as np

from lightning_sora.data.packing import cost
from lightning_sora.data.plan import BatchPlan
from lightning_sora.data.sizes import SIZES, Limits
from lightning_sora.data.sources import ClipInfo
from lightning_sora.spacetime import PatchSize

PATCH = PatchSize(4, 16, 16)
BUDGET, RANKS = 16384, 8
LENGTHS = (1, 5, 9, 17, 33, 49, 61)


def mix(clips: int, seed: int = 0) -> list[ClipInfo]:
    """Clips of the realistic mix."""
    draw = np.random.default_rng(seed)
    infos = []
    for index in range(clips):
        still = draw.random() < 0.35
        frames = 1 if still else int(np.clip(np.exp(draw.normal(np.log(28), 0.7)), 5, 64))
        area = draw.choice([256, 384, 512]) ** 2 * draw.uniform(0.9, 1.1)
        aspect = np.exp(draw.uniform(np.log(9 / 16), np.log(16 / 9)))
        height, width = np.sqrt(area * aspect), np.sqrt(area / aspect)
        infos.append(ClipInfo(f"clip{index}", frames, round(height), round(width), 24.0))
    return infos


def idle(costs: Sequence[float]) -> float:
    """The share of all ranks' time that is spent in waiting for the slowest of each step."""
    whole = [costs[i : i + RANKS] for i in range(0, len(costs) - RANKS + 1, RANKS)]
    return 1 - sum(map(sum, whole)) / sum(RANKS * max(step) for step in whole)


def planned(infos: list[ClipInfo], spec: str, side_by_side: int) -> dict[str, float]:
    """Figures of one policy, over one epoch; of the waiting, over three, which end anywhere in a step."""
    limits = Limits(61, 512, 512, PATCH, 1)

    def order(epoch: int) -> list[tuple[int, int]]:
        return [(int(i), epoch) for i in np.random.default_rng(epoch).permutation(len(infos))]

    begun = time.perf_counter()
    policy = SIZES.create(spec, limits)
    plan = BatchPlan(infos, policy, fps=None, seed=0, order=order, side_by_side=side_by_side)
    batches = plan.epoch(0)
    seconds = time.perf_counter() - begun
    lengths = [[grid.tokens for grid in batch.grids] for batch in batches]
    tokens = sum(map(sum, lengths))
    there = sum(
        min(limits.frames, infos[i].frames) * infos[i].height * infos[i].width for b in batches for i in b.clips
    )
    used = sum(np.prod(grid.size(PATCH)) for b in batches for grid in b.grids)
    return {
        "use": tokens / sum(batch.budget for batch in batches),
        "padded": tokens / sum(len(one) * max(one) for one in lengths),
        "lost": 1 - used / there,
        "dropped": plan.usage.dropped_clips / len(infos),
        "idle": idle(
            [cost([grid.tokens for grid in b.grids]) for b in itertools.islice(plan.stream(0), plan.start(3))]
        ),
        "seconds": seconds,
    }


def padded(infos: list[ClipInfo], batch: int) -> tuple[float, float, float]:
    """Use, idleness and lost pixels of batches in drawn order, each padded to its longest clip."""
    policy = SIZES.create(f"packed(tokens={1 << 20})", Limits(61, 512, 512, PATCH, 1))
    grids = [policy.grid(info, None) for info in infos]
    lengths = [grid.tokens for grid in grids if not isinstance(grid, str)]
    groups = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    there = sum(min(61, info.frames) * info.height * info.width for info in infos)
    lost = 1 - sum(np.prod(grid.size(PATCH)) for grid in grids if not isinstance(grid, str)) / there
    use = sum(lengths) / sum(len(g) * max(g) for g in groups)
    return use, idle([cost([max(g)] * len(g)) for g in groups]), lost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=40000)
    infos = mix(parser.parse_args().clips)
    use, waiting, lost = padded(infos, 8)
    print(
        f"{len(infos):,} clips; sequences of {BUDGET:,} tokens; idle: of {RANKS} ranks' FLOPs, those spent in waiting\n"
    )
    print("| sizes | tokens used of those computed | of the budget | pixels lost | clips dropped | idle | plan (s) |")
    print("|---|---|---|---|---|---|---|")
    print(f"| padded to the longest of 8, in drawn order | {use:.1%} | – | {lost:.1%} | 0 % | {waiting:.0%} | – |")
    for spec, side in (
        (f"bucketed(frames={LENGTHS}, resolutions=(240, 360, 480), tokens={BUDGET})", 1),
        (f"bucketed(frames={LENGTHS}, resolutions=(240, 360, 480), tokens={BUDGET})", 8),
        (f"packed(tokens={BUDGET}, lookahead=1)", 1),
        (f"packed(tokens={BUDGET})", 1),
        (f"packed(tokens={BUDGET})", 8),
        (f"packed(tokens={2 * BUDGET})", 8),
    ):
        found = planned(infos, spec, side)
        name = f"`{spec}`, " + ("ranks balanced" if side > 1 else "not balanced")
        # No policy of ours pads: what is in a batch is what is computed.
        shares = " | ".join(f"{found[key]:.1%}" for key in ("use", "lost", "dropped", "idle"))
        print(f"| {name} | 100 % | {shares} | {found['seconds']:.1f} |")
