"""Checkpoints that are always whole: ``last.ckpt``, ``best.ckpt`` and milestones."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_sora.directions import Mode, chosen_mode
from lightning_sora.errors import SoraError
from lightning_sora.redaction import redacted
from lightning_sora.sealing import verify_archive
from lightning_sora.tracking.kept import duplicate, find, fit_of, fits_in, set_aside
from lightning_sora.tracking.logger import find_tracker
from lightning_sora.writing import whole

log = logging.getLogger(__name__)

_ARGUMENTS = (pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, pl.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a reader sees the old file or the new one, never a part.

    A file is verified before it is read, as torch does not look at the CRC-32 that it writes with every record.

    Lightning's own writes to TMPDIR first, from where a move may be a copy. Secrets among hyper-parameters are
    replaced.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        arguments = {key: redacted(checkpoint[key]) for key in _ARGUMENTS if key in checkpoint}
        checkpoint = {**checkpoint, **arguments}
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole(path) as part, part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint whose every record is what was written.

        Raises:
            SoraError: it is damaged.
        """
        remedy = "copy it again, or go on from another checkpoint"
        if "://" not in str(path) and Path(path).is_file():
            verify_archive(Path(path), remedy)
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except RuntimeError as problem:
            if "PytorchStreamReader" not in str(problem):
                raise
            raise SoraError(f"{path} is damaged: torch cannot open it as an archive; {remedy}") from problem


class Checkpoint(LightningCheckpoint):
    """Keeps ``last.ckpt`` after every validation and at every end, and ``best.ckpt`` by a metric.

    Lightning's ModelCheckpoint renews ``last`` only when the best improves, and lets an interrupted
    training overwrite the best; hence this one.

    A fresh fit never overwrites checkpoints of another one: their folder is renamed. A fit that goes on finds its own
    where they were moved, and takes its best along into another folder. Two fits at once in one folder are refused.

    Args:
        dirpath: folder; by default ``checkpoints`` in ``trainer.default_root_dir``.
        monitor: metric that decides which is best; None keeps no best.
        mode: "min" or "max"; by default as the metric is, and needed for one whose direction is not known.
        every_n_steps: also renew ``last.ckpt`` this often between validations.
        keep_every_n_steps: also keep ``step_NNNNNNNN.ckpt`` this often, for good.

    Raises:
        SoraError: an interval below 1, a mode that contradicts the metric's own, or none for one that is not known.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str | None = "val/loss",
        mode: Mode | None = None,
        every_n_steps: int | None = None,
        keep_every_n_steps: int | None = None,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise SoraError(f"checkpoint.{name}={value} must be at least 1, or null for never")
        self.dirpath = dirpath
        self.monitor = monitor
        self.mode = (
            mode if monitor is None else chosen_mode(monitor, mode, "checkpoint.mode=min or checkpoint.mode=max")
        )
        self.every_n_steps, self.keep_every_n_steps = every_n_steps, keep_every_n_steps
        self.best_model_path = self.last_model_path = ""
        self.best_model_score: float | None = None
        self.milestones: list[str] = []
        self._folder = Path()
        self._saved_step = -1
        self._seen_step = 0
        self._fit = ""
        self._told: dict[str, Any] | None = None  # by the checkpoint that is gone on from
        self._lock: TextIO | None = None
        self._trains = False

    def folder(self, root: str | Path) -> Path:
        """Where checkpoints are, for a trainer with this ``default_root_dir``."""
        return Path(self.dirpath if self.dirpath is not None else Path(root) / "checkpoints").absolute()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage != "fit" or is_dry_run(trainer):
            return
        self._folder, self._told, self._trains = self.folder(trainer.default_root_dir), None, False
        if trainer.is_global_zero:
            self._hold()

    def _hold(self) -> None:
        import fcntl

        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._folder.with_name(f".{self._folder.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SoraError(
                f"another fit is writing to {self._folder}; wait for its end or set --trainer.default_root_dir "
                "to another folder"
            ) from None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not earlier: only now is every strategy done with reading the checkpoint to go on from.
        if not is_dry_run(trainer):
            if trainer.is_global_zero:
                self._begin(trainer.ckpt_path)
            known = self._fit, self.best_model_path, self.best_model_score, self.milestones
            known = trainer.strategy.broadcast(known)
            self._fit, self.best_model_path, self.best_model_score, self.milestones = known
        self._seen_step, self._trains = trainer.global_step, True

    def _begin(self, start: Any) -> None:
        if self._told is not None:
            self._take_over(self._told, Path(start))
        else:
            set_aside(self._folder)
            self._fit = os.urandom(8).hex()
            self.best_model_path, self.best_model_score, self.milestones = "", None, []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A batch may be less than a step (accumulation) or more (several optimizers).
        before, step = self._seen_step, trainer.global_step
        self._seen_step = step
        if self.keep_every_n_steps and step // self.keep_every_n_steps > before // self.keep_every_n_steps:
            _tell_step(trainer)
            self._save_last(trainer)
            milestone = self._folder / f"step_{step:08d}.ckpt"
            self._copy_last(trainer, milestone)
            self.milestones.append(str(milestone))
        elif self.every_n_steps and step // self.every_n_steps > before // self.every_n_steps:
            _tell_step(trainer)
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        improved = self._improves(trainer)
        self._saved_step = -1  # an earlier save of this step does not know its score
        self._save_last(trainer)
        if improved:
            self._copy_last(trainer, Path(self.best_model_path))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer)
        self._trains = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning raises SIGTERMException between steps only; elsewhere a step may be half done. Before the first one
        # there is nothing to keep, and what is in the folder is of another fit.
        if isinstance(exception, SIGTERMException) and self._trains:
            self._save_last(trainer)
        self._release()

    def _improves(self, trainer: pl.Trainer) -> bool:
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            raise SoraError(
                f"checkpoint.monitor={self.monitor!r} is not logged by this model; it logs: "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'nothing'}; or set it to null to keep no best"
            )
        score = float(trainer.callback_metrics[self.monitor])
        best = self.best_model_score
        # A comparison with NaN is false: NaN is never best.
        if score == score and (best is None or (score < best if self.mode == "min" else score > best)):
            self.best_model_score = score
            self.best_model_path = str(self._folder / "best.ckpt")
            return True
        return False

    def _save_last(self, trainer: pl.Trainer) -> None:
        if is_dry_run(trainer) or trainer.global_step == self._saved_step:
            return
        self.last_model_path = str(self._folder / "last.ckpt")
        try:
            trainer.save_checkpoint(self.last_model_path, weights_only=False)
        except SoraError as problem:
            if not Path(self.last_model_path).exists():
                raise
            raise SoraError(
                f"{problem}; the checkpoint before it is whole, and --ckpt_path last goes on from there"
            ) from problem
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]

    def _copy_last(self, trainer: pl.Trainer, target: Path) -> None:
        if is_dry_run(trainer):
            return
        if trainer.is_global_zero:
            duplicate(Path(self.last_model_path), target)
        trainer.strategy.barrier("checkpoint copy")

    def state_dict(self) -> dict[str, Any]:
        return {
            "fit": self._fit,
            "folder": str(self._folder),
            "monitor": self.monitor,
            "mode": self.mode,
            "best_model_path": self.best_model_path,
            "best_model_score": self.best_model_score,
            "milestones": list(self.milestones),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._told = state_dict

    def _take_over(self, told: dict[str, Any], start: Path) -> None:
        """Makes the folder that of the fit that goes on, wherever its checkpoints were or are now.

        Args:
            told: by this callback in the checkpoint to go on from.
            start: that checkpoint.
        """
        self._fit = fit_of(told)
        places = [self._folder, start.absolute().parent, Path(told["folder"])]
        if fits_in(self._folder, self.state_key) != {self._fit}:
            places.append(set_aside(self._folder))
        found = find("best.ckpt", places, self.state_key, self._fit)
        if found is not None:
            self._take_best(*found)
        elif told["best_model_score"] is not None:
            log.warning(
                "the best checkpoint of this fit so far, with %s=%g, is not in %s; the best begins anew",
                self.monitor, told["best_model_score"], " nor in ".join(map(str, dict.fromkeys(places))),
            )  # fmt: skip
        names = {Path(path).name for path in told["milestones"]} | {
            path.name for path in self._folder.glob("step_*.ckpt")
        }
        milestones = [find(name, places, self.state_key, self._fit) for name in sorted(names)]
        self.milestones = [str(one[0]) for one in milestones if one is not None]

    def _take_best(self, path: Path, told: dict[str, Any]) -> None:
        """Carries the best checkpoint along, if it is the best by what decides now."""
        was, now = (told.get("monitor", self.monitor), told.get("mode", self.mode)), (self.monitor, self.mode)
        if was != now:
            name = f"best_{was[0]}_{was[1]}.ckpt".replace("/", "_")
            log.warning("%s is the best by another metric or mode, and is kept as %s", path, name)
            duplicate(path, self._folder / name)
            return
        if path.parent != self._folder:
            duplicate(path, self._folder / path.name)
        self.best_model_path, self.best_model_score = str(self._folder / path.name), told["best_model_score"]


def is_dry_run(trainer: pl.Trainer) -> bool:
    """Whether ``trainer.fast_dev_run`` is on: then nothing is kept."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _tell_step(trainer: pl.Trainer) -> None:
    # Lightning does so after the callbacks: too late for a process that dies once the checkpoint is there.
    tracker = find_tracker(trainer.loggers)
    if tracker is not None and not is_dry_run(trainer):
        tracker.log_step(trainer)
