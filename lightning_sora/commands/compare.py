"""compare: which arm of an ablation is better, by how much, with what certainty, at what cost."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the HTML report; default: outputs/ablations/NAME/report")
    parser.add_argument("--no-report", action="store_true", help="print only")
    parser.add_argument("--open", action="store_true", help="open the report in a browser")


def main(arguments: Sequence[str]) -> int:
    """The command, for other commands."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["compare", *arguments]))


def run(args: argparse.Namespace) -> int:
    """Prints the verdicts, writes the report, and keeps it with the ablation's run."""
    from lightning_sora.ablation import table
    from lightning_sora.ablation.checks import hardware_note, refuse_incomparable, refuse_undeclared
    from lightning_sora.ablation.reader import read_study
    from lightning_sora.tracking.database import database_path
    from lightning_sora.tracking.store import resolve_uri
    from lightning_sora.writing import check_folder

    if not 0 < args.level < 1:
        raise SoraError(f"--level {args.level} must lie between 0 and 1, such as 0.95")
    if args.open and args.no_report:
        raise SoraError("--open shows the report that --no-report leaves out; drop one of them")
    uri = resolve_uri(args.uri)
    database = database_path(uri)
    if database is not None and not os.path.exists(database):
        raise SoraError(f"no mlflow store at {database}; run `lightning-sora ablate` here first, or give --uri")
    study = read_study(uri, args.what, metric=args.metric, mode=args.mode, baseline=args.baseline)
    folder = args.out or Path("outputs/ablations") / study.name / "report"
    if not args.no_report:
        check_folder("--out", folder, "index.html")
    refuse_incomparable(study.metric, study.factor)
    refuse_undeclared(study)
    verdicts = verdicts_of(study, args.level)
    if args.format == "table":
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 160).print(table.as_table(study, verdicts))
    else:
        form = {"csv": table.as_csv, "json": table.as_json, "md": markdown}[args.format]
        sys.stdout.write(form(study, verdicts))
    for note in filter(None, [hardware_note(study)]):
        sys.stderr.write(f"note: {note}\n")
    if not args.no_report:
        page = report(study, verdicts, folder, uri)
        sys.stderr.write(f"report: {page}\n")
        if args.open:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())
    return 0


def verdicts_of(study: Any, level: float = 0.95) -> list[Any]:
    """Every arm against the baseline.

    Raises:
        SoraError: the baseline has no finished trial.
    """
    from lightning_sora.ablation.statistics import judge

    arms = [study.baseline, *(arm.name for arm in study.arms if arm.name != study.baseline)]
    values = {arm: study.values(arm) for arm in arms}
    scores = {
        arm: {
            t.seed: t.clip_scores[study.metric] for t in study.of(arm) if t.finished and study.metric in t.clip_scores
        }
        for arm in arms
    }
    return judge(values, study.baseline, study.mode, scores, level, clips=_clips_judged(study))


def _clips_judged(study: Any) -> int | None:
    """How many clips the metric is over, as the protocol cards say: at least, of it, its whole, or its split."""
    split = study.metric.partition("/")[0]
    cards = [t.protocol.get(split, {}).get("clips", {}) for t in study.trials if t.finished]
    own = [n for card in cards for name, n in card.items() if f"{study.metric}_".startswith(f"{name}_")]
    return min(own or [n for card in cards for n in card.values()], default=None)


def markdown(study: Any, verdicts: Sequence[Any]) -> str:
    """The table for a page of its own: what it says, the rows, and where they are from."""
    from lightning_sora.ablation.report import facts, summary
    from lightning_sora.ablation.table import as_markdown

    shown = {
        name: value
        for name, value in facts(study).items()
        if name not in ("factor", "baseline", "decided by", "budget")
    }
    said = "".join(f"- {name}: {value}\n" for name, value in shown.items())
    return f"# {study.name}: `{study.factor}`\n\n{summary(study, verdicts)}\n\n{as_markdown(study, verdicts)}\n{said}"


def report(study: Any, verdicts: Sequence[Any], folder: Path, uri: str) -> Path:
    """Writes the HTML report, and stores it with the ablation's run where there is one."""
    from lightning_sora.ablation import table
    from lightning_sora.ablation.report import write_report
    from lightning_sora.sealing import write_whole

    page = write_report(study, verdicts, folder)
    for form, text in (("md", markdown), ("csv", table.as_csv), ("json", table.as_json)):
        write_whole(folder / f"table.{form}", text(study, verdicts).encode())
    if study.run_id is not None:
        from lightning_sora.tracking.store import connect

        connect(uri).log_artifacts(study.run_id, str(folder), "report")
    return page
