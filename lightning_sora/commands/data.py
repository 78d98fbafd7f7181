"""data: look at, check and cache videos."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

ACTIONS = ("inspect", "check", "cache")


def add_parser(subparsers: Any) -> None:
    """Adds ``data`` and its actions."""
    parser = subparsers.add_parser("data", help="look at, check and cache videos")
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ACTIONS:
        importlib.import_module(f"lightning_sora.commands.data_{action}").add_parser(actions)


def run(args: argparse.Namespace) -> int:
    """Runs one action, and returns its exit status."""
    return importlib.import_module(f"lightning_sora.commands.data_{args.action}").run(args)
