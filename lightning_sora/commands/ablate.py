"""ablate: trains every arm of an ablation with every seed, under an equal budget, and says which is better."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_sora.commands.arguments import level, seeds
from lightning_sora.commands.flags import dotted
from lightning_sora.commands.one_line import PROGRAM, OneLineParser
from lightning_sora.plugins import load_plugins

EPILOG = (
    "Further flags: --budget.QUANTITY=AMOUNT and --budget.by=steps|width|depth change the budget; any other "
    "--section.key=value sets that key of the base recipe in all arms alike. Run the same command again after "
    "an interruption: finished trials are not repeated."
)


def parser() -> argparse.ArgumentParser:
    """The command's own options; further ``--section.key=value`` set keys of the base recipe in all arms alike."""
    made = OneLineParser(prog=f"{PROGRAM} ablate", description=__doc__, epilog=EPILOG)
    made.add_argument("file", type=Path, help="the ablation's file, or the name of one that is shipped: attention")
    made.add_argument("--name", help="of the ablation in mlflow and on disk; default: that of the file")
    made.add_argument("--seeds", type=seeds, help="instead of those of the file, such as 0,1,2")
    made.add_argument("--engine", help="what runs the trials: 'local(processes=2)' or 'ray'; default: that of the file")
    made.add_argument("--out", type=Path, default=Path("outputs/ablations"), help="folder (default: %(default)s)")
    made.add_argument("--uri", help="mlflow store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    made.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    made.add_argument("--level", type=level, default=0.95, help="of the intervals (default: %(default)s)")
    made.add_argument("--plan", action="store_true", help="show arms, matching and trials, and train nothing")
    made.add_argument("--open", action="store_true", help="open the report at the end")
    return made


def run(arguments: Sequence[str]) -> int:
    """Runs an ablation, or what is unfinished of it; returns 0 if every trial is finished, 1 if some failed."""
    from lightning_sora.ablation.plan import read_plan

    args, rest = parser().parse_known_args(list(arguments))
    load_plugins(args.plugins)  # before the plan: what is better in a metric of one's own, its class says
    budget, overrides = dotted(rest, parser())
    plan = read_plan(args.file).changed(budget, args.seeds, overrides, name=args.name, engine=args.engine)

    from lightning_sora.commands.verdicts import show
    from lightning_sora.lab.ablating import ablate, prepare, tell_here
    from lightning_sora.lab.comparing import compare

    place = {"out": args.out, "uri": args.uri, "plugins": args.plugins}
    if args.plan:
        tell_here(prepare(plan, **place))
        return 0
    study = ablate(plan, **place)
    if study.values(study.baseline):
        show(compare(study, level=args.level), args.out / plan.name / "report", browser=args.open)
    else:
        tell_here(f"no trial of the baseline {study.baseline!r} is finished, so that there is nothing to compare to")
    return 0 if study.complete else 1
