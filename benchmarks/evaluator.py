"""What the world's evaluator sees when clips are broken on purpose: every score must fall where it should.

    python benchmarks/evaluator.py [PAGE.md]

Renders held-out clips, corrupts them, and prints two tables: FVD (world) against the degree of corruption, and the
scores of consistency and adherence under each corruption. Two minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from lightning_sora.metrics.distances import FrechetVideoDistance
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.testbench.adherence import FACTS, agreement, asked_codes, read_codes
from lightning_sora.testbench.evaluator.reading import load_evaluator
from lightning_sora.testbench.scores import WORLD_SCORES, world_scores
from lightning_sora.world import Facts, World

FRAMES, FPS, COUNT = 17, 8.0, 128
Clips = Sequence[torch.Tensor]


def generator(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(index)


def noisy(clip: torch.Tensor, index: int, sigma: float) -> torch.Tensor:
    noise = torch.randn(clip.shape, generator=generator(index))
    return (clip + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(clip: torch.Tensor, index: int, factor: float) -> torch.Tensor:
    side = clip.shape[1]
    frames = clip.permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, size=(round(side / factor),) * 2, mode="bilinear", antialias=True)
    large = F.interpolate(small, size=(side, side), mode="bilinear")
    return large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def shuffled(clip: torch.Tensor, index: int, share: float = 1.0) -> torch.Tensor:
    draw = generator(index)
    chosen = torch.randperm(FRAMES, generator=draw)[: round(FRAMES * share)].sort().values
    order = torch.arange(FRAMES)
    order[chosen] = chosen[torch.randperm(len(chosen), generator=draw)]
    return clip[order]


def frozen(clip: torch.Tensor, index: int, share: float = 1.0) -> torch.Tensor:
    return clip[torch.arange(FRAMES).clamp(max=FRAMES - 1 - round((FRAMES - 1) * share))]


def recoloured(facts: Facts) -> Facts:
    return replace(facts, objects=tuple(replace(thing, color="pink") for thing in facts.objects))


def emptied(facts: Facts) -> Facts:
    return replace(facts, objects=tuple(replace(t, center=(0.0, -60.0), motion="still") for t in facts.objects))


def ladder(level: str, side: int) -> list[tuple[str, list[str]]]:
    """FVD (world) of corrupted clips against the clips themselves."""
    world = World(level, seed=31, split="heldout")
    facts = [world.facts(i) for i in range(2 * COUNT)]
    render: Callable[[Facts], torch.Tensor] = lambda f: world.render(f, FRAMES, side, side, FPS)  # noqa: E731
    clips, others = [render(f) for f in facts[:COUNT]], [render(f) for f in facts[COUNT:]]
    extractor = EXTRACTORS.create("world")
    real = extractor(clips, [FPS] * COUNT)

    def distance(made: Clips, paired: bool = True) -> str:
        metric = FrechetVideoDistance(extractor)
        metric.add(real, [f"c{i}" for i in range(COUNT)], real=True)
        metric.add(
            extractor(list(made), [FPS] * len(made)), [f"{'c' if paired else 'd'}{i}" for i in range(COUNT)], real=False
        )
        found = metric.compute()
        if paired or "unbiased" not in found:
            return f"{found['value']:.4g}"
        return f"{found['value']:.4g} ({found['unbiased']:.3g} [{found['low']:.3g}, {found['high']:.3g}])"

    rows = [("other clips of the world (less bias, interval)", [distance(others, paired=False)])]
    degrees: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, ...]]] = {
        "noise, sigma 4, 12, 32, 64": (noisy, (4, 12, 32, 64)),
        "blur, factor 1.6, 2.5, 4, 8": (blurred, (1.6, 2.5, 4, 8)),
        "frames shuffled, 30, 60, 100 %": (shuffled, (0.3, 0.6, 1)),
        "frames frozen, 25, 50, 75, 100 %": (frozen, (0.25, 0.5, 0.75, 1)),
    }
    for name, (corrupt, values) in degrees.items():
        rows.append((name, [distance([corrupt(c, i, v) for i, c in enumerate(clips)]) for v in values]))
    for name, change in (("objects dropped", emptied), ("colours wrong", recoloured)):
        wrong = [render(change(f)) for f in facts[:COUNT]]
        shares = (0.1, 0.25, 0.5, 1.0)
        made = [distance(wrong[: round(s * COUNT)] + clips[round(s * COUNT) :]) for s in shares]
        rows.append((f"{name}, 10, 25, 50, 100 % of clips", made))
    return rows


def controls(level: str, side: int, count: int = 96) -> list[tuple[str, dict[str, float]]]:
    """Scores of clips that are broken in one way each."""
    world = World(level, seed=99, split="heldout")
    facts = [world.facts(i) for i in range(count)]
    told = [{**f.as_dict(), "config": vars(world.config)} for f in facts]
    clips = [world.render(f, FRAMES, side, side, FPS) for f in facts]
    grey = [c.float().mean(-1, keepdim=True).expand(-1, -1, -1, 3).to(torch.uint8) for c in clips]
    cases: dict[str, list[torch.Tensor]] = {
        "as rendered": clips,
        "frames shuffled": [shuffled(c, i) for i, c in enumerate(clips)],
        "frozen": [frozen(c, i) for i, c in enumerate(clips)],
        "reversed": [c.flip(0) for c in clips],
        "objects vanish half-way": [torch.cat([c[:9], g[9:]]) for c, g in zip(clips, grey, strict=True)],
        "cut together from six clips": [
            torch.stack([clips[(i + t // 3) % count][t] for t in range(FRAMES)]) for i in range(count)
        ],
        "of another caption": clips[1:] + clips[:1],
    }
    rows = []
    for name, made in cases.items():
        readings = load_evaluator().read(made, [FPS] * count)
        scores = [world_scores(r, t) for r, t in zip(readings, told, strict=True)]
        row = {}
        for score in WORLD_SCORES:
            values = torch.tensor([s[score] for s in scores if score in s])
            if len(values):
                row[score] = float(values.median() if score.endswith("error") else values.mean())
        rates = agreement(read_codes(readings), asked_codes(told)).mean(0)
        rows.append((name, row | {f"{fact} as asked": float(rate) for fact, rate in zip(FACTS, rates, strict=True)}))
    return rows


def page() -> str:
    record = load_evaluator().record
    lines = ["## Accuracy on held-out combinations", "", f"Weights sha256 {record['sha256'][:16]}.", ""]
    lines += [f"- {name}: {100 * value:.1f} %" for name, value in sorted(record["accuracy"].items())]
    lines += ["", f"## FVD (world) against {COUNT} clips, level tiny, 32x32", "", "| corruption | FVD |", "|---|---|"]
    lines += [f"| {name} | {', '.join(values)} |" for name, values in ladder("tiny", 32)]
    for level, side in (("tiny", 32), ("simple", 64), ("medium", 64)):
        rows = controls(level, side)
        names = list(dict.fromkeys(name for _, row in rows for name in row))
        lines += ["", f"## Scores under corruption, level {level}, {side}x{side}", ""]
        lines += [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for name, row in rows:
            lines.append(f"| {name} | {' | '.join(f'{row[n]:.3g}' if n in row else '' for n in names)} |")
    note = "Errors are medians over clips, in percent of the stage, of the frame, of the depth; the rest are means."
    return "\n".join([*lines, "", note, ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = page()
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
