"""Trained models, from whatever `fit` wrote."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device

if TYPE_CHECKING:
    import torch

    from lightning_sora.lit.module import LitModule

#: Modules by the name that their checkpoints carry, each imported when one is loaded.
MODULES = {
    "LitCaptioner": "lightning_sora.lit.captioner",
    "LitDiT": "lightning_sora.lit.dit",
    "LitEvaluator": "lightning_sora.lit.evaluator",
    "LitExpander": "lightning_sora.lit.expander",
    "LitVAE": "lightning_sora.lit.vae",
}


def load(path: str | Path, device: str | torch.device | None = None) -> LitModule:
    """Loads a trained model, with its moving average applied, frozen and in evaluation mode.

    What it can do is that of its kind: :meth:`LitDiT.sample`, :meth:`LitVAE.encode` and ``decode``,
    :meth:`LitExpander.expand`.

    Args:
        path: the folder of a run, of which the last checkpoint is taken, or a .ckpt file.
        device: such as "cuda:1"; None for CUDA where there is one, else the CPU.

    Raises:
        SoraError: nothing there, damaged, not of this package, of a part that is missing, or no such device.

    Example:
        >>> import lightning_sora as ls
        >>> model = ls.load("outputs/world_dit")  # doctest: +SKIP
        >>> ls.save_video("cube.mp4", model.sample("a big red cube moves left"))  # doctest: +SKIP
    """
    from lightning_sora.lit.captioners import checkpoint_of
    from lightning_sora.lit.module import read_checkpoint
    from lightning_sora.plugins import load_packages

    load_packages()
    file, place = Path(checkpoint_of(str(path))), usable_device(device)
    name = read_checkpoint(file)["module"]
    if name not in MODULES:
        raise SoraError(f"{file} is of a {name}, which cannot be loaded here; known are {', '.join(MODULES)}")
    module: type[LitModule] = getattr(import_module(MODULES[name]), name)
    return module.load(file, place)
