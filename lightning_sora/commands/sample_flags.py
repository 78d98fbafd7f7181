"""The flags of `sample`."""

from __future__ import annotations

import argparse

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.shipped import MODEL

EXPANDER = "make prompts rich first: a LitExpander's checkpoint, hf(...) or openai(...)"
STILLS = {
    "image": "a still that the video begins with",
    "first": "with --last: a still that it begins with",
    "last": "with --first: a still that it ends with",
    "video": "a clip to extend, edit, paint in, interpolate or loop",
    "mask": "with --video: an image or a video, white where the clip is made anew",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    models = "checkpoint of a LitDiT, its run's folder, or a saved model; default: that of the package"
    source.add_argument("--ckpt", dest="model", metavar="PATH", default=MODEL, help=models)
    source.add_argument("--again", metavar="JSON", help="make a video again by the JSON beside it")
    parser.add_argument("--prompt", action="append", default=[], help="what to show; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with one prompt per line")
    parser.add_argument("--negative-prompt", dest="negative", default="", help="what guidance leads away from")
    given = parser.add_argument_group("from images and videos")
    for name, told in STILLS.items():
        given.add_argument(f"--{name}", metavar="PATH", help=told)
    given.add_argument("--strength", type=float, help="with --video: how much may change: 0 nothing, 1 everything")
    given.add_argument("--extend", type=whole, metavar="N", help="N frames more, after --video or a clip of the prompt")
    given.add_argument("--backward", action="store_true", help="with --extend: before the video")
    given.add_argument("--connect", nargs=2, metavar=("A", "B"), help="what leads from one clip to another")
    given.add_argument("--loop", action="store_true", help="a video that can be played round and round")
    given.add_argument("--times", type=whole, metavar="N", help="with --video: N times as many frames")
    given.add_argument("--task", metavar="SPEC", help="what is made of them, if not what they tell; see `list task`")
    parser.add_argument("--frames", type=whole, help="default: as trained")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained")
    parser.add_argument("--width", type=whole, help="pixels; default: as trained")
    parser.add_argument("--fps", type=positive, help="frames per second; default: as trained")
    parser.add_argument(
        "--seed", type=int, action="append", help="of the noise, which depends on nothing else; several: a video each"
    )
    parser.add_argument("--sampler", metavar="SPEC", help="default: that of the recipe; see `list sampler`")
    parser.add_argument("--steps", type=whole, help="sampling steps; default: those of the recipe")
    parser.add_argument("--guidance", help="scale of plain guidance, 1 is off, or a spec; default: that of the recipe")
    parser.add_argument(
        "--rope", help="positions of other sizes than trained on: none (as they are), interpolate or ntk"
    )
    shift = "of more tokens than trained on, spend more steps at high noise"
    parser.add_argument("--shift-by-size", action="store_true", default=None, help=shift)
    parser.add_argument("--expand", metavar="EXPANDER", help=EXPANDER)
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument("--out", metavar="FOLDER", help="default: samples/prompts in the run's folder, or here")
    parser.add_argument("--scale", type=whole, default=1, help="enlarge by this whole number (default: %(default)s)")
    parser.add_argument("--preview", action="store_true", help="keep preview.png up to date while a video is made")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")
