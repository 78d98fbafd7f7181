"""Ablations: every arm with every seed, trained under an equal budget."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from lightning_sora import plugins as plugin_files
from lightning_sora.ablation.checks import refuse_incomparable
from lightning_sora.ablation.plan import Plan, read_plan
from lightning_sora.ablation.reader import read_study
from lightning_sora.ablation.record import AblationRecord, Design, PlannedArm, PlannedTrial
from lightning_sora.ablation.study import Study
from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.jobs.engines import ENGINES, Engine
from lightning_sora.jobs.job import Job
from lightning_sora.lab.planning import Planner, Training, TrialRecipes
from lightning_sora.lab.trials import run_trial
from lightning_sora.lit.checkpoint import read_checkpoint
from lightning_sora.redaction import in_environment, redact
from lightning_sora.sealing import read_json, seal_json, write_whole
from lightning_sora.shown import Shown
from lightning_sora.tracking.provenance import code_hash
from lightning_sora.tracking.store import resolve_uri
from lightning_sora.writing import check_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

TRIAL_FILE, RECIPE_FILE = "trial.json", "recipe.yaml"
OUT = Path("outputs/ablations")

#: Hears how it goes on: lines, and once the arms.
Tell = Callable[["str | Shown"], None]


@dataclass(frozen=True)
class Prepared(Shown):
    """An ablation before it is trained: its arms, set to the budget; shown as a table.

    Attributes:
        trials: what is to be trained, in order.
        seconds_per_step: of each arm, where they were measured.
    """

    plan: Plan
    design: Design
    arms: tuple[PlannedArm, ...]
    trials: tuple[TrialRecipes, ...] = field(repr=False)
    seconds_per_step: Mapping[str, float]
    folder: Path

    def tables(self) -> Iterable[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        title = f"budget: {self.plan.budget}; judged by {self.plan.metric} ({self.plan.mode})"
        table = Table(title=Text(title))
        for heading in ("arm", self.plan.factor, "steps", "matched"):
            table.add_column(Text(heading))
        for arm in self.arms:
            mark = " (baseline)" if arm.name == self.plan.baseline else ""
            table.add_row(Text(arm.name + mark), Text(arm.value), str(arm.steps), Text(arm.said or "-"))
        yield table


def tell_here(said: str | Shown) -> None:
    """Prints a line or a table."""
    if isinstance(said, str):
        sys.stdout.write(f"{redact(said)}\n")
        sys.stdout.flush()
    else:
        from rich.console import Console

        Console().print(said)


def ablate(
    plan: Plan | Mapping[str, Any] | str | Path, *, out: str | Path = OUT, uri: str | None = None,
    plugins: Sequence[str | Path] = (), tell: Tell = tell_here,
) -> Study:  # fmt: skip
    """Trains every arm of an ablation with every seed, or what is unfinished of it, under an equal budget.

    Args:
        plan: an ablation's file, such as recipes/ablations/attention.yaml; what such a file says, as a mapping; or a
            plan that was read. Paths in a mapping are relative to the working directory.
        out: folder; files go to a folder in it of the ablation's name.
        uri: of the mlflow store; None for MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        plugins: files that register parts.
        tell: hears how it goes on.

    Returns:
        what is there by now; ``complete`` says whether that is all.

    Raises:
        SoraError: a plan that cannot mean what it says, before anything is trained.
        KeyboardInterrupt: the same call goes on with what is unfinished.

    Example:
        >>> import lightning_sora as ls
        >>> plan = {"base": "recipes/world_pixels.yaml", "factor": "model.dit.attention", "arms": ["full", "temporal"]}
        >>> study = ls.ablate({**plan, "seeds": [0, 1], "budget": {"steps": 400}})  # doctest: +SKIP
        >>> ls.compare(study)  # doctest: +SKIP
    """
    read, store, engine, folder = _begin(plan, out, uri, plugins, tell)
    with _held(folder / ".lock", read.name):
        prepared = _prepared(read, folder)
        tell(prepared)
        return _Sitting(prepared, engine, store, plugins, tell).run()


def prepare(
    plan: Plan | Mapping[str, Any] | str | Path, *, out: str | Path = OUT, uri: str | None = None,
    plugins: Sequence[str | Path] = (), tell: Tell = tell_here,
) -> Prepared:  # fmt: skip
    """Sets the arms of an ablation to its budget, and trains nothing; see :func:`ablate`."""
    read, _, _, folder = _begin(plan, out, uri, plugins, tell)
    with _held(folder / ".lock", read.name):
        return _prepared(read, folder)


def _begin(
    plan: Plan | Mapping[str, Any] | str | Path, out: str | Path, uri: str | None,
    plugins: Sequence[str | Path], tell: Tell,
) -> tuple[Plan, str, Engine, Path]:  # fmt: skip
    """What can be refused at once: the plan, its store, its engine, its folder."""
    plugin_files.load_plugins(plugins)  # before the plan: what is better in a metric of one's own, its class says
    read = plan if isinstance(plan, Plan) else read_plan(plan if isinstance(plan, Mapping) else Path(plan))
    refuse_incomparable(read.metric, read.factor)
    store = resolve_uri(uri)
    engine = ENGINES.create(read.engine)
    folder = Path(out) / read.name
    check_folder("--out", folder, ".lock")
    folder.mkdir(parents=True, exist_ok=True)
    tell(f"ablation {read.name}: {read.factor} of {read.base.name}, {len(read.arms)} arms x {len(read.seeds)} seeds")
    return read, store, engine, folder


def _prepared(plan: Plan, folder: Path) -> Prepared:
    planner = Planner(plan, folder)
    design = planner.design()
    calibration, known = _calibration(folder), None
    if calibration.is_file():
        known = read_json(calibration.read_bytes(), calibration, "delete it, and it is measured again")
    arms = planner.arms(known if known and set(known) >= set(plan.arms) else None)
    trials = tuple(planner.trials(arms, design.code))
    return Prepared(plan, design, tuple(arms), trials, planner.seconds_per_step, folder)


def _calibration(folder: Path) -> Path:
    return folder / "seconds_per_step.json"


class _Sitting:
    """One run of an ablation, or of what is unfinished of it."""

    def __init__(self, prepared: Prepared, engine: Engine, uri: str, plugins: Sequence[str | Path], tell: Tell) -> None:
        self.plan, self.folder, self.prepared = prepared.plan, prepared.folder, prepared
        self.engine, self.uri, self.plugins, self.tell = engine, uri, plugins, tell
        self.code = code_hash()

    def run(self) -> Study:
        if self.prepared.seconds_per_step:  # a later sitting must plan the same steps
            write_whole(_calibration(self.folder), seal_json(self.prepared.seconds_per_step))
        trials = self.prepared.trials
        record = AblationRecord(self.uri, self.plan, self.prepared.design)
        record.begin(self.prepared.arms, [trial.planned for trial in trials], self.plan.text)
        todo = [trial for trial in trials if not record.finished(trial.planned)]
        if len(todo) < len(trials):
            self.tell(f"{len(trials) - len(todo)} of {len(trials)} trials are finished already and are not repeated")
        failures = self._train(record, todo)
        ended = dict.fromkeys(self.plan.arms, True)
        for trial in trials:
            ended[trial.planned.arm] &= record.finished(trial.planned)
        record.end(ended)
        for name, reason in failures.items():
            self.tell(f"failed: {name}: {reason}")
        return read_study(self.uri, [record.run_id])

    def _train(self, record: AblationRecord, todo: Sequence[TrialRecipes]) -> dict[str, str]:
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
                self.tell(
                    f"[{done}/{len(jobs)}] {outcome.job.name}: {said}, {outcome.seconds:.0f} s; {left:.0f} min left"
                )
        except KeyboardInterrupt:
            record.end(dict.fromkeys(self.plan.arms, False), interrupted=True)
            raise KeyboardInterrupt("the same command goes on with what is unfinished") from None
        return failures

    def _refuse_changed_code(self, record: AblationRecord, planned: PlannedTrial) -> None:
        """Stops at once where the code was edited meanwhile: nothing that follows could be compared."""
        found = {run.data.tags.get("code.hash") for run in record.runs_of(planned)[:1]} - {None, self.code}
        if found or code_hash() != self.code:
            record.end(dict.fromkeys(self.plan.arms, False), interrupted=True)
            raise SoraError(
                f"the code of lightning_sora changed while ablation {self.plan.name!r} ran; undo the change and run "
                "the same command again, or begin another ablation by --name"
            )

    def _metrics(self, record: AblationRecord, planned: PlannedTrial) -> dict[str, float]:
        finished = [run for run in record.runs_of(planned) if run.info.status == "FINISHED"]
        return dict(finished[0].data.metrics) if finished else {}

    def _job(self, record: AblationRecord, trial: TrialRecipes) -> Job:
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

    def _write_recipe(self, record: AblationRecord, trial: TrialRecipes, training: Training, judged: bool) -> Path:
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
        if self.plugins:
            recipe["plugins"] = [str(Path(file).absolute()) for file in self.plugins]
        file = training.folder / RECIPE_FILE
        # Passwords go to the trial by its environment, not by its file.
        write_whole(file, yaml.safe_dump(in_environment(recipe), sort_keys=False, allow_unicode=True).encode())
        return file.absolute()


def _commands(training: Training, file: Path, tested: bool) -> Iterator[tuple[str, ...]]:
    """What is left to do of a training: nothing, the rest of its steps, or all of them; then its test."""
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
