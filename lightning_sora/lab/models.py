"""Trained models, from whatever `fit` or `save` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.shipped import model_path

if TYPE_CHECKING:
    import torch

    from lightning_sora.models.latent_diffusion import LatentDiffusion

#: Modules by the name that their checkpoints carry, each imported when one is loaded; plugins import their own.
MODULES = {
    "LitCaptioner": "lightning_sora.lit.captioner",
    "LitDiT": "lightning_sora.lit.dit",
    "LitExpander": "lightning_sora.lit.expander",
    "LitVAE": "lightning_sora.lit.vae",
}


def load(path: str | Path, device: str | torch.device | None = None, *, base: str | Path | None = None) -> Any:
    """Loads a trained model, with its moving average applied, frozen and in evaluation mode.

    What it can do is that of its kind: ``sample`` of a text-to-video model, ``encode`` and ``decode`` of a VAE,
    ``expand`` of an expander; and of the first two, ``save`` as a folder that needs no Lightning.

    Args:
        path: the folder of a run, of which the last checkpoint is taken; a .ckpt file; a folder that ``save`` wrote; or
            the name of a model that comes with the package.
        device: such as "cuda:1"; None for CUDA where there is one, else the CPU.
        base: of a checkpoint that leaves out a pretrained folder: where that is now, if it was moved.

    Returns:
        the module of a checkpoint, such as :class:`LitDiT`; of a saved folder, :class:`LatentDiffusion` or
        :class:`ClipVAE`.

    Raises:
        SoraError: nothing there, damaged, not of this package, of a part that is missing, or no such device.

    Example:
        >>> import lightning_sora as ls
        >>> model = ls.load("outputs/world_dit")  # doctest: +SKIP
        >>> ls.save_video("cube.mp4", model.sample("a big red cube moves left"))  # doctest: +SKIP
    """
    from lightning_sora.models.saved import is_saved
    from lightning_sora.plugins import load_packages

    place, path = usable_device(device), model_path(path)
    if is_saved(path):
        if base is not None:
            raise SoraError(f"base={str(base)!r}: {path} holds all of its weights; leave it out")
        return _load_saved(path, place)  # registries ask packages for the parts that they miss, and Lightning stays out
    load_packages()
    return _load_checkpoint(path, place, base)


@dataclass(frozen=True)
class VideoModel:
    """A model that makes videos, loaded once for many samples.

    Attributes:
        path: where it was loaded from, as it was given.
        run_id: of the training; None where that is not known.
        init_from: what the training began with, beside its denoiser's own weights; None for nothing.
    """

    path: str
    model: LatentDiffusion
    run_id: str | None
    device: torch.device
    init_from: str | None = None


def load_video_model(path: str | Path, device: str | torch.device | None = None, loaded: Any = None) -> VideoModel:
    """Loads a model as :func:`load` does, if it is one that makes videos.

    Args:
        loaded: what :func:`load` made of it; None to load it.

    Raises:
        SoraError: as :func:`load`; or it makes none.
    """
    from lightning_sora.models.latent_diffusion import LatentDiffusion

    place = usable_device(device)
    loaded = load(path, place) if loaded is None else loaded
    model: Any = loaded if isinstance(loaded, LatentDiffusion) else getattr(loaded, "model", None)
    if not isinstance(model, LatentDiffusion):
        raise SoraError(f"{path} holds a {type(loaded).__name__}, which makes no videos; give a LitDiT's")
    began = getattr(loaded, "hparams", {}).get("init_from")
    if began is not None:
        from lightning_sora.lit.initial import Weights

        began = Weights.asked(began).path
    return VideoModel(str(path), model, getattr(loaded, "run_id", None), place, began)


def _load_saved(path: str | Path, device: torch.device) -> Any:
    from lightning_sora.models.latent_diffusion import KIND, LatentDiffusion
    from lightning_sora.models.saved import read_kind
    from lightning_sora.models.vae import ClipVAE

    if read_kind(path) != KIND:
        return ClipVAE.load(path, device)
    model = LatentDiffusion.load(path, device)
    model.read_weak = _read_weak
    return model


def _read_weak(path: str) -> Any:
    from lightning_sora.lit.dit import read_model

    return read_model(path)


def _load_checkpoint(path: str | Path, device: torch.device, base: str | Path | None) -> Any:
    from lightning_sora.lit.captioners import checkpoint_of
    from lightning_sora.lit.checkpoint import read_checkpoint
    from lightning_sora.lit.module import LitModule
    from lightning_sora.recipe.classes import subclasses

    file = Path(checkpoint_of(str(path)))
    name = read_checkpoint(file)["module"]
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name).load(file, device, base=base)
    known: dict[str, Any] = {kind.__name__: kind for kind in subclasses(LitModule)}
    if name not in known:
        told = ", ".join(sorted({*MODULES, *known}))
        raise SoraError(f"{file} is of a {name}, which cannot be loaded here; known are {told}")
    return known[name].load(file, device, base=base)
