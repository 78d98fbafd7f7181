"""The floor of the Fréchet distance, its value without bias and its interval, against simulation.

    python -m benchmarks.frechet --minutes 60 --out benchmarks/results/frechet_<machine>_<date>.md

Clips are Gaussian features of known covariance, so that every truth is known in closed form. Fewer clips than features
lie in a space of as many dimensions as there are clips: both sets are turned into it first, which no distance sees.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import command_line, markdown_table, page, write_page
from lightning_sora.metrics.distances import GROUPS
from lightning_sora.metrics.frechet import Moments, frechet_distance
from lightning_sora.metrics.half_samples import clips_needed, frechet_estimate, frechet_floor
from lightning_sora.randomness import generator

WIDTHS, CLIPS = (64, 400, 768, 1408), (32, 128, 512, 2048)
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "1/k": lambda k: 1 / k,
    "k^-1.5": lambda k: k**-1.5,
    "k^-2": lambda k: k**-2,
    "flat": torch.ones_like,
}
LAWS = ("equal", "equal, paired", "shifted", "shifted, paired", "scaled", "scaled, paired", "steeper", "noisier")
REPEATS = ((64, 10), (256, 3), (800, 2), (math.inf, 1))
"""Of each law, by the number of dimensions."""
PAIRS = 6  # of sets, of which the floor is the mean, for each that tells it


@dataclass(frozen=True)
class Cell:
    """Sets of so many clips with so many features."""

    width: int
    spectrum: str
    clips: int

    @property
    def dimensions(self) -> int:
        return min(self.width, 2 * self.clips)

    @property
    def repeats(self) -> int:
        return next(repeats for most, repeats in REPEATS if self.dimensions <= most)


@dataclass
class Found:
    """What estimates of a cell say.

    Attributes:
        covered: by law, of each repetition whether the interval holds the truth, where it is told.
        errors: by law, estimate less truth.
        apart: distances as defined of independent sets of one law, which the floor is the mean of.
        said: floors.
        needed: clips that are said to be needed, where an interval is withheld.
    """

    covered: dict[str, list[bool]] = field(default_factory=lambda: {law: [] for law in LAWS})
    apart: list[float] = field(default_factory=list)
    said: list[float] = field(default_factory=list)
    reliability: list[float] = field(default_factory=list)
    needed: list[int] = field(default_factory=list)

    def row(self, cell: Cell) -> list[object]:
        floor, said = statistics.mean(self.apart), statistics.mean(self.said)
        told = [f"{sum(c)} of {len(c)}" if (c := self.covered[law]) else "withheld" for law in LAWS]
        needed = f"{statistics.median(self.needed):.0f}" if self.needed else ""
        spread = f" ± {statistics.stdev(self.said) / floor:.2f}" if len(self.said) > 1 else ""
        ratio = f"{said / floor:.2f}{spread}"
        reliability = f"{statistics.mean(self.reliability):.2f}"
        return [cell.width, cell.spectrum, cell.clips, reliability, f"{floor:.3g}", ratio, *told, needed]


def other_law(law: str, values: Tensor) -> tuple[Tensor, float, float, float]:
    """Eigenvalues, gain and shift of the other set, and how far it is from the first."""
    eigenvalues, gain, shift = values, 1.0, 0.0
    if law.startswith("shifted"):
        shift = math.sqrt(float(values.sum()) / 4)
    if law.startswith("scaled"):
        gain = 1.5
    if law == "steeper":
        eigenvalues = values * torch.arange(1, len(values) + 1).double() ** -0.5
        eigenvalues = eigenvalues * values.sum() / eigenvalues.sum()
    if law == "noisier":
        eigenvalues = values + values.sum() / len(values) / 2
    return eigenvalues, gain, shift, shift**2 + float((gain * eigenvalues.sqrt() - values.sqrt()).square().sum())


def two_sets(cell: Cell, law: str, trial: int) -> tuple[Tensor, Tensor, float]:
    """Features of both, in as few dimensions as hold them, and the distance of their laws."""
    values = SPECTRA[cell.spectrum](torch.arange(1, cell.width + 1).double())
    eigenvalues, gain, shift, truth = other_law(law, values)
    key = (cell.width, cell.spectrum, cell.clips, law, trial)
    first, second = (
        torch.randn(
            (cell.clips, cell.width), generator=generator(0, "frechet benchmark", *key, side), dtype=torch.float64
        )
        for side in ("real", "generated")
    )
    if law.endswith("paired"):
        second = 0.8 * first + 0.6 * second
    second = gain * second * eigenvalues.sqrt()
    second[:, 0] += shift
    both = torch.cat([first * values.sqrt(), second])
    if len(both) < cell.width:
        both = torch.linalg.qr(both.T, mode="r").R.T
    return both[: cell.clips], both[cell.clips :], truth


def grouped(features: Tensor, key: Sequence[int | str]) -> list[Moments]:
    group = torch.randint(0, GROUPS, (len(features),), generator=generator(0, "frechet benchmark groups", *key))
    return [Moments.of(features[group == i]) for i in range(GROUPS)]


def repeat(cell: Cell, law: str, trial: int, found: Found) -> None:
    """One estimate of one law."""
    real, generated, truth = two_sets(cell, law, trial)
    paired = law.endswith("paired")
    key = (cell.width, cell.spectrum, cell.clips, trial)
    sides = grouped(real, key), grouped(generated, key if paired else (*key, "generated"))
    estimate = frechet_estimate(*sides, paired=paired)
    if estimate is not None and estimate.reliable:
        found.covered[law].append(estimate.low <= truth <= estimate.high)
    if law != "equal":
        return
    assert estimate is not None, "sets of 32 clips can be halved"
    found.apart.append(estimate.value)
    found.reliability.append(min(estimate.reliability))
    floor = frechet_floor(sides[0], cell.clips, cell.clips)
    assert floor is not None, "sides are of one size"
    found.said.append(floor)
    if not estimate.reliable:
        found.needed.append(clips_needed(sides[0], estimate.least_reliability) or 0)


def cells(widths: Sequence[int], clips: Sequence[int]) -> Iterator[Cell]:
    """The quickest first."""
    every = itertools.starmap(Cell, itertools.product(widths, SPECTRA, clips))
    return iter(sorted(every, key=lambda cell: (cell.dimensions, cell.clips * cell.width)))


def measured(every: Sequence[Cell], minutes: float) -> dict[Cell, Found]:
    """Cells one after the other, none begun after so many minutes."""
    begun, found = time.monotonic(), {}
    for cell in every:
        if time.monotonic() - begun > 60 * minutes:
            break
        found[cell] = Found()
        for trial, law in itertools.product(range(cell.repeats), LAWS):
            repeat(cell, law, trial, found[cell])
        for trial in range(cell.repeats, PAIRS * cell.repeats):
            real, generated, _ = two_sets(cell, "equal", trial)
            found[cell].apart.append(float(frechet_distance(Moments.of(real), Moments.of(generated))))
        print(*found[cell].row(cell), flush=True)
    return found


def sections(found: dict[Cell, Found], every: Sequence[Cell]) -> list[str]:
    header = ["width", "spectrum", "clips", "reliability", "floor", "said / simulated", *LAWS, "clips needed"]
    rows = [found[cell].row(cell) for cell in sorted(found, key=lambda c: (c.width, list(SPECTRA).index(c.spectrum)))]
    pooled = []
    for law in LAWS:
        held = [held for one in found.values() for held in one.covered[law]]
        bound = 0.95 - 3 * math.sqrt(0.95 * 0.05 / max(1, len(held)))
        pooled.append([law, len(held), f"{sum(held) / max(1, len(held)):.1%}", f"{bound:.1%}"])
    off = [abs(statistics.mean(one.said) / statistics.mean(one.apart) - 1) for one in found.values()]
    left = [f"{c.width} x {c.clips} {c.spectrum}" for c in every if c not in found]
    return [
        "Two sets of so many clips with so many features, covariances with eigenvalues as named, dealt to 16 groups at "
        'random. "floor": the distance as defined of two independent sets of one law, mean over sets; "said": that '
        "from one set alone, mean ± standard deviation over sets. Then how often the 95 % interval held the truth, for "
        "independent and for paired clips (correlation 0.8), of equal laws; of a mean shifted by half of the root of "
        "the trace; of 1.5 times the features; of eigenvalues steeper by k^-0.5; and with white noise of half of the "
        "trace. Fewer intervals than repetitions: the others are withheld, as the reliability of halves is below 0.5, "
        'or below 0.9 and unlike on both sides; "clips needed" is what the warning says then.',
        markdown_table(header, rows),
        f"The floor is off by {statistics.median(off):.0%} (median over rows), {max(off):.0%} at most, sampling of "
        "both means included. All rows together:",
        markdown_table(["law", "intervals", "held the truth", "3 standard errors below 95 %"], pooled),
        f"Not reached in the time given: {', '.join(left)}." if left else "Every cell was reached.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no cell is begun (default: 60)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of features (default: all)")
    parser.add_argument("--clips", type=int, nargs="+", default=CLIPS, help="in a set (default: all)")
    parser.add_argument("--quick", action="store_true", help="two small cells, to try it")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    every = [Cell(8, "1/k", 64), Cell(48, "flat", 32)] if args.quick else list(cells(args.widths, args.clips))
    found = measured(every, args.minutes)
    title = "The Fréchet distance of few clips: floor and interval against simulation"
    write_page(args.out, page(title, command_line("frechet", arguments), sections(found, every)))


if __name__ == "__main__":
    main()
