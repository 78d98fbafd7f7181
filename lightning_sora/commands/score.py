"""score: two folders of videos, from any system, by named metrics under a recorded protocol."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import positive, whole


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("score", help="score folders of videos", description=__doc__)
    add = parser.add_argument
    add("--real", type=Path, metavar="DIR", help="real videos, searched at any depth")
    add("--generated", type=Path, metavar="DIR", help="generated videos, searched at any depth")
    add("--metrics", default="fvd", metavar="SPECS", help="with commas; `list metric` names all (default: %(default)s)")
    add("--extractor", metavar="SPEC", help="\"i3d(weights='PATH')\" for FVD, inception for FID; see `list extractor`")
    add("--clip-model", metavar="PATH", help="name or directory of a CLIP, for clip_score")
    add("--protocol", metavar="NAME", help="a published one, such as ucf101: --real is then its data set")
    add("--frames", type=whole, default=16, help="of each clip (default: %(default)s)")
    add("--fps", type=positive, help="resample to this rate; default: frames as recorded, all at one rate")
    add("--offset", choices=("first", "center"), default="first", help="where clips begin (default: %(default)s)")
    add("--min-clips", type=whole, default=16, help="refuse distances of smaller folders (default: %(default)s)")
    add("--reference", type=Path, metavar="FILE", help="statistics of the real side, instead of --real")
    add("--save-reference", type=Path, metavar="DIR", help="keep the statistics of the real side")
    add("--out", type=Path, metavar="FILE", help="write scores and protocol as JSON")
    add("--compare", type=Path, metavar="FILE", help="scores of an earlier run, to set beside these")
    add("--batch-size", type=whole, default=8, help="clips at once (default: %(default)s)")
    add("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")
    add("--vbench", nargs="+", type=Path, metavar="FILE", help="results that VBench wrote, to be logged to --run")
    add("--run", metavar="ID", help="the mlflow run of --vbench")
    add("--uri", help="its store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    add("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Scores the folders, prints the tables, and writes what is asked, or logs what VBench found; returns 0."""
    from rich.console import Console

    from lightning_sora.lab.score import metric_specs, score, unverified
    from lightning_sora.lab.vbench import log_vbench

    if args.vbench is not None or args.run is not None:
        print(log_vbench(args.vbench, args.run, args.uri, (args.generated, args.real, args.reference)).to_json())
        return 0
    own = ("command", "metrics", "vbench", "run", "uri")
    options = {name: value for name, value in vars(args).items() if name not in own}
    results = score(**options, metrics=metric_specs(args.metrics))
    if results is None:
        return 0
    console = Console()
    console.print(results, highlight=False, width=None if console.is_terminal else 120)
    sys.stderr.write("".join(f"{told}\n" for told in unverified(results)))
    if args.out is not None:
        print(f"scores and protocol: {args.out}")
    return 0
