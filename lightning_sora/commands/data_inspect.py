"""``data inspect``: what a data set holds, and what a size plan would make of it, before a frame is trained on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import positive, triple, whole
from lightning_sora.errors import SoraError


def add_parser(actions: Any) -> None:
    parser = actions.add_parser(
        "inspect",
        help="count what a data set holds, and what a size plan would use of it",
        description="Prints counts, durations, sizes, rates and lengths of captions, the buckets or sequences that a "
        "size plan would make, and what it would leave out; writes a picture of histograms.",
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder, manifest, tar, URL or cache of latents")
    parser.add_argument("--source", help="spec of the source; default: that which reads PATH")
    parser.add_argument("--seed", type=int, default=0, help="of the source (default: %(default)s)")
    parser.add_argument("--sizes", default="bucketed", help="size policy to try (default: %(default)s)")
    parser.add_argument("--patch", type=triple, default="4,16,16", help="pixels per token (default: %(default)s)")
    parser.add_argument("--frames", type=whole, default=17, help="of the longest clips (default: %(default)s)")
    parser.add_argument("--height", type=whole, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--width", type=whole, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--fps", type=positive, help="frames per second to resample to; default: each clip's own")
    parser.add_argument("--batch-size", type=whole, default=8, help="clips of that size (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/inspect.png"), help="picture (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Prints the tables and writes the picture; returns 0.

    Raises:
        SoraError: no such data, or a plan that cannot be.
    """
    from rich.console import Console

    from lightning_sora.lab.inspect import check_picture, inspect_data
    from lightning_sora.plugins import load_plugins

    check_picture(args.out)
    load_plugins(args.plugins)
    found = inspect_data(
        args.path, source=args.source, sizes=args.sizes, patch=args.patch, frames=args.frames, height=args.height,
        width=args.width, fps=args.fps, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    Console().print(found)
    if found.problem:
        raise SoraError(found.problem)
    print(f"histograms: {found.save_figure(args.out)}")
    return 0
