"""sample: videos from prompts, by a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import positive, whole

EXPANDER = "make prompts rich first: a LitExpander's checkpoint, hf(...) or openai(...)"
#: What the function is not told by name.
OWN = ("command", "ckpt", "prompt", "prompts")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("sample", help="make videos from prompts", description=__doc__)
    parser.add_argument(
        "--ckpt", required=True, type=Path, help="checkpoint of a LitDiT, its run's folder, or a saved model"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="what to show; may be given several times; guidance leads away from the empty one, and there is no other "
        "negative prompt",
    )
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    parser.add_argument("--frames", type=whole, help="default: as trained")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained")
    parser.add_argument("--width", type=whole, help="pixels; default: as trained")
    parser.add_argument("--fps", type=positive, help="frames per second of the files; default: as trained")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; the same seed gives the same videos")
    parser.add_argument("--steps", type=whole, help="sampling steps; default: those of the recipe")
    parser.add_argument("--guidance", help="scale of plain guidance, 1 is off, or a spec; default: that of the recipe")
    parser.add_argument("--expand", metavar="EXPANDER", help=EXPANDER)
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument("--out", type=Path, help="folder (default: samples/prompts in the run's folder)")
    parser.add_argument("--scale", type=whole, default=1, help="enlarge by this whole number (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole, default=8, help="videos at once (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def run(args: argparse.Namespace) -> int:
    """Writes an MP4 and a GIF per prompt and one contact sheet, and prints their paths."""
    from lightning_sora.lab.sampling import read_prompts, sample

    prompts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
    made = sample(args.ckpt, prompts, **{name: value for name, value in vars(args).items() if name not in OWN})
    if args.expand is not None:
        sys.stdout.write("".join(f"{short} -> {rich}\n" for short, rich in zip(prompts, made.expanded, strict=True)))
    sys.stdout.write("".join(f"{file}\n" for file in made.files))
    return 0
