"""The gallery: what the model makes of a fixed set of prompts and noise, kept with the run."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_sora import media
from lightning_sora.lit.module import LitModule
from lightning_sora.sealing import seal_json, write_whole
from lightning_sora.writing import sweep_inside


class Gallery(pl.Callback):
    """Saves the module's gallery as GIF, MP4 and a contact sheet after validation, and at the end of a test.

    Files go under the trainer's ``default_root_dir`` and to every logger that has ``log_files``.

    Args:
        every_n_validations: how often; 0 switches it off, except for tests.
        scale: small videos are enlarged by this whole number, for the eye.
    """

    def __init__(self, every_n_validations: int = 1, scale: int = 4) -> None:
        self.every_n_validations, self.scale = every_n_validations, scale
        self._validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not self.every_n_validations:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._save(trainer, pl_module, f"step_{trainer.global_step:06d}")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, pl_module, "test")

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, LitModule):
            return
        versions, captions = pl_module.gallery()
        if not captions:
            return
        folder = Path(trainer.default_root_dir) / "samples" / name
        sweep_inside(folder.parent)
        for index, shown in enumerate(zip(*versions.values(), strict=True)):
            video = torch.cat(shown, dim=2)  # side by side
            media.write_gif(folder / f"{index:02d}.gif", video, pl_module.native_fps, scale=self.scale)
            media.write_mp4(folder / f"{index:02d}.mp4", video, pl_module.native_fps, scale=self.scale)
        if len(versions) > 1:
            media.comparison_sheet(folder / "contact_sheet.png", versions, captions, scale=self.scale)
        else:
            (videos,) = versions.values()
            media.contact_sheet(folder / "contact_sheet.png", videos, captions, scale=self.scale)
        write_whole(folder / "samples.json", seal_json({"captions": captions}))
        for logger in trainer.loggers:
            log_files = getattr(logger, "log_files", None)
            if log_files is not None:
                log_files(folder, f"samples/{name}")
