"""list: the registered parts of one kind, with their options; and whether one's own keep the contract of their kind."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from lightning_sora.lab.parts import HOMES, check_part, registry, specs


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="name the registered parts", description=__doc__)
    parser.add_argument("kind", metavar="KIND", help=", ".join(HOMES))
    parser.add_argument("pattern", nargs="?", default="*", help="a shell wildcard, such as 'win*'")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument(
        "--check",
        nargs="+",
        metavar="FILE|SPEC",
        help="put parts to the contract of their kind: those that a file registers, or 'window(size=(1, 2, 2))'",
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per part, a spec with its options and what it is; or per law, whether it is kept."""
    from lightning_sora.plugins import load_plugins

    load_plugins(args.plugins)
    parts = registry(args.kind)
    if args.check:
        return sum(_check(args.kind, spec) for spec in specs(args.kind, args.check)) and 1
    found = parts.list(args.pattern)
    if not found:
        sys.stderr.write(f"no {parts.kind} matches {args.pattern!r}; known: {', '.join(parts.list())}\n")
        return 1
    for name in found:
        sys.stdout.write("{}\n    {}\n".format(*parts.describe(name)))
    return 0


def _check(kind: str, spec: str) -> int:
    """Prints what each law found of a part, and counts those that it breaks."""
    from rich.console import Console

    console, begun = Console(width=None if sys.stdout.isatty() else 160), time.perf_counter()
    with console.status(f"checking {spec}"):
        found = check_part(kind, spec)
    console.print(found)
    console.print(f"{spec}: {len(found.findings)} checks in {time.perf_counter() - begun:.0f} s", markup=False)
    return found.broken
