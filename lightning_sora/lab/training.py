"""Runs of a recipe: fit, validate, test, predict."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_sora.data.reading import reader_died
from lightning_sora.errors import SoraError
from lightning_sora.lab.predicting import AskedClips, Tally, read_requests, vbench_requests
from lightning_sora.lifeline import end_with_starter
from lightning_sora.lit.callbacks import ClipScores, Costs, PartsSummary, PredictionWriter, Progress
from lightning_sora.lit.generate import GenerativeModule
from lightning_sora.plugins import loaded
from lightning_sora.recipe.explain import from_worker
from lightning_sora.recipe.parser import RecipeParser, parsing
from lightning_sora.recipe.recipe import Recipe
from lightning_sora.recipe.secrets import without_secrets
from lightning_sora.recipe.trainers import check_made, check_reads, refused_by_lightning, told
from lightning_sora.texts import read_text
from lightning_sora.tracking import Checkpoint, MLflowTracker, RunRecorder, StopBetweenSteps
from lightning_sora.tracking.described import Described, changes, claim
from lightning_sora.tracking.differences import differences, flags, forgotten, remedy
from lightning_sora.writing import check_folder

TERMINATED = 143
#: What torch writes into an error that a loader's worker raised.
WORKER_TRACEBACK = "Original Traceback"


@dataclass(frozen=True)
class Trained:
    """What a run of a recipe leaves.

    Attributes:
        command: fit, validate, test or predict.
        model, trainer: as they are at the end.
        checkpoint: that was begun from, or scored.
        asked: the folder of the videos of a file of prompts.
        tally: how many of them were made, and how many were there already.
    """

    command: str
    model: Any = field(repr=False)
    trainer: pl.Trainer = field(repr=False)
    checkpoint: Path | None = None
    asked: Path | None = None
    tally: Tally | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints that a fit has written; None where it wrote none."""
        paths = (getattr(one, "last_model_path", "") for one in self.trainer.checkpoint_callbacks)
        return next((Path(path).parent for path in paths if path), None)

    @property
    def speaks(self) -> bool:
        """Whether this is the process that tells of it: the first rank, of a run that is no dry one."""
        trainer: Any = self.trainer
        return bool(trainer.is_global_zero and not trainer.fast_dev_run)

    @property
    def runs(self) -> dict[str, str]:
        """The names of the mlflow runs, with their stores."""
        return {str(one.run_name): one.uri for one in self.trainer.loggers if isinstance(one, MLflowTracker)}

    def __str__(self) -> str:
        """Where things are: the checkpoints, and the run."""
        lines = []
        if self.command == "fit" and (folder := self.checkpoints) is not None:
            kept = sorted(path.name for path in folder.glob("*.ckpt"))
            lines.append(f"checkpoints: {short_path(folder)}: {', '.join(kept)}")
        if self.asked is not None:
            lines.append(f"samples: {short_path(self.asked)}: {self.tally}")
        lines += [f"run: {name} in {uri}; `lightning-sora ui` shows it" for name, uri in self.runs.items()]
        return "\n".join(lines)


def fit(recipe: Recipe | str | Path, *, checkpoint: str | Path | None = None) -> Trained:
    """Trains the model of a recipe, as `lightning-sora fit` does.

    Args:
        recipe: or its file.
        checkpoint: "last" or "best" of the recipe's own folder, or a path, to go on from; None to begin.

    Raises:
        SoraError: a mistake in the recipe or the checkpoint.
        KeyboardInterrupt: Ctrl-C, once a checkpoint is kept.
        SystemExit: SIGTERM or SIGHUP, once a checkpoint is kept.
    """
    return _of_recipe("fit", recipe, checkpoint)


def validate(recipe: Recipe | str | Path, checkpoint: str | Path = "last") -> Trained:
    """Runs the validation of a recipe on a checkpoint; see :func:`fit`."""
    return _of_recipe("validate", recipe, checkpoint)


def test(recipe: Recipe | str | Path, checkpoint: str | Path = "last") -> Trained:  # noqa: PT028
    """Scores a checkpoint on the test clips of a recipe: ``metrics`` of what it returns; see :func:`fit`."""
    return _of_recipe("test", recipe, checkpoint)


def predict(
    recipe: Recipe | str | Path, checkpoint: str | Path = "last", *, prompts: str | Path | None = None,
    vbench: int | None = None, vbench_names: str | Path | None = None,
) -> Trained:  # fmt: skip
    """Runs the prediction of a recipe on a checkpoint; what it makes is in the recipe's folder; see :func:`fit`.

    Args:
        prompts: a text file with one prompt per line, or a .jsonl with one request per line, as
            :func:`~lightning_sora.lab.predicting.read_requests` takes it; None for the captions of the test clips.
        vbench: so many samples of each prompt, by the seeds and names of VBench; the videos lie in ``vbench`` too.
        vbench_names: a text file of VBench's own prompts, where ``prompts`` are rewritten ones.
    """
    given = {"prompts": prompts, "vbench": vbench, "vbench_names": vbench_names}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return _of_recipe("predict", recipe, checkpoint, *flags)


def _of_recipe(command: str, recipe: Recipe | str | Path, checkpoint: str | Path | None, *flags: str) -> Trained:
    known = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    begun = [] if checkpoint is None else [f"--ckpt_path={checkpoint}"]
    return run_recipe(command, [*known.flags(), *begun, *flags])


def run_recipe(command: str, flags: Sequence[str]) -> Trained:
    """Runs what flags say, in the language of recipes.

    Args:
        command: fit, validate, test or predict.
        flags: ``--config=FILE``, ``--section.key=value`` and so on.

    Raises:
        SoraError: a mistake in the recipe, the flags or the checkpoint.
        KeyboardInterrupt: Ctrl-C, once a checkpoint is kept.
        SystemExit: SIGTERM or SIGHUP, with status 143.
    """
    stopper = StopBetweenSteps()
    end_with_starter()
    try:
        with _told(), parsing():
            training = _Training([command, *flags], stopper)
            training.execute()
    except SIGTERMException:
        if not stopper.requested:
            raise SystemExit(TERMINATED) from None
    if stopper.requested:
        raise KeyboardInterrupt("what was trained is kept; `--ckpt_path last` goes on from there")
    path = training.config_init[command].get("ckpt_path")
    rows = training.asked
    asked, tally = (None, None) if rows is None else (rows.folder, rows.tally)
    return Trained(command, training.model, training.trainer, Path(path) if path else None, asked, tally)


@contextmanager
def _told() -> Iterator[None]:
    """What lightning, torch and reading processes refuse, as the user's error where it is one."""
    try:
        yield
    except SIGTERMException:
        raise
    except SystemExit as leaving:
        # How lightning passes on a Ctrl-C outside of training steps.
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except SoraError as problem:
        if WORKER_TRACEBACK in str(problem):
            raise from_worker(problem) from problem
        raise
    except (MisconfigurationException, ValueError, TypeError, ImportError) as problem:
        if refused_by_lightning(problem):
            raise told(problem) from problem
        raise
    except (RuntimeError, ConnectionError, EOFError) as problem:
        if refused_by_lightning(problem):
            raise told(problem) from problem
        if reader_died(problem):
            said = " ".join((str(problem) or repr(problem)).split())[:200]
            raise SoraError(
                f"a process that reads clips died ({said}): out of memory, or a file that its decoder cannot "
                "take; the last checkpoint is kept, so lower data.num_workers, or find the file by "
                "`lightning-sora data check PATH --out bad.jsonl` and leave it out by the source's quarantine"
            ) from problem
        raise


class _Training(RecipeParser):
    """A recipe with what every run of it has: records, costs, checkpoints, the end between two steps.

    Args:
        stopper: gets Ctrl-C during training.
    """

    def __init__(self, arguments: Sequence[str], stopper: StopBetweenSteps) -> None:
        self.stopper = stopper
        self._differences: dict[str, tuple[str, str]] = {}  # to the recipe of the checkpoint
        self.asked: AskedClips | None = None
        super().__init__(arguments)

    def execute(self) -> None:
        """Builds what the recipe names, and runs it.

        Raises:
            SoraError: a checkpoint of another model, with the flags that the recipe lacks.
        """
        config = self.config[str(self.subcommand)]
        if self.subcommand == "predict" and config.prompts is None and (config.vbench or config.vbench_names):
            raise SoraError("--vbench says how prompts are sampled; give --prompts all_dimension.txt of VBench")
        if self.subcommand == "predict" and config.vbench is None and config.vbench_names is not None:
            raise SoraError("--vbench_names names samples of VBench; give --vbench 5, the number of each prompt")
        if self.subcommand == "predict" and config.prompts is not None:
            self.asked = self._asked(config)  # on every rank
        try:
            super().execute()
        except RuntimeError as problem:
            if "loading state_dict" not in str(problem):
                raise
            checkpoint = Path(self.config[str(self.subcommand)].ckpt_path)
            said = f"it was trained with {flags(self._differences)}" if self._differences else str(problem)[:400]
            message = f"{checkpoint} does not fit the model of this recipe: {said}; {remedy(checkpoint)}"
            raise SoraError(message) from problem

    def _forgotten(self) -> str:
        """Flags of the fit that this command does not repeat: it runs as it is asked to, on another model or data."""
        lacking = forgotten(self._differences, changes(self.arguments))
        checkpoint = Path(self.config[str(self.subcommand)].get("ckpt_path") or "")
        return f"{checkpoint} was trained with {flags(lacking)}; {remedy(checkpoint)}" if lacking else ""

    @rank_zero_only
    def before_instantiate_classes(self) -> None:
        """Looks at where the outputs are to go, before anything is made for them."""
        config = self.config[str(self.subcommand)]
        if config.trainer.fast_dev_run:
            return
        root = config.trainer.default_root_dir or ""
        if "://" not in str(root):
            check_folder("--trainer.default_root_dir", Path(root))
        kept = config.checkpoint.dirpath
        if self.subcommand == "fit" and config.trainer.enable_checkpointing is not False and "://" not in str(kept):
            folder = Checkpoint(dirpath=kept).folder(root)
            check_folder("--checkpoint.dirpath", folder if folder.exists() else folder.parent, folder.name)

    def _asked(self, config: Any) -> AskedClips:
        if not config.ckpt_path:
            raise SoraError("prompts are sampled by a trained model; give --ckpt_path best, last or a path")
        model, plugins = str(config.ckpt_path), tuple(str(plugin.path) for plugin in loaded().values())
        names: list[str] = []
        expand = config.model.init_args.get("expander")
        if config.vbench is not None:
            if expand is not None:
                raise SoraError(
                    "VBench's prompts are sampled as they are; leave model.expander out, or give rewritten ones"
                )
            requests, names = vbench_requests(
                config.prompts, config.vbench, config.vbench_names, model=model, plugins=plugins
            )
        else:
            requests = read_requests(config.prompts, model=model, expand=expand, plugins=plugins)
        folder = Path(config.trainer.default_root_dir) / "predictions" / Path(config.prompts).stem
        return AskedClips(requests, folder, names)

    def before_predict(self) -> None:
        """Lightning's hook: what is asked for takes the place of the recipe's data."""
        if self.asked is not None:
            if not isinstance(self.model, GenerativeModule):
                raise SoraError(f"a {type(self.model).__name__} makes no videos of prompts; leave out --prompts")
            self.asked.settle(self.model.model.sampling, self._sampled_by)
            self.datamodule = self.asked

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        command = str(self.subcommand)
        config = self.config[command]
        parser = self._parser(command)
        if config.trainer.enable_checkpointing is False:
            parser.callback_keys = [key for key in parser.callback_keys if key != "checkpoint"]
        unresolved = getattr(parser, "unresolved", "") or getattr(self.parser, "unresolved", "")
        resolved, recipe = without_secrets(parser.dump(config, skip_unset=False), unresolved)
        for name in ("prompts", "vbench", "vbench_names"):  # of one prediction, whose command is recorded
            recipe.pop(name, None)
        if self._trained_by:
            self._differences = differences(self._trained_by, recipe)
        recorder = RunRecorder(
            resolved=resolved,
            recipe=recipe,
            sources={f"{index}_{file.name}": read_text(file) for index, file in enumerate(self.files)},
            command=("lightning-sora", *self.arguments),
            plugins={name: plugin.source for name, plugin in loaded().items()},
            lineage=config.tracking.lineage,
            notice=self._forgotten(),
        )
        callbacks: list[Callback] = [self.stopper, recorder, Costs(), ClipScores()]
        if command == "predict" and self.asked is None:
            callbacks.append(PredictionWriter())
        trainer = self._get(self.config_init, "trainer")
        own = trainer.get("callbacks") or []
        kinds = [type(one) for one in (own if isinstance(own, list) else [own])]
        if trainer.get("enable_progress_bar") is not False and not any(issubclass(k, ProgressBar) for k in kinds):
            callbacks.append(Progress())
        if trainer.get("enable_model_summary") is not False and not any(issubclass(k, ModelSummary) for k in kinds):
            callbacks.append(PartsSummary())
            kwargs["enable_model_summary"] = False  # lightning's own
        self.trainer_defaults["callbacks"] = callbacks
        tracker: MLflowTracker = self._get(self.config_init, "tracking")
        given = trainer.get("logger")
        loggers = given if isinstance(given, list) else [given] if given not in (None, True, False) else []
        if tracker.enabled and given is not False:
            root = Path(config.trainer.default_root_dir or "").absolute()
            described = Described(changes(self.arguments), claim(read_text(self.files[0])) if self.files else "")
            tracker.prepare(root, config.seed_everything, self._from_run, self._from_step, described)
            loggers = [tracker, *loggers]
        try:
            made = super().instantiate_trainer(logger=loggers or False, **kwargs)
        except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as problem:
            if refused_by_lightning(problem):
                raise told(problem, config.trainer) from problem
            raise
        check_made(config.trainer, made)
        if config.get("ckpt_path") and os.path.isdir(config.ckpt_path):
            check_reads(Path(config.ckpt_path), made)
        return made


def short_path(path: Path) -> Path:
    """A path as one would write it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
