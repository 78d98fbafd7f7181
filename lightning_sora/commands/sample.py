"""sample: videos from prompts, and from images and videos, by a trained model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lightning_sora.commands.sample_flags import add_flags

#: What the function is told as it stands, of a new video and of one that is made again.
ASKED = (
    "negative", "frames", "height", "width", "fps", "sampler", "steps", "guidance", "expand", "plugins", "rope",
    "shift_by_size",
)  # fmt: skip
SHOWN = ("out", "scale", "preview", "device")
GIVEN = ("image", "first", "last", "video", "mask", "strength", "extend", "times")


def add_parser(subparsers: Any) -> None:
    add_flags(subparsers.add_parser("sample", help="make videos from prompts", description=__doc__))


def run(args: argparse.Namespace) -> int:
    """Writes an MP4, a GIF and a JSON per video and one contact sheet, and prints their paths."""
    from lightning_sora.lab.given_files import task_of_flags
    from lightning_sora.lab.sampling import read_prompts, sample, sample_again

    flags = vars(args)
    shown = {name: flags[name] for name in SHOWN}
    if args.again is not None:
        made = sample_again(args.again, **shown)
    else:
        prompts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
        task, inputs = task_of_flags(
            {name: flags[name] for name in GIVEN if flags[name] is not None},
            connect=args.connect,
            loop=args.loop,
            backward=args.backward,
            task=args.task,
        )
        options = {name: flags[name] for name in ASKED}
        made = sample(args.model, prompts, seed=args.seed or 0, task=task, inputs=inputs, **options, **shown)
    if made.expanded != made.prompts:
        sys.stdout.write("".join(f"{a} -> {b}\n" for a, b in zip(made.prompts, made.expanded, strict=True)))
    sys.stdout.write("".join(f"{file}\n" for file in made.files))
    return 0
