"""The callback that tells the tracker what is run."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_sora.errors import SoraError
from lightning_sora.lifeline import end_with_parent
from lightning_sora.sealing import write_whole
from lightning_sora.tracking.checkpoint import is_dry_run
from lightning_sora.tracking.logger import MLflowTracker, find_tracker

log = logging.getLogger(__name__)

#: The data that each command reads.
SPLITS = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}


class RunRecorder(pl.Callback):
    """Records recipe, code, data, size, lineage and outcome of a run.

    The resolved recipe also goes to ``STAGE.yaml`` in the trainer's ``default_root_dir``. Of the
    data it asks ``fingerprint(split)``, of the model ``lineage()`` (a mapping of tags), where they have it.

    Args:
        resolved: the recipe as text.
        recipe: the same as mappings.
        sources: text of the files that it was made of, by name.
        command: the command line.
        plugins: text of the files that registered parts, by name.
        lineage: what a fit must stand on, as an earlier record has it; None takes what is there.
        notice: a warning that is told once the checkpoint is loaded; empty for none.
    """

    def __init__(
        self,
        resolved: str,
        recipe: Mapping[str, Any],
        sources: Mapping[str, str],
        command: tuple[str, ...],
        plugins: Mapping[str, str],
        lineage: Mapping[str, str] | None = None,
        notice: str = "",
    ) -> None:
        self.resolved, self.recipe, self.sources, self.command = resolved, recipe, sources, command
        self.plugins, self.lineage, self.notice = plugins, lineage, notice

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        end_with_parent()  # a rank that the strategy has spawned
        stage = str(getattr(stage, "value", stage))  # lightning passes an enum
        if stage == "fit" and trainer.ckpt_path is None:  # a checkpoint brings what it stands on
            self._refuse_other(pl_module)
            self._record_lineage(pl_module)
        if is_dry_run(trainer) or not trainer.is_global_zero:
            return
        if stage != "fit":
            write_whole(Path(trainer.default_root_dir) / f"{stage}.yaml", self.resolved.encode())
        tracker = find_tracker(trainer.loggers)
        if tracker is None:
            return
        tracker.log_recipe(stage, self.resolved, self.recipe, self.sources)
        tracker.log_provenance()
        self._log_plugins(tracker)
        tracker.log_tags(
            {f"command.{stage}": " ".join(self.command), "output": os.path.abspath(trainer.default_root_dir)}
        )
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "fingerprint"):
            tracker.log_data(str(getattr(data, "spec", type(data).__name__)), data.fingerprint(SPLITS[stage]), stage)
            if stage == "fit":  # what every validation within it is judged on
                tracker.log_tags({"val.data.fingerprint": data.fingerprint("val")})

    def _refuse_other(self, module: pl.LightningModule) -> None:
        """Refuses weights that are not those of the record that is run again.

        Raises:
            SoraError: other weights lie where the record's were.
        """
        found = _lineage(module)
        for key, hash_ in (self.lineage or {}).items():
            if found.get(key, hash_) != hash_:
                raise SoraError(
                    f"this recipe was recorded with {key}={hash_}, but what it names has {found[key]} now; give what "
                    f"it was trained on by --model.{key.removesuffix('.hash')}=PATH, or take what is there by "
                    "--tracking.lineage=null"
                )

    def _record_lineage(self, module: pl.LightningModule) -> None:
        found = {key: value for key, value in _lineage(module).items() if key.endswith(".hash")}
        if found:
            recorded = yaml.safe_load(self.resolved)
            recorded.setdefault("tracking", {})["lineage"] = found
            self.resolved = yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True)

    def _log_plugins(self, tracker: MLflowTracker) -> None:
        for name, source in self.plugins.items():
            tracker.log_text(source, f"plugins/{name}")
        if self.plugins:
            text = "".join(f"{name}\n{source}" for name, source in sorted(self.plugins.items()))
            tracker.log_tags({"plugins.sha256": hashlib.sha256(text.encode()).hexdigest()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_lineage(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._log_lineage(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_lineage(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_lineage(trainer, pl_module)

    def _log_lineage(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called once every strategy has restored the checkpoint: what the model stands on may come from there."""
        if self.notice and trainer.is_global_zero:
            log.warning("%s", self.notice)
            self.notice = ""  # a fit validates as well
        tracker, lineage = find_tracker(trainer.loggers), _lineage(pl_module)
        if tracker is not None and lineage:
            tracker.log_tags(lineage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record_lineage(pl_module)
        # Not earlier: a fit that is refused must not replace the recipe of the one that made what is there.
        if trainer.is_global_zero and not is_dry_run(trainer):
            write_whole(Path(trainer.default_root_dir) / "fit.yaml", self.resolved.encode())
        tracker = find_tracker(trainer.loggers)
        if tracker is not None:
            parameters = list(pl_module.parameters())
            tracker.log_once(
                {
                    "parameters": sum(p.numel() for p in parameters),
                    "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
                }
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        tracker = find_tracker(trainer.loggers)
        checkpoint["run_id"] = tracker.run_id if tracker is not None else None
        checkpoint["recipe"] = {part: self.recipe[part] for part in ("model", "data") if part in self.recipe}
        if tracker is not None:  # what led to it must not be lost where it is kept
            tracker.sync()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        tracker = find_tracker(trainer.loggers)
        if tracker is not None:
            stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
            tracker.outcome = "KILLED" if stopped else "FAILED"


def _lineage(module: pl.LightningModule) -> dict[str, str]:
    asked: Any = getattr(module, "lineage", None)
    return dict(asked()) if asked is not None else {}
