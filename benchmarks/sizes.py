"""Sizes and rates that a model was not trained on: what is shown of a prompt, by each way to place tokens and times.

    python -m benchmarks.sizes MODEL [--clips N] [--cases "A, B"] [--quick] [--out FILE]

MODEL was trained on the tiny world, such as `outputs/world_dit`. Prompts are of combinations that training never shows;
every option begins with the same noise. The world's evaluator reads the clips, and the world's own clips of the same
facts beside them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy import stats
from torch import Tensor

import lightning_sora as ls
from benchmarks.measure import command_line, markdown_table, page, write_page
from lightning_sora.lab.models import load_video_model
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.spacetime import TokenGrid, VideoSize
from lightning_sora.testbench.adherence import FACTS, agreement, asked_codes, read_codes
from lightning_sora.testbench.evaluator.reading import load_evaluator
from lightning_sora.world import Facts

#: The length in seconds, the height, the width and the rate, over those of the training.
CASES = {
    "as trained": (1, 1, 1, 1),
    "twice as high and wide": (1, 2, 2, 1),
    "twice as long": (2, 1, 1, 1),
    "half as much again": (1, 1.5, 1.5, 1),
    "twice the rate": (1, 1, 1, 2),
    "twice as wide": (1, 1, 2, 1),
    "half as high and wide": (1, 0.5, 0.5, 1),
    "half as long": (0.5, 1, 1, 1),
    "half the rate": (1, 1, 1, 0.5),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "interpolate": {"rope": "interpolate"},
    "ntk": {"rope": "ntk"},
    "shift by size": {"shift_by_size": True},
}
APPEARANCE, MOTION = tuple(FACTS.index(name) for name in ("color", "shape", "size")), FACTS.index("motion")
SECONDS, AT_ONCE, LEVEL = 2.0, 8, 0.95


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="outputs/world_dit")
    parser.add_argument("--clips", type=int, default=32, help="of each case and option (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of the sampler; default: those of the recipe")
    parser.add_argument("--cases", default=", ".join(CASES), help="default: all")
    parser.add_argument(
        "--quick", action="store_true", help="an untrained model, two clips and cases, to see that it runs"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = _untrained() if args.quick else load_video_model(args.model, "cpu").model
    facts = [ls.World("tiny", seed=7, split="heldout").facts(i) for i in range(2 if args.quick else args.clips)]
    cases = ["twice as long", "half as long"] if args.quick else [name.strip() for name in args.cases.split(",")]
    rows = [row for name in cases for row in measured(model, name, facts, args.steps)]
    native = model.seen_sizes.native
    told = (
        f"{len(facts)} prompts; trained on {VideoSize(*native)} at {model.seen_sizes.fps:g} frames per second. Shares "
        "of facts as asked, in %, with 95 % intervals over prompts: colour, shape and size in the first and in the "
        "last two seconds, motion in the first two. The difference of all four to `none`, prompt by prompt. `world`: "
        "rendered clips."
    )
    header = ["case", "size", "fps", "option", "appearance", "motion", "difference"]
    write_page(
        args.out,
        page(
            "Sizes and rates beyond the training",
            command_line("sizes", arguments),
            [told, markdown_table(header, rows)],
        ),
    )


def measured(model: LatentDiffusion, name: str, facts: Sequence[Facts], steps: int | None) -> list[list[str]]:
    """The rows of a case: what the world, and the model by each option that makes a difference, show of the facts."""
    frames, height, width = model.seen_sizes.native
    length, higher, wider, faster = CASES[name]
    rate = model.seen_sizes.fps * faster
    size = VideoSize(1 + round((frames - 1) * length * faster), round(height * higher), round(width * wider))
    world = ls.World("tiny")
    prompts = [world.caption(one) for one in facts]
    found = {"world": scores([world.render(one, *size, fps=rate) for one in facts], facts, rate)}
    for option, asked in OPTIONS.items():
        if asked and same_as_none(model, size, asked):
            continue
        clips: list[Tensor] = []
        for begin in range(0, len(prompts), AT_ONCE):
            some = prompts[begin : begin + AT_ONCE]
            clips += model.sample(some, *size, keys=[(begin + i,) for i in range(len(some))], steps=steps, **asked)
        found[option] = scores(clips, facts, rate)
        print(name, option, *map(interval, found[option].T), flush=True)
    rows = []
    for option, shares in found.items():
        weights = torch.tensor([0.75, 0.25], dtype=shares.dtype)
        change = interval((shares - found["none"]) @ weights) if option not in ("world", "none") else ""
        rows.append([name, str(size), f"{rate:g}", option, *map(interval, shares.T), change])
    return rows


def same_as_none(model: LatentDiffusion, size: VideoSize, asked: Mapping[str, Any]) -> bool:
    """Whether an option changes nothing of clips of this size."""
    grid = TokenGrid.of(*size, model.patch)
    if "rope" in asked:
        return model.seen_sizes.stretch([grid], model.patch, asked["rope"]) is None
    return model.seen_sizes.shift(grid, model.patch) == 1


def scores(clips: Sequence[Tensor], facts: Sequence[Facts], fps: float) -> Tensor:
    """Of each clip, the share of its appearance and of its motion that is as asked."""
    asked, length = asked_codes([one.as_dict() for one in facts]), round(SECONDS * fps) + 1
    first, last = (
        agreement(read_codes(load_evaluator().read([clip[part] for clip in clips], [fps] * len(clips))), asked)
        for part in (slice(None, length), slice(-length, None))
    )
    appearance = (first + last)[:, APPEARANCE].mean(dim=1) / 2
    return torch.stack([appearance, first[:, MOTION]], dim=1)


def interval(values: Tensor) -> str:
    """A mean with its interval by Student's t, in %."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std() / len(values) ** 0.5)
    return f"{100 * float(values.mean()):.0f} ± {100 * half:.0f}"


def _untrained() -> LatentDiffusion:
    dit = {"patch_size": (4, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
    model = LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit, sampling={"steps": 2})
    model.seen_sizes.add([(17, 16, 16)], 8.0)
    return model


if __name__ == "__main__":
    main()
