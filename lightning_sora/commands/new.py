"""new: a folder to start a study from: a recipe, a block, an ablation and what to do with them."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("new", help="write a folder to start a study from", description=__doc__)
    parser.add_argument("folder", help="that is not there yet; its name is that of the study")


def run(args: argparse.Namespace) -> int:
    """Writes the folder, and prints its files and the next command."""
    from lightning_sora.commands.following import tell_next
    from lightning_sora.lab.new import new_study

    written = new_study(args.folder)
    sys.stdout.write("".join(f"{file}\n" for file in written))
    tell_next("list", "attention", "--check", f"{args.folder}/block.py")
    return 0
