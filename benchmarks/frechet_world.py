"""The Fréchet distance of few clips and its interval on features that are no Gaussian: the world's, broken on purpose.

    python -m benchmarks.frechet_world --out benchmarks/results/frechet_world_<machine>_<date>.md

Many clips tell the truth, and disjoint subsets of them are judged by it. No threshold was set on these. Eight minutes
on one core, most of it rendering.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.evaluator import FPS, FRAMES, blurred, frozen, noisy, recoloured
from benchmarks.measure import command_line, markdown_table, page, write_page
from lightning_sora.metrics.distances import GROUPS
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.frechet import Moments
from lightning_sora.metrics.half_samples import FrechetEstimate, frechet_estimate
from lightning_sora.randomness import generator
from lightning_sora.world import World

SIDE, BATCH = 32, 64
MOST = 16  # subsets of one size
BROKEN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise, sigma 4": lambda clip, i: noisy(clip, i, 4),
    "noise, sigma 12": lambda clip, i: noisy(clip, i, 12),
    "noise, sigma 32": lambda clip, i: noisy(clip, i, 32),
    "blur, factor 1.6": lambda clip, i: blurred(clip, i, 1.6),
    "blur, factor 4": lambda clip, i: blurred(clip, i, 4),
    "second half frozen": lambda clip, i: frozen(clip, i, 0.5),
}


@dataclass(frozen=True)
class Law:
    """What clips were made of, their features, and whether each belongs to a real one."""

    name: str
    real: Tensor
    generated: Tensor
    paired: bool

    def estimate(self, clips: slice) -> FrechetEstimate:
        real, generated = self.real[clips], self.generated[clips]
        key = (self.name, clips.start, clips.stop)
        sides = dealt(real, key), dealt(generated, key if self.paired else (*key, "generated"))
        found = frechet_estimate(*sides, paired=self.paired)
        assert found is not None, "subsets of 64 clips can be halved"
        return found


def dealt(features: Tensor, key: Sequence[int | str]) -> list[Moments]:
    group = torch.randint(0, GROUPS, (len(features),), generator=generator(0, "frechet of the world", *key))
    return [Moments.of(features[group == i]) for i in range(GROUPS)]


def laws(count: int, broken: Mapping[str, Callable[[Tensor, int], Tensor]]) -> Iterator[Law]:
    """Pairs of all clips with what was made of each, then the first half against what was made of the second."""
    world, extractor = World("simple", seed=31, split="heldout"), EXTRACTORS.create("world")
    features: dict[str, list[Tensor]] = {name: [] for name in ("real", *broken, "colours wrong")}
    for start in range(0, count, BATCH):
        facts = [world.facts(i) for i in range(start, min(count, start + BATCH))]
        clips = [world.render(f, FRAMES, SIDE, SIDE, FPS) for f in facts]
        made = {name: [change(c, start + i) for i, c in enumerate(clips)] for name, change in broken.items()}
        made["real"] = clips
        made["colours wrong"] = [world.render(recoloured(f), FRAMES, SIDE, SIDE, FPS) for f in facts]
        for name, video in made.items():
            features[name].append(extractor(video, [FPS] * len(video)).double())
    found = {name: torch.cat(parts) for name, parts in features.items()}
    real, half = found.pop("real"), count // 2
    for name, made_of in found.items():
        yield Law(name, real, made_of, paired=True)
    yield Law("as rendered", real[:half], real[half:], paired=False)
    for name, made_of in found.items():
        yield Law(name, real[:half], made_of[half:], paired=False)


def rows(law: Law, sizes: Sequence[int]) -> Iterator[tuple[list[object], int, int]]:
    """A row for each number of clips, with how many intervals there were and how many held the truth."""
    whole = law.estimate(slice(0, len(law.real)))
    for size in sizes:
        every = [law.estimate(slice(i * size, (i + 1) * size)) for i in range(min(MOST, len(law.real) // size))]
        told = [one for one in every if one.reliable]
        held = sum(one.low <= whole.unbiased <= one.high for one in told)
        unbiased, width = (
            torch.tensor(values)
            for values in ([one.unbiased for one in told], [(one.high - one.low) / 2 for one in told])
        )
        plain = sum(one.value for one in every) / len(every)
        yield (
            [
                law.name,
                "pairs" if law.paired else "independent",
                size,
                f"{whole.unbiased:.4g} [{whole.low:.4g}, {whole.high:.4g}]",
                f"{plain:.4g}",
                f"{unbiased.mean():.4g} ± {unbiased.std(correction=0):.2g}" if told else "withheld",
                f"{width.mean():.2g}" if told else "",
                f"{held} of {len(told)}" if told else "",
            ],
            len(told),
            held,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few clips of one law, to try it")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    broken: Mapping[str, Callable[[Tensor, int], Tensor]]
    count, sizes, broken = (64, (32,), {}) if args.quick else (2048, (64, 128, 256), BROKEN)
    header = ["broken by", "clips", "number", "truth", "value", "unbiased", "half of interval", "held the truth"]
    table, totals = [], {True: [0, 0], False: [0, 0]}
    with torch.no_grad():
        for law in laws(count, broken):
            for row, told, held in rows(law, sizes):
                table.append(row)
                totals[law.paired][0] += told
                totals[law.paired][1] += held
    (pairs, pairs_held), (free, free_held) = totals[True], totals[False]
    text = [
        f'FVD (world) of clips of level "simple" and of what was made of them, {FRAMES} frames of {SIDE}x{SIDE}. '
        f'"truth": without bias, of all {count} clips (independent: {count // 2} a side), with its own interval. Then '
        "of disjoint subsets with so many clips a side: the mean of the distance as defined, of the one without bias "
        "± its spread between subsets, of half of the 95 % interval, and how often that held the truth.",
        markdown_table(header, table),
        f"Intervals that held the truth: {pairs_held} of {pairs} of pairs, {free_held} of {free} of independent clips. "
        "Subsets of one size share nothing; rows of different sizes do, and so does what was made of the same clips.",
    ]
    title = "The Fréchet distance of few clips on the world's features"
    write_page(args.out, page(title, command_line("frechet_world", arguments), text))


if __name__ == "__main__":
    main()
