"""Are the verdicts honest, and what does pairing buy? Measured on a toy that trains in half a second.

    python benchmarks/pairing.py [--quick] [--out FILE.md]

A small DiT learns short synthetic clips of six classes, with every draw keyed as in :class:`LitDiT`. Hundreds of
trainings then answer, through the same ``ablation.statistics.judge`` that ``compare`` uses:

- A/A: arms that differ in nothing that matters (another draw of initial values). How often is one called better?
- Planted: an arm with a handicap whose true size is known from many other seeds. Is it found, with the right sign, and
  does the interval cover the truth as often as it claims?
- Pairing: the variance of an arm difference with shared draws over that with independent ones.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lightning_sora.ablation.statistics import judge
from lightning_sora.diffusion.paths import OBJECTIVES, interpolate
from lightning_sora.models.denoisers import DiT
from lightning_sora.models.text import TextContext
from lightning_sora.randomness import generator, initialize, normal_per_clip, uniform_per_clip
from lightning_sora.spacetime import TokenGrid, TokenLayout
from lightning_sora.tracking.provenance import code_state, machine

GRID, ROW, CLASSES = TokenGrid(2, 4, 4), 8, 6
BATCH, STEPS, VAL_CLIPS, STRATA = 16, 60, 32, 4
LEVEL = 0.95


@dataclass(frozen=True)
class Toy:
    """One training.

    Attributes:
        init_seed: of the initial values.
        stream_seed: of data order, timesteps and noise.
        fixed_validation: whether validation noise is the same in every training.
    """

    attention: str = "full"
    learning_rate: float = 3e-3
    init_seed: int = 0
    stream_seed: int = 0
    fixed_validation: bool = True


@cache
def clip(index: int) -> tuple[Tensor, int]:
    """A clip of one of six classes: a wave of the class's direction and frequency, with its own phase and noise."""
    draw = generator(0, "clip", index)
    kind = int(torch.randint(CLASSES, (), generator=draw))
    phase, noise = torch.rand((), generator=draw), torch.randn(GRID.tokens, ROW, generator=draw)
    at = TokenLayout((GRID,)).coordinates()[:, 1:].float()
    direction = generator(0, "class", kind)
    wave = at @ torch.randn(3, ROW, generator=direction) + 6.28 * phase
    return torch.cos(wave) + 0.2 * noise, kind


def batch_of(indices: Sequence[int]) -> tuple[Tensor, TextContext]:
    rows, kinds = zip(*(clip(i) for i in indices), strict=True)
    words = torch.nn.functional.one_hot(torch.tensor(kinds), CLASSES).float()[:, None]
    return torch.stack(rows), TextContext(words, torch.ones(len(indices), 1, dtype=torch.bool))


@cache
def train(toy: Toy) -> dict[str, float]:
    """Validation error per clip, after training."""
    net = DiT(ROW, dim=32, depth=2, num_heads=2, text_dim=CLASSES, attention=toy.attention)
    initialize(net, toy.init_seed, "dit.")
    objective = OBJECTIVES.create("velocity")
    optimizer = torch.optim.AdamW(net.parameters(), lr=toy.learning_rate)
    layout = TokenLayout.uniform(GRID, BATCH)
    order = generator(toy.stream_seed, "order")
    for step in range(STEPS):
        chosen = torch.randint(10_000, (BATCH,), generator=order).tolist()
        keys = [(str(i), step) for i in chosen]
        x_0, text = batch_of(chosen)
        t = uniform_per_clip(toy.stream_seed, "timestep", keys)
        noise = torch.stack(normal_per_clip([tuple(x_0.shape[1:])] * BATCH, toy.stream_seed, "noise", keys))
        x_t = interpolate(x_0, noise, t[:, None, None])
        error = net(x_t, t, text, layout) - objective.target(x_0, noise, t[:, None, None])
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return validate(net, 0 if toy.fixed_validation else 1 + toy.stream_seed)


@torch.no_grad()
def validate(net: DiT, seed: int) -> dict[str, float]:
    """The mean squared error of ``x_0`` per held-out clip, over strata of t."""
    indices = range(10_000, 10_000 + VAL_CLIPS)
    x_0, text = batch_of(list(indices))
    layout = TokenLayout.uniform(GRID, VAL_CLIPS)
    offsets = uniform_per_clip(seed, "fixed_timestep", [(str(i),) for i in indices])
    total = torch.zeros(VAL_CLIPS)
    for stratum in range(STRATA):
        t = (stratum + offsets) / STRATA
        keys = [(str(i), stratum) for i in indices]
        noise = torch.stack(normal_per_clip([tuple(x_0.shape[1:])] * VAL_CLIPS, seed, "fixed_noise", keys))
        x_t = interpolate(x_0, noise, t[:, None, None])
        implied = x_t - t[:, None, None] * net(x_t, t, text, layout)
        total += (implied - x_0).square().mean(dim=(1, 2)) / STRATA
    return dict(zip(map(str, indices), total.tolist(), strict=True))


def mean(toy: Toy) -> float:
    return float(np.mean(list(train(toy).values())))


def compare(
    baseline: Callable[[int], Toy], arm: Callable[[int], Toy], seeds: Sequence[int]
) -> tuple[str, float, float]:
    """The verdict on an arm, and its interval."""
    values = {name: {s: mean(make(s)) for s in seeds} for name, make in (("base", baseline), ("arm", arm))}
    verdict = judge(values, "base", "min", level=LEVEL)[1]
    assert verdict.interval is not None
    return verdict.outcome, verdict.interval.low, verdict.interval.high


def paired(attention: str = "full", **changes: float) -> Callable[[int], Toy]:
    return lambda s: replace(Toy(attention=attention, init_seed=s, stream_seed=s), **changes)  # type: ignore[arg-type]


def share(hits: int, n: int) -> str:
    """A rate with its exact binomial interval (Clopper and Pearson 1934)."""
    low, high = stats.binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    return f"{hits} of {n} = {hits / n:.1%} [{low:.1%}, {high:.1%}]"


def variance_ratio(shared: np.ndarray, independent: np.ndarray) -> str:
    """Variance with pairing over variance without, with a bootstrap interval over seeds."""
    draw = np.random.default_rng(0)
    ratios = [
        np.var(draw.choice(shared, len(shared)), ddof=1) / np.var(draw.choice(independent, len(independent)), ddof=1)
        for _ in range(4000)
    ]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return f"{np.var(shared, ddof=1) / np.var(independent, ddof=1):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trainings, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("pairing.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    comparisons, per = (8, 3) if args.quick else (80, 3)
    lines: list[str] = []

    # A/A: the arm's initial values are drawn anew; everything else is shared.
    hits = 0
    for c in range(comparisons):
        seeds = range(per * c, per * (c + 1))
        other = lambda s: replace(paired()(s), init_seed=100_000 + s)  # noqa: E731
        hits += compare(paired(), other, seeds)[0] != "inconclusive"
    lines.append(f"| A/A false positives at 5 %, {per} seeds each | {share(hits, comparisons)} |")
    print(lines[-1], f"{time.perf_counter() - begun:.0f} s", flush=True)

    # Planted: half the learning rate; the truth from seeds that no comparison uses.
    slower = paired(learning_rate=1.5e-3)
    truth_seeds = range(1000, 1000 + (10 if args.quick else 100))
    effects = np.array([mean(slower(s)) - mean(paired()(s)) for s in truth_seeds])
    truth, standard_error = effects.mean(), effects.std(ddof=1) / math.sqrt(len(effects))
    right = wrong = covered = 0
    for c in range(comparisons):
        outcome, low, high = compare(paired(), slower, range(per * c, per * (c + 1)))
        right, wrong = right + (outcome == "worse"), wrong + (outcome == "better")
        covered += low <= truth <= high
    of = f"handicap (half the learning rate): true difference, {len(effects)} other seeds"
    lines.append(f"| {of} | {truth:+.5f} ± {standard_error:.5f} |")
    lines.append(f"| found worse, as it is | {share(right, comparisons)} |")
    lines.append(f"| called better | {share(wrong, comparisons)} |")
    lines.append(f"| 95 % interval covers the true difference | {share(covered, comparisons)} |")
    print("\n".join(lines[-4:]), f"{time.perf_counter() - begun:.0f} s", flush=True)

    # Pairing: full against factorised attention.
    count = 12 if args.quick else 60
    seeds = range(count)
    factorised = "spatial, temporal"

    def differences(offset: int, fixed: bool) -> np.ndarray:
        return np.array(
            [
                mean(replace(paired(factorised)(s + offset), fixed_validation=fixed))
                - mean(replace(paired()(s), fixed_validation=fixed))
                for s in seeds
            ]
        )

    shared = differences(0, fixed=True)
    fixed_only, nothing = differences(5000, fixed=True), differences(5000, fixed=False)
    lines.append(f"| standard deviation of full vs factorised, all draws shared | {shared.std(ddof=1):.5f} |")
    lines.append(f"| the same, independent seeds, fixed validation noise | {fixed_only.std(ddof=1):.5f} |")
    lines.append(f"| the same, independent seeds, random validation noise | {nothing.std(ddof=1):.5f} |")
    lines.append(
        f"| **variance, paired : unpaired** (fixed validation in both) | {variance_ratio(shared, fixed_only)} |"
    )
    lines.append(f"| variance, paired : unpaired and random validation | {variance_ratio(shared, nothing)} |")
    clip_pairs = np.array([[train(paired(factorised)(s))[k] - v for k, v in train(paired()(s)).items()] for s in seeds])
    unpaired_clips = np.array([list(train(paired()(s)).values()) for s in seeds])
    within = clip_pairs.var(axis=1, ddof=1).mean() / (2 * unpaired_clips.var(axis=1, ddof=1).mean())
    lines.append(f"| variance over clips of one training, paired : unpaired | {within:.3f} |")
    print("\n".join(lines[-6:]), f"{time.perf_counter() - begun:.0f} s", flush=True)

    host, commit = machine(), code_state().commit[:7]
    text = (
        "# What pairing buys, and whether verdicts are honest\n\n"
        f"`python benchmarks/pairing.py`, commit {commit}, {time.strftime('%Y-%m-%d')}. {host['cpus']} x "
        f"{host['processor']}, one thread, torch {host['torch']}; {(time.perf_counter() - begun) / 60:.0f} min, "
        f"{train.cache_info().currsize} trainings of {STEPS} steps. "
        "One toy and one contrast: an indication, no law.\n\n"
        "| what | value [95 % interval] |\n|---|---|\n" + "\n".join(lines) + "\n"
    )
    args.out.write_text(text)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
