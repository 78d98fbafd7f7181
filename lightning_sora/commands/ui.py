"""ui: the mlflow pages of past runs, in a browser."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from lightning_sora.tracking.pages import FIRST_PORT, serve


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("ui", help="open the mlflow pages of past runs", description=__doc__)
    parser.add_argument("--uri", help="store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"default: the first free one from {FIRST_PORT}")


def run(args: argparse.Namespace) -> int:
    """Serves the store until Ctrl-C; of a remote store it prints the address."""
    serve(args.uri, args.host, args.port, partial(print, flush=True))
    return 0
