"""How often is a verdict false, and an effect found, where the metric is a share of clips? By simulation.

    python benchmarks/verdicts.py [--quick] [--out FILE.md]

A share moves in steps of one clip, so that with few seeds all differences may be equal by chance. Shares are drawn as
independent answers of each arm and seed, the hardest case for ties, and judged by ``ablation.statistics.judge``, as
``compare`` does. The plain paired t-test, which takes equal differences for proof (p = 0), stands beside it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_sora.ablation.statistics import holm, judge
from lightning_sora.tracking.provenance import code_state, machine

LEVEL = 0.95
CLIPS = 128
SEEDS = (2, 3, 5, 8)
ARMS = (1, 3, 8)
RATES = (0.5, 0.7, 0.9, 0.99)
EFFECTS = ((0.5, 0.6), (0.5, 0.8), (0.61, 0.96), (0.9, 0.95), (0.95, 1.0))


def shares(rates: NDArray[np.float64], seeds: int, seed: int, repeats: int) -> NDArray[np.float64]:
    """Shares of ``CLIPS`` clips.

    Args:
        rates: of each arm, the baseline first.

    Returns:
        [repeats arms seeds].
    """
    drawn = np.random.default_rng(seed).binomial(CLIPS, rates[None, :, None], size=(repeats, len(rates), seeds))
    return drawn / CLIPS


def plain(values: NDArray[np.float64]) -> list[bool]:
    """Whether each arm is told from the baseline by Student's t on the spread as it is; see Holm for the arms.

    Args:
        values: [arms seeds], the baseline first.
    """
    differences = values[1:] - values[0]
    means, spreads = differences.mean(axis=1), differences.std(axis=1, ddof=1)
    found = []
    for mean, spread in zip(means, spreads, strict=True):
        if abs(mean) < 1e-12:
            found.append(1.0)
        elif spread < 1e-12:
            found.append(0.0)
        else:
            found.append(float(2 * stats.t.sf(abs(mean) / (spread / values.shape[1] ** 0.5), values.shape[1] - 1)))
    return [p <= 1 - LEVEL for p in holm(found)]


def judged(values: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[list[str], list[bool | None]]:
    """Outcomes by arm, and whether each interval, where there is one, covers the true difference."""
    named = {f"a{i}": dict(enumerate(row)) for i, row in enumerate(values.tolist())}
    verdicts = judge(named, "a0", "max", level=LEVEL, clips=CLIPS)[1:]
    covered = [
        None if v.interval is None else v.interval.low - 1e-12 <= t <= v.interval.high + 1e-12
        for v, t in zip(verdicts, truth, strict=True)
    ]
    return [v.outcome for v in verdicts], covered


def false_findings(seeds: int, arms: int, rate: float, repeats: int) -> tuple[float, float]:
    """The share of ablations of equal arms in which any is called better or worse: plain, and by ``judge``."""
    rates = np.full(arms + 1, rate)
    drawn = shares(rates, seeds, seeds * 1000 + arms * 100 + int(100 * rate), repeats)
    naive = sum(any(plain(values)) for values in drawn)
    ours = sum(set(judged(values, np.zeros(arms))[0]) != {"inconclusive"} for values in drawn)
    return naive / repeats, ours / repeats


def power(seeds: int, low: float, high: float, repeats: int) -> tuple[float, float, float, float]:
    """One arm that is better: found by the plain test, by ``judge``, called worse, and covered by the interval."""
    drawn = shares(np.array([low, high]), seeds, seeds * 1000 + int(100 * low + high), repeats)
    truth = np.array([high - low])
    naive = sum(plain(values)[0] for values in drawn) / repeats
    results = [judged(values, truth) for values in drawn]
    outcomes = [outcome for (outcome,), _ in results]
    covered = [hit for _, (hit,) in results if hit is not None]
    return naive, outcomes.count("better") / repeats, outcomes.count("worse") / repeats, sum(covered) / len(covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few of the draws, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("verdicts.md"))
    args = parser.parse_args()
    begun = time.perf_counter()
    repeats = 40 if args.quick else 600
    lines = [
        "## Equal arms: how often any is called better or worse (should be 5 % at most)\n",
        f"In each cell: the plain t-test, then `judge`. {repeats} ablations per cell, so that 5 % is measured within "
        f"± {196 * (0.05 * 0.95 / repeats) ** 0.5:.1f} points.\n",
        "| seeds | arms | " + " | ".join(f"rate {rate}" for rate in RATES) + " |",
        "|" + "---|" * (2 + len(RATES)),
    ]
    for seeds in SEEDS:
        for arms in ARMS:
            cells = [false_findings(seeds, arms, rate, repeats) for rate in RATES]
            shown = " | ".join(f"{naive:.1%}, **{ours:.1%}**" for naive, ours in cells)
            lines.append(f"| {seeds} | {arms} | {shown} |")
            print(lines[-1], f"{time.perf_counter() - begun:.0f} s", flush=True)
    lines += [
        "\n## One better arm: how often it is found\n",
        "| seeds | baseline | arm | plain t-test | `judge` | called worse | 95 % interval covers |",
        "|---|---|---|---|---|---|---|",
    ]
    for seeds in SEEDS:
        for low, high in EFFECTS:
            naive, right, wrong, covered = power(seeds, low, high, repeats)
            lines.append(f"| {seeds} | {low} | {high} | {naive:.1%} | **{right:.1%}** | {wrong:.1%} | {covered:.1%} |")
            print(lines[-1], f"{time.perf_counter() - begun:.0f} s", flush=True)
    host, commit = machine(), code_state().commit[:7]
    head = (
        "# Verdicts on shares of clips: false findings, power and coverage\n\n"
        f"`python benchmarks/verdicts.py`, commit {commit}, {time.strftime('%Y-%m-%d')}. {host['cpus']} x "
        f"{host['processor']}, one thread; {(time.perf_counter() - begun) / 60:.0f} min. {CLIPS} clips, each answered "
        "right or wrong independently of all others; nothing was trained.\n\n"
    )
    args.out.write_text(head + "\n".join(lines) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
