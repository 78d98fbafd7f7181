"""Sora's framing ablation on the world: trained at native aspect, or on square crops, how much of the object is shown?

    python benchmarks/framing.py

Runs recipes/ablations/framing.yaml, samples held-out prompts from every training at the wide native size and at the
square, and measures in how many frames the coloured object is cut by the border, or not there. That needs no learned
judge: everything else in this world is grey.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_sora.ablation.plan import read_plan
from lightning_sora.ablation.statistics import Contrast, t_interval
from lightning_sora.cli import main
from lightning_sora.data.reading import read_clip
from lightning_sora.data.sources import SOURCES, Clip, Source
from lightning_sora.lit import LitDiT
from lightning_sora.spacetime import Crop, VideoSize
from lightning_sora.tracking.provenance import code_state

RECIPE = Path(__file__).parents[1] / "recipes" / "ablations" / "framing.yaml"
FOLDER = Path("outputs/ablations/framing")
SIZES = {"wide, 17x24x48": (17, 24, 48), "square, 17x32x32": (17, 32, 32)}
PROMPTS = 64
COLOURED, LEAST = 60, 6  # of 255; pixels that make an object


def cut_or_missing(video: Tensor) -> float:
    """The share of frames in which the coloured object touches the border or is not there.

    Args:
        video: uint8 [frames height width 3].
    """
    pixels = video.int()
    coloured = pixels.amax(-1) - pixels.amin(-1) > COLOURED
    border = torch.ones(coloured.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    touches = (coloured & border).sum(dim=(1, 2)) > 1
    missing = coloured.sum(dim=(1, 2)) < LEAST
    return float((touches | missing).float().mean())


def read(source: Source, index: int, size: tuple[int, int, int]) -> Clip:
    """A clip as training reads it at its first visit."""
    return read_clip(source, index, Crop(VideoSize(*size)), seed=0)


def sampled(checkpoint: Path, prompts: list[str], size: tuple[int, int, int]) -> float:
    """Mean over clips of the prompts."""
    model = LitDiT.load(checkpoint)
    clips = [c for i in range(0, len(prompts), 32) for c in model.sample(
        prompts[i : i + 32], *size, keys=[(k,) for k in range(i, min(i + 32, len(prompts)))])]  # fmt: skip
    return float(np.mean([cut_or_missing(clip) for clip in clips]))


if __name__ == "__main__":
    if status := main(["ablate", str(RECIPE)]):
        sys.exit(status)
    plan = read_plan(RECIPE)
    test, train = (
        SOURCES.create(str(plan.overrides["data.source"]), root=None, split=split, seed=0)
        for split in ("test", "train")
    )
    prompts = [read(test, index, (17, 24, 48)).caption for index in range(PROMPTS)]
    real = {
        **{f"held-out clips, {name}": (test, size) for name, size in SIZES.items()},
        "crops of training, square": (train, SIZES["square, 17x32x32"]),
    }
    print(f"\n{date.today()}, commit {code_state().commit[:12]}, torch {torch.__version__}, seeds {list(plan.seeds)};")
    print("frames in which the object is cut or missing; of real clips:")
    for name, (source, size) in real.items():
        print(f"{name}: {np.mean([cut_or_missing(read(source, i, size).video) for i in range(PROMPTS)]):.1%}")
    print()
    print("| trained on | sampled | cut or missing | minus native |\n|---|---|---|---|")
    for name, size in SIZES.items():
        found = {
            arm: [
                sampled(
                    next(FOLDER.glob(f"{arm.replace(' ', '_')}*/seed{seed}")) / "checkpoints/last.ckpt", prompts, size
                )
                for seed in plan.seeds
            ]
            for arm in plan.arms
        }
        for arm, values in found.items():
            ours, theirs = ({i: 100 * v for i, v in enumerate(found[name])} for name in (arm, plan.baseline))
            contrast = Contrast.between(ours, theirs, step=100 / (PROMPTS * size[0]))  # one frame of one clip
            low, high = t_interval(contrast.differences, 0.95, contrast.spread)
            told = f"{contrast.differences.mean():+.1f} [{low:+.1f}, {high:+.1f}]" if arm != plan.baseline else "–"
            print(f"| {arm} | {name} | {np.mean(values):.1%} | {told} |", flush=True)
