"""Tiny models and data for whole trainings in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.lit import LitDiT, LitVAE
from lightning_sora.lit.older import grouped

VAE = "causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8, front_end_patch=(4, 8, 8), decoder_blocks=1)"
SOURCE = "world(level='tiny', clips={clips}, heldout_clips=4)"


def make_vae(**changes: Any) -> LitVAE:
    """A LitVAE, whose options in groups may be given beside the others."""
    whole = {"vae": VAE, "optimizer": "adamw(lr=1e-3)", "schedule": "constant", **changes}
    return LitVAE(**grouped(whole, LitVAE.groups))


def make_dit(vae: str = f"spec:{VAE}", **changes: Any) -> LitDiT:
    """A LitDiT, whose options in groups may be given beside the others."""
    small = {"dim": 16, "depth": 2, "num_heads": 2, "text": "bytes(dim=8, depth=1, num_heads=1)", "steps": 2}
    return LitDiT(vae, **grouped({**small, "schedule": "constant", "ema_decay": 0.9, **changes}, LitDiT.groups))


def make_data(clips: int = 8, **changes: Any) -> SpacetimeDataModule:
    size = {"frames": 5, "height": 16, "width": 16, "fps": 8.0, "batch_size": 4}
    return SpacetimeDataModule(SOURCE.format(clips=clips), **{**size, **changes})


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def make(**changes: Any) -> pl.Trainer:
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return pl.Trainer(
            **{
                **quiet,
                "max_steps": 4,
                "accelerator": "cpu",
                "limit_val_batches": 0,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "default_root_dir": tmp_path,
                **changes,
            }
        )

    return make
