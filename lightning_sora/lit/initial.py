"""The weights that a training begins with: those of another one, all of them or what fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_sora.errors import SoraError, some
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.lora import merged
from lightning_sora.registry import Registry
from lightning_sora.sealing import seal_json, write_whole
from lightning_sora.shipped import model_path
from lightning_sora.specs import Spec

log = logging.getLogger(__name__)

PARTS = ("text", "dit")
SHOWN = 3  # names in a line; the others are counted


@dataclass(frozen=True)
class Taken:
    """What was taken over from another model.

    Attributes:
        fingerprint: of that model.
        names: of the tensors that were, as all names here with "text." or "dit." before them.
        missing: names that it lacks.
        unexpected: names that it has, and this one has not.
        reshaped: names that both have, with the two shapes.
    """

    fingerprint: str
    names: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def of(self, part: str) -> frozenset[str]:
        """The names within a part."""
        return frozenset(name.removeprefix(f"{part}.") for name in self.names if name.startswith(f"{part}."))

    def differences(self) -> str:
        """What was not taken over, in words; empty where all was."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "reshaped": self.reshaped}
        return "; ".join(f"{len(names)} {kind}: {some(names, SHOWN)}" for kind, names in kinds.items() if names)

    def keep(self, trainer: pl.Trainer) -> None:
        """Writes all names of what was not taken over to ``init_from.json``, where there are such."""
        if not self.differences() or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "init_from.json"
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "reshaped": self.reshaped}
        write_whole(path, seal_json({"fingerprint": self.fingerprint, **{k: list(v) for k, v in kinds.items()}}))
        for logger in trainer.loggers:
            log_files = getattr(logger, "log_files", None)
            if log_files is not None:
                log_files(path, "init_from")


INITIAL: Registry["Weights"] = Registry("initial weights")


@INITIAL.register("weights")
class Weights:
    """Those of a trained model: its transformer and its text encoder.

    Args:
        path: of a checkpoint of a LitDiT run, of a folder that such a model was saved to, or the name of one that comes
            with the package.
        strict: refuse a model that differs in any name or shape; otherwise what fits is taken over, and the log says
            what does not.
        vae_hash: of the VAE that this model is to have, where its weights are yet to be loaded, from a checkpoint.

    Example:
        >>> from lightning_sora.lit.initial import Weights
        >>> Weights("runs/first/last.ckpt", strict=False).strict
        False
    """

    def __init__(self, path: str, strict: bool = True, vae_hash: str | None = None) -> None:
        self.path, self.strict, self.vae_hash = path, strict, vae_hash

    @classmethod
    def asked(cls, text: str) -> Weights:
        """By a spec, or by the path alone."""
        return INITIAL.create(text) if text.startswith(("weights(", "weights:")) else cls(text)

    def upon(self, vae_hash: str) -> str:
        """The spec of these weights for a model that is to have the VAE of this fingerprint."""
        return str(Spec("weights", {"path": self.path, "strict": self.strict, "vae_hash": vae_hash}))

    def put_into(self, model: LatentDiffusion, read: Callable[[str], LatentDiffusion]) -> Taken:
        """Takes over the weights, in place.

        Args:
            read: reads a trained model by its path.

        Raises:
            SoraError: no such model, one of other latents, objective or patch, one that differs where strictness is
                asked for, or one of which nothing fits.
        """
        other = read(str(model_path(self.path)))
        other.dit = merged(other.dit)
        own_kind = _kind(model) | ({} if self.vae_hash is None else {"vae": self.vae_hash})
        differ = _told(_kind(other), own_kind)
        theirs, own = dict(_weights(other)), dict(_weights(model))
        if self.strict:
            differ += _told({n: _shape(v) for n, v in theirs.items()}, {n: _shape(v) for n, v in own.items()})
        if differ:
            raise SoraError(
                f"init_from={self.path!r} is of another kind than this recipe asks for: {some(differ, SHOWN)}"
                f"; give vae, text, dit and diffusion.objective as it was trained with, or drop init_from; "
                "init_from=\"weights(path='...', strict=False)\" takes what fits of other names and shapes"
            )
        taken = self._copied(theirs, own, other.fingerprint())
        if not taken.names:
            raise SoraError(f"init_from={self.path!r}: nothing of it fits ({taken.differences()}); drop init_from")
        if told := taken.differences():
            log.warning("init_from=%r: %d of %d tensors taken over; %s", self.path, len(taken.names), len(own), told)
        return taken

    @staticmethod
    @torch.no_grad()
    def _copied(theirs: dict[str, Tensor], own: dict[str, Tensor], fingerprint: str) -> Taken:
        same = [name for name in own if name in theirs and own[name].shape == theirs[name].shape]
        for name in same:
            own[name].copy_(theirs[name])
        return Taken(
            fingerprint,
            tuple(same),
            missing=tuple(name for name in own if name not in theirs),
            unexpected=tuple(name for name in theirs if name not in own),
            reshaped=tuple(
                f"{name} is {_shape(theirs[name])} (here {_shape(own[name])})"
                for name in own
                if name in theirs and own[name].shape != theirs[name].shape
            ),
        )


def _weights(model: LatentDiffusion) -> Iterator[tuple[str, Tensor]]:
    for part in PARTS:
        for name, value in getattr(model, part).state_dict().items():
            yield f"{part}.{name}", value


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def _kind(model: LatentDiffusion) -> dict[str, str]:
    """What two models must share whatever their shapes, for weights of one to mean anything in the other."""
    return {"vae": model.vae_hash, "objective": repr(model.objective), "patch_size": str(model.patch_size)}


def _told(theirs: dict[str, str], own: dict[str, str]) -> list[str]:
    return [
        f"{name} is {theirs.get(name, 'missing')} (here {own.get(name, 'missing')})"
        for name in sorted(theirs | own)
        if theirs.get(name) != own.get(name)
    ]
