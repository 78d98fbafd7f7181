"""sample: videos from prompts, and from images and videos, by a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError

EXPANDER = "make prompts rich first: a LitExpander's checkpoint, hf(...) or openai(...)"
#: Flags that give a task something to start from: name, kind of value, what it is.
GIVEN: tuple[tuple[str, Any, str], ...] = (
    ("image", Path, "a still that the video begins with"),
    ("first", Path, "with --last: a still that it begins with"),
    ("last", Path, "with --first: a still that it ends with"),
    ("video", Path, "a clip to extend, edit, paint in, interpolate or loop"),
    ("mask", Path, "with --video: an image or a video, white where the clip is made anew"),
    ("strength", float, "with --video: how much may change, from 0, nothing, to 1, everything"),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("sample", help="make videos from prompts", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--ckpt", dest="model", metavar="PATH", help="checkpoint of a LitDiT run, the run's folder, or a saved model"
    )
    source.add_argument("--again", type=Path, metavar="JSON", help="make a video again by the JSON beside it")
    parser.add_argument("--prompt", action="append", default=[], help="what to show; may be given several times")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    parser.add_argument("--negative-prompt", dest="negative", default="", help="what guidance leads away from")
    given = parser.add_argument_group("from images and videos")
    for name, kind, told in GIVEN:
        given.add_argument(f"--{name}", type=kind, metavar="PATH" if kind is Path else "X", help=told)
    given.add_argument(
        "--extend", type=whole, metavar="N", help="N frames more, after --video, or after a clip of the prompt"
    )
    given.add_argument("--backward", action="store_true", help="with --extend: before the video")
    given.add_argument("--connect", nargs=2, type=Path, metavar=("A", "B"), help="what leads from one clip to another")
    given.add_argument("--loop", action="store_true", help="a video that can be played round and round")
    given.add_argument("--times", type=whole, metavar="N", help="with --video: N times as many frames")
    given.add_argument("--task", metavar="SPEC", help="what is made of them, if not what they tell; see `list task`")
    parser.add_argument("--frames", type=whole, help="default: as trained")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained")
    parser.add_argument("--width", type=whole, help="pixels; default: as trained")
    parser.add_argument("--fps", type=positive, help="frames per second; default: as trained")
    parser.add_argument(
        "--seed",
        type=int,
        action="append",
        help="of the noise, which depends on nothing else; several: a video of each",
    )
    parser.add_argument("--sampler", metavar="SPEC", help="default: that of the recipe; see `list sampler`")
    parser.add_argument("--steps", type=whole, help="sampling steps; default: those of the recipe")
    parser.add_argument("--guidance", help="scale of plain guidance, 1 is off, or a spec; default: that of the recipe")
    parser.add_argument("--expand", metavar="EXPANDER", help=EXPANDER)
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument("--out", type=Path, help="folder (default: samples/prompts in the run's folder)")
    parser.add_argument("--scale", type=whole, default=1, help="enlarge by this whole number (default: %(default)s)")
    parser.add_argument("--preview", action="store_true", help="keep preview.png up to date while a video is made")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def run(args: argparse.Namespace) -> int:
    """Writes an MP4, a GIF and a JSON per video and one contact sheet, and prints their paths."""
    from lightning_sora.lab.sampling import read_prompts, sample, sample_again

    shown: dict[str, Any] = {name: getattr(args, name) for name in ("out", "scale", "preview", "device")}
    if args.again is not None:
        made = sample_again(args.again, **shown)
    else:
        asked = ("negative", "frames", "height", "width", "fps", "sampler", "steps", "guidance", "expand", "plugins")
        prompts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
        task, inputs = _task(args)
        options = {name: getattr(args, name) for name in asked}
        made = sample(args.model, prompts, seed=args.seed or 0, task=task, inputs=inputs, **options, **shown)
    if made.expanded != made.prompts:
        sys.stdout.write("".join(f"{a} -> {b}\n" for a, b in zip(made.prompts, made.expanded, strict=True)))
    sys.stdout.write("".join(f"{file}\n" for file in made.files))
    return 0


def _task(args: argparse.Namespace) -> tuple[str | None, dict[str, Any]]:
    """The task that flags name, if they do, and what it is given."""
    inputs = {name: getattr(args, name) for name, _, _ in GIVEN} | {"extra": args.extend, "times": args.times}
    if args.connect:
        if args.video:
            raise SoraError("--connect and --video are both given; --connect names the clips by itself")
        inputs |= dict(zip(("video", "second"), args.connect, strict=True))
    if args.backward and not (args.extend and args.video):
        raise SoraError("--backward goes with --video and --extend")
    chosen = [name for name, there in (("loop", args.loop), ("extend_backward", args.backward)) if there]
    if args.task:
        chosen.append(args.task)
    if len(chosen) > 1:
        raise SoraError(f"one task at a time: these flags name {', '.join(chosen)}")
    told = {name: str(value) if isinstance(value, Path) else value for name, value in inputs.items()}
    return next(iter(chosen), None), {name: value for name, value in told.items() if value is not None}
