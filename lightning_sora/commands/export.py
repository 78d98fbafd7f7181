"""export: a trained model in mlflow's format, which `mlflow models serve` serves."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from lightning_sora.commands.arguments import whole
from lightning_sora.shipped import MODEL

LIMITS = ("frames", "height", "width", "steps", "prompts")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("export", help="write a model for mlflow to serve", description=__doc__)
    parser.add_argument(
        "--ckpt", dest="model", metavar="PATH", default=MODEL, help="as `sample` takes it; default: that of the package"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="that is not there yet")
    for name in LIMITS:
        told = "100" if name == "steps" else "4" if name == "prompts" else "twice as trained"
        parser.add_argument(f"--max-{name}", type=whole, metavar="N", help=f"of a request; default: {told}")
    parser.add_argument("--log", action="store_true", help="keep it in the mlflow run of the training, too")
    parser.add_argument("--uri", help="store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Writes the folder, and prints the command that serves it on this machine."""
    from lightning_sora.lab.serving import export

    asked = {name: getattr(args, f"max_{name}") for name in LIMITS}
    limits = {name: most for name, most in asked.items() if most is not None}
    where = export(args.model, args.out, limits=limits, plugins=args.plugins, uri=args.uri, log_to_run=args.log)
    sys.stdout.write(f"mlflow models serve --env-manager local -m {shlex.quote(where)}\n")
    return 0
