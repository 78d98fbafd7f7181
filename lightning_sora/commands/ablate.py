"""ablate: trains every arm of an ablation with every seed, under an equal budget, and says which is better."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from lightning_sora.ablation.plan import Plan, read_plan
from lightning_sora.documents import parse_yaml
from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.redaction import in_environment, redact
from lightning_sora.sealing import read_json, seal_json, write_whole
from lightning_sora.texts import read_text

TRIAL_FILE, RECIPE_FILE = "trial.json", "recipe.yaml"


def parser() -> argparse.ArgumentParser:
    """The command's own options; further ``--section.key=value`` set keys of the base recipe in all arms alike."""
    from lightning_sora.cli import PROGRAM, OneLineParser

    made = OneLineParser(
        prog=f"{PROGRAM} ablate",
        description=__doc__,
        epilog="Further flags: --budget.QUANTITY=AMOUNT and --budget.by=steps|width|depth change the budget; any other "
        "--section.key=value sets that key of the base recipe in all arms alike. Run the same command again after "
        "an interruption: finished trials are not repeated.",
    )
    made.add_argument("file", type=Path, help="the ablation's file, such as recipes/ablations/attention.yaml")
    made.add_argument("--name", help="of the ablation in mlflow and on disk; default: that of the file")
    made.add_argument("--seeds", type=_seeds, help="instead of those of the file, such as 0,1,2")
    made.add_argument("--engine", help="what runs the trials: 'local(processes=2)' or 'ray'; default: that of the file")
    made.add_argument("--out", type=Path, default=Path("outputs/ablations"), help="folder (default: %(default)s)")
    made.add_argument("--uri", help="mlflow store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    made.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    made.add_argument("--level", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    made.add_argument("--plan", action="store_true", help="show arms, matching and trials, and train nothing")
    made.add_argument("--open", action="store_true", help="open the report at the end")
    return made


def run(arguments: Sequence[str]) -> int:
    """Runs an ablation, or what is unfinished of it.

    Args:
        arguments: what follows the name of the command.

    Returns:
        0 if every trial is finished, 1 if some failed.

    Raises:
        SoraError: a plan that cannot mean what it says, before anything is trained.
    """
    args, rest = parser().parse_known_args(list(arguments))
    budget, overrides = _dotted(rest)
    plan = read_plan(args.file).changed(budget, args.seeds, overrides)
    plan = _renamed(plan, args.name, args.engine)
    if not 0 < args.level < 1:
        raise SoraError(f"--level {args.level} must lie between 0 and 1, such as 0.95")

    from lightning_sora import plugins
    from lightning_sora.ablation.checks import refuse_incomparable
    from lightning_sora.jobs.engines import ENGINES
    from lightning_sora.tracking.store import resolve_uri
    from lightning_sora.writing import check_folder

    refuse_incomparable(plan.metric, plan.factor)
    uri = resolve_uri(args.uri)
    engine = ENGINES.create(plan.engine)
    plugins.load_plugins(args.plugins)
    folder = args.out / plan.name
    check_folder("--out", folder, ".lock")
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"ablation {plan.name}: {plan.factor} of {plan.base.name}, {len(plan.arms)} arms x {len(plan.seeds)} seeds")
    with _held(folder / ".lock", plan.name):
        return _Sitting(args, plan, engine, uri, folder).run()


class _Sitting:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, plan: Plan, engine: Any, uri: str, folder: Path) -> None:
        self.args, self.plan, self.engine, self.uri, self.folder = args, plan, engine, uri, folder

    def run(self) -> int:
        from lightning_sora.ablation.record import AblationRecord
        from lightning_sora.lab.planning import Planner
        from lightning_sora.tracking.provenance import code_hash

        planner = Planner(self.plan, self.folder)
        design = planner.design()
        self.code = code_hash()
        calibration = self.folder / "seconds_per_step.json"
        known = None
        if calibration.is_file():
            known = read_json(calibration.read_bytes(), calibration, "delete it, and it is measured again")
        arms = planner.arms(known if known and set(known) >= set(self.plan.arms) else None)
        trials = list(planner.trials(arms, design.code))
        self._show(planner, arms)
        if self.args.plan:
            return 0
        if planner.seconds_per_step:  # a later sitting must plan the same steps
            write_whole(calibration, seal_json(planner.seconds_per_step))
        record = AblationRecord(self.uri, self.plan, design)
        record.begin(arms, [trial.planned for trial in trials], read_text(self.args.file))
        todo = [trial for trial in trials if not record.finished(trial.planned)]
        if len(todo) < len(trials):
            _say(f"{len(trials) - len(todo)} of {len(trials)} trials are finished already and are not repeated")
        failures = self._train(record, todo)
        ended = dict.fromkeys(self.plan.arms, True)
        for trial in trials:
            ended[trial.planned.arm] &= record.finished(trial.planned)
        record.end(ended)
        for name, reason in failures.items():
            _say(f"failed: {name}: {reason}")
        if any(record.finished(trial.planned) for trial in trials if trial.planned.arm == self.plan.baseline):
            self._judge(record)
        else:
            _say(f"no trial of the baseline {self.plan.baseline!r} is finished, so that there is nothing to compare to")
        return 0 if all(ended.values()) else 1

    def _show(self, planner: Any, arms: Sequence[Any]) -> None:
        from rich.console import Console
        from rich.table import Table

        title = f"budget: {self.plan.budget}; judged by {self.plan.metric} ({self.plan.mode})"
        table = Table("arm", self.plan.factor, "steps", "matched", title=title)
        for arm in arms:
            mark = " (baseline)" if arm.name == self.plan.baseline else ""
            table.add_row(arm.name + mark, arm.value, str(arm.steps), arm.said or "-")
        Console().print(table, markup=False)

    def _train(self, record: Any, todo: Sequence[Any]) -> dict[str, str]:
        """Runs what is unfinished; the reason of every trial that failed, by its name."""
        jobs, trials = [], {}
        for trial in todo:
            record.abandon(trial.planned)
            job = self._job(record, trial)
            jobs.append(job)
            trials[job.name] = trial
        failures: dict[str, str] = {}
        begun = time.perf_counter()
        try:
            for done, outcome in enumerate(self.engine.run(jobs), 1):
                planned = trials[outcome.job.name].planned
                metrics = self._metrics(record, planned)
                self._refuse_changed_code(record, planned)
                problem = outcome.message or f"exit status {outcome.status}" if outcome.status else ""
                if not problem and self.plan.metric not in metrics:
                    hint = did_you_mean(self.plan.metric, metrics)
                    problem = f"no metric {self.plan.metric!r}; {hint}logged: {', '.join(sorted(metrics)) or 'none'}"
                if problem:
                    failures[outcome.job.name] = f"{problem} (log: {outcome.job.log})"
                    record.failed(planned, problem)
                said = problem or f"{self.plan.metric} {metrics[self.plan.metric]:.5g}"
                left = (time.perf_counter() - begun) / done * (len(jobs) - done) / 60
                _say(f"[{done}/{len(jobs)}] {outcome.job.name}: {said}, {outcome.seconds:.0f} s; {left:.0f} min left")
        except KeyboardInterrupt:
            record.end(dict.fromkeys(self.plan.arms, False), interrupted=True)
            raise KeyboardInterrupt("the same command goes on with what is unfinished") from None
        return failures

    def _refuse_changed_code(self, record: Any, planned: Any) -> None:
        """Stops at once where the code was edited meanwhile: nothing that follows could be compared."""
        from lightning_sora.tracking.provenance import code_hash

        found = {run.data.tags.get("code.hash") for run in record.runs_of(planned)[:1]} - {None, self.code}
        if found or code_hash() != self.code:
            record.end(dict.fromkeys(self.plan.arms, False), interrupted=True)
            raise SoraError(
                f"the code of lightning_sora changed while ablation {self.plan.name!r} ran; undo the change and run "
                "the same command again, or begin another ablation by --name"
            )

    def _metrics(self, record: Any, planned: Any) -> dict[str, float]:
        finished = [run for run in record.runs_of(planned) if run.info.status == "FINISHED"]
        return dict(finished[0].data.metrics) if finished else {}

    def _job(self, record: Any, trial: Any) -> Any:
        from lightning_sora.jobs.job import Job
        from lightning_sora.lab.trials import run_trial

        planned = trial.planned
        folder = trial.trainings[-1].folder
        _set_aside_others(folder, planned.identity)
        write_whole(folder / TRIAL_FILE, seal_json({"trial": planned.identity}))
        commands: list[tuple[str, ...]] = []
        for training in trial.trainings:
            judged = training is trial.trainings[-1]
            file = self._write_recipe(record, trial, training, judged)
            commands += _commands(training, file, self.plan.tested and judged)
        name = f"{planned.arm}/seed{planned.seed}"
        told = {"commands": [list(command) for command in commands]}
        return Job.of(name, run_trial, told, (folder / "log.txt").absolute(), self.plan.threads)

    def _write_recipe(self, record: Any, trial: Any, training: Any, judged: bool) -> Path:
        planned = trial.planned
        recipe = json.loads(json.dumps(training.recipe.content))
        tags = record.tags_of(planned)
        if not judged:
            tags["ablation.role"] = "before"
            del tags["ablation.trial"]
        recipe["tracking"] |= {
            "uri": self.uri,
            "experiment": record.experiment,
            "run_name": f"{planned.arm}-seed{planned.seed}{'' if judged else '-before'}",
            "tags": tags,
            "checkpoints": "off",  # they stay on disk, where the tag checkpoint.last says
            "enabled": True,
        }
        recipe["trainer"] |= {"default_root_dir": str(training.folder), "enable_progress_bar": False}
        if self.args.plugins:
            recipe["plugins"] = [str(Path(file).absolute()) for file in self.args.plugins]
        file = training.folder / RECIPE_FILE
        # Passwords go to the trial by its environment, not by its file.
        write_whole(file, yaml.safe_dump(in_environment(recipe), sort_keys=False, allow_unicode=True).encode())
        return file.absolute()

    def _judge(self, record: Any) -> None:
        """The verdict on all that is finished, by this sitting or an earlier one."""
        from lightning_sora.commands.verdicts import show
        from lightning_sora.lab.comparing import compare

        found = compare(record.run_id, uri=self.uri, level=self.args.level)
        show(found, self.folder / "report", browser=self.args.open)


def _commands(training: Any, file: Path, tested: bool) -> Iterator[tuple[str, ...]]:
    """What is left to do of a training: nothing, the rest of its steps, or all of them; then its test."""
    from lightning_sora.lit.module import read_checkpoint

    done = 0
    if training.checkpoint.is_file():
        done = int(read_checkpoint(training.checkpoint)["global_step"])
    if done < training.steps:
        yield ("fit", f"--config={file}", *(("--ckpt_path=last",) if done else ()))
    if tested:
        yield ("test", f"--config={file}", "--ckpt_path=last")


def _set_aside_others(folder: Path, identity: str) -> None:
    """Renames a folder that holds another training: other code, recipe or budget."""
    file = folder / TRIAL_FILE
    if not folder.is_dir():
        return
    if file.is_file():
        told = read_json(file.read_bytes(), file, f"delete {folder} to train it again")
        if told.get("trial") == identity:
            return
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
    folder.rename(folder.with_name(f"{folder.name}-{moment}-{time.time_ns() % 1_000_000:06d}"))


@contextmanager
def _held(path: Path, name: str) -> Iterator[None]:
    import fcntl

    handle: IO[str]
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SoraError(
                f"ablation {name!r} is being run already in {path.parent}; wait for it, or give --name or --out"
            ) from None
        yield


def _renamed(plan: Plan, name: str | None, engine: str | None) -> Plan:
    from dataclasses import replace

    if name is not None and not all(c.isalnum() or c in "-_.+" for c in name):
        raise SoraError(f"--name {name!r} names folders and runs; use letters, digits, - _ . +")
    return replace(plan, name=name or plan.name, engine=engine or plan.engine)


def _dotted(rest: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``--budget.X=Y`` says, and what other dotted flags set."""
    budget: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for flag in rest:
        key, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not equals or "." not in key:
            known = [o for a in parser()._actions for o in a.option_strings]
            hint = did_you_mean(flag.partition("=")[0], known)
            raise SoraError(
                f"unexpected {flag!r}; {hint}keys of the recipe are set by --section.key=value, with the equals sign"
            )
        section, _, name = key.partition(".")
        if section == "budget":
            budget[name] = parse_yaml(value, f"--{key}")
        else:
            overrides[key] = value
    return budget, overrides


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas, such as 0,1,2") from None


def _say(text: str) -> None:
    sys.stdout.write(f"{redact(text)}\n")
    sys.stdout.flush()
