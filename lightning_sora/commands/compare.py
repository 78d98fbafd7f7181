"""compare: which arm of an ablation is better, by how much, with what certainty, at what cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import level
from lightning_sora.errors import SoraError

FORMATS = ("table", "csv", "json", "md")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("compare", help="judge the arms of an ablation", description=__doc__)
    parser.add_argument(
        "what", nargs="*", metavar="ABLATION|RUN", help="name or run of an ablation (default: the newest), or runs"
    )
    parser.add_argument("--uri", help="mlflow store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    parser.add_argument("--metric", help="what decides; default: what the ablation says")
    parser.add_argument("--mode", choices=("min", "max"), help="whether less or more of the metric is better")
    parser.add_argument("--baseline", help="the arm that the others are compared to")
    parser.add_argument("--level", type=level, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the HTML report; default: outputs/ablations/NAME/report")
    parser.add_argument("--no-report", action="store_true", help="print only")
    parser.add_argument("--open", action="store_true", help="open the report in a browser")


def run(args: argparse.Namespace) -> int:
    """Prints the verdicts, writes the report, and keeps it with the ablation's run."""
    from lightning_sora.commands.verdicts import show
    from lightning_sora.lab.comparing import compare
    from lightning_sora.writing import check_folder

    if args.open and args.no_report:
        raise SoraError("--open shows the report that --no-report leaves out; drop one of them")
    asked = {name: getattr(args, name) for name in ("uri", "metric", "mode", "baseline", "level")}
    found = compare(args.what, **asked)
    folder = None if args.no_report else args.out or Path("outputs/ablations") / found.study.name / "report"
    if folder is not None:
        check_folder("--out", folder, "index.html")
    if args.format != "table":
        sys.stdout.write({"csv": found.to_csv, "json": found.to_json, "md": found.to_markdown}[args.format]())
    show(found, folder, table=args.format == "table", browser=args.open)
    return 0
