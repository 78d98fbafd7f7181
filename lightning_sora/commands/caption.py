"""caption: rewrite the captions of every clip of a source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.commands.following import tell_next


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "caption",
        help="rewrite the captions of a source's clips",
        description="Writes a table with a new caption for every clip; data.captions=TABLE of a recipe trains on it. "
        "A trained captioner looks at one window of a clip: at the recipe's size, rate and seed that of its first "
        "visit, which is what `data cache` keeps. "
        "Interrupted, it goes on where it stopped when it is called again.",
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder, manifest, tar or URL of the clips")
    parser.add_argument("--source", help="spec of the source; default: that which reads PATH")
    parser.add_argument(
        "--captioner", required=True, help="checkpoint or run of a LitCaptioner, hf:DIRECTORY, or a spec"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="TABLE.parquet")
    parser.add_argument("--split", default="all", choices=["all", "train", "val", "test"], help="default: %(default)s")
    parser.add_argument("--frames", type=whole, help="that are looked at; default: as trained, or 8 for hf")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained, or 336 for hf")
    parser.add_argument("--width", type=whole, help="pixels; hf sees clips at their own aspect, of this area at most")
    parser.add_argument("--fps", type=positive, help="default: as trained; hf sees frames from first to last")
    parser.add_argument("--seed", type=int, default=0, help="of source and windows (default: %(default)s)")
    parser.add_argument("--shard-clips", type=whole, default=256, help="clips per shard (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole, default=32, help="clips at once (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="look once more at clips that could not be read")
    parser.add_argument("--engine", default="local(processes=1)", help="local(processes=N) or ray")
    parser.add_argument("--device", default="cpu", help="of the captioner (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Writes the table; returns 0.

    Raises:
        SoraError: no such source or captioner, or a table of other clips or another captioner is in the way.
    """
    from lightning_sora.lab.caption import caption

    print(caption(**{name: value for name, value in vars(args).items() if name != "command"}))
    where = [f"--data.source={args.source}"] if args.source else []
    where += [f"--data.root={args.path}"] if args.path else []
    tell_next("fit", "--config", "RECIPE.yaml", *where, f"--data.captions={args.out}")
    return 0
