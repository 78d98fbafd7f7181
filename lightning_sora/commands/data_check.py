"""``lightning-sora data check PATH``: decode everything, name what is bad and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_sora.commands.arguments import positive, whole


def add_parser(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="decode every file of a folder or manifest",
        description="Decodes every video and image to its end, reads the captions, compares with what a manifest "
        "tells, names what is bad and why, and sums up the rest. Exit status: 0 if all is well, 1 if something is bad.",
    )
    check.add_argument("path", metavar="PATH", help="folder, searched at any depth; file, manifest, tar or URL")
    check.add_argument("--style", default="auto", help="of a manifest; default: found out")
    check.add_argument(
        "--out", type=Path, metavar="LIST.jsonl", help="list of the bad files, for source option quarantine"
    )
    check.add_argument("--processes", type=whole, help="side by side; default: one for each core")
    check.add_argument("--seconds", type=positive, default=120.0, help="that one file may take (default: %(default)g)")
    check.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Checks a folder or the clips of a manifest; returns 1 if anything is bad, else 0.

    Raises:
        SoraError: nothing there, or no videos or images in it.
    """
    from rich.console import Console

    from lightning_sora.lab.check import check_data
    from lightning_sora.plugins import load_plugins
    from lightning_sora.writing import check_file

    if args.out is not None:
        check_file("--out", args.out)
    load_plugins(args.plugins)
    found = check_data(args.path, style=args.style, processes=args.processes, seconds=args.seconds)
    Console().print(found)
    if args.out is not None:  # last: what was found is told whatever becomes of it
        found.write_quarantine(args.out)
    return 1 if found.bad else 0
