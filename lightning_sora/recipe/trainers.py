"""What lightning is asked for and cannot do, or would do otherwise without an error: told before anything is run."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_sora.errors import SoraError, did_you_mean

#: The least that an option means something by; lightning takes less, and divides by zero or does nothing.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
#: What says where and how a trainer runs.
PLACE = ("accelerator", "devices", "num_nodes", "strategy", "precision")
ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
#: What a folder that is a sharded checkpoint holds, as torch, lightning or deepspeed write it.
SHARDED = (".metadata", "meta.pt", "latest")
PACKAGE = str(Path(lightning.__file__).parent)


def check_asked(asked: Mapping[str, Any]) -> None:
    """Refuses options of a trainer that no trainer can honour.

    Args:
        asked: the recipe's section.

    Raises:
        SoraError: with what is accepted.
    """
    known = {
        "strategy": ["auto", *StrategyRegistry.available_strategies()],
        "accelerator": ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
    }
    for name, accepted in known.items():
        value = asked.get(name)
        if isinstance(value, str) and value.lower() not in accepted:
            hint = did_you_mean(value.lower(), accepted)
            if "." in value:
                hint = f"a class is named by trainer.{name}.class_path in a recipe; "
            shown = [one for one in accepted if "unused" not in one and "offload" not in one]
            raise SoraError(f"trainer.{name}={value!r} is not known; {hint}known: {', '.join(shown)}")
    for name, least in LEAST.items():
        value = asked.get(name)
        if isinstance(value, int | float) and value < least:
            raise SoraError(f"trainer.{name}={value} must be at least {least}")
    if asked.get("barebones"):
        raise SoraError(
            "trainer.barebones=true allows neither checkpoints nor records nor logs, which every command here keeps; "
            "leave it out, and measure speed by lightning_sora.lit.callbacks.Speed"
        )


def check_made(asked: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Refuses a trainer that would do something else than what was asked for.

    Raises:
        SoraError: with what it would do.
    """
    precision = ALIASES.get(str(asked.get("precision")), asked.get("precision"))
    if precision not in (None, trainer.precision) and not asked.get("plugins"):
        raise SoraError(
            f"trainer.precision={asked['precision']} does not run on this {trainer.strategy.root_device.type}; set "
            f"trainer.precision={trainer.precision}, which lightning would use in its place, or 32-true"
        )
    for name, made in (("devices", trainer.num_devices), ("num_nodes", trainer.num_nodes)):
        value = str(asked.get(name))
        if value.isdigit() and int(value) != made:
            raise SoraError(
                f"trainer.{name}={value}, but {type(trainer.strategy).__name__} uses {made}; set "
                f"trainer.{name}={made}, or trainer.strategy=ddp"
            )
    started = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    if started and sys.modules["__main__"].__spec__ is None and not Path(sys.argv[0]).is_file():
        raise SoraError(
            f"{trainer.world_size} ranks are started by running the same script once for each, but {sys.argv[0]!r} is "
            "no file; put it into one, use the command `lightning-sora`, or set trainer.devices=1"
        )


def refused_by_lightning(problem: BaseException) -> bool:
    """Whether lightning itself raised this on purpose: what was asked for is at fault, not the code."""
    if isinstance(problem, MisconfigurationException):
        return True
    frames = traceback.extract_tb(problem.__traceback__)
    if not frames or not isinstance(problem, (ValueError, TypeError, ImportError, RuntimeError)):
        return False
    file, line = frames[-1].filename, frames[-1].lineno or 0
    return file.startswith(PACKAGE) and linecache.getline(file, line).lstrip().startswith("raise ")


def told(problem: BaseException, asked: Mapping[str, Any] | None = None) -> SoraError:
    """What lightning refuses, as the user's error, with what a trainer was asked to run on."""
    given = {name: asked.get(name) for name in PLACE} if asked is not None else {}
    shown = [f"trainer.{n}={getattr(value, 'class_path', value)}" for n, value in given.items() if value is not None]
    where = f" with {', '.join(shown)}" if shown else ""
    return SoraError(f"lightning cannot run this recipe{where}: {' '.join(str(problem).split())}")


def check_sharded(folder: Path) -> None:
    """Refuses a folder to go on from that is no sharded checkpoint.

    Raises:
        SoraError: with the checkpoints that are in it.
    """
    if any((folder / name).exists() for name in SHARDED):
        return
    files = sorted(path for pattern in ("*.ckpt", "checkpoints/*.ckpt") for path in folder.glob(pattern))
    inside = f"it holds {', '.join(map(str, files[:6]))}: give one of these" if files else "give a .ckpt file"
    raise SoraError(f"--ckpt_path {folder} is a folder and no sharded checkpoint; {inside}")


def check_reads(folder: Path, trainer: pl.Trainer) -> None:
    """Refuses a sharded checkpoint that a trainer cannot read."""
    if not isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise SoraError(
            f"--ckpt_path {folder} is a sharded checkpoint, which {type(trainer.strategy).__name__} cannot read; set "
            "trainer.strategy to the one that wrote it, such as fsdp"
        )
