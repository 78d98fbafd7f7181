"""A model of which a part learns: what its checkpoints leave out, and how far it has come from what it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.denoiser import DenoisingTerms
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import Clip
from lightning_sora.models.tuning import TUNINGS, fingerprint, frozen
from lightning_sora.randomness import stream_seed
from lightning_sora.spacetime import TokenLayout
from lightning_sora.specs import Spec

log = logging.getLogger(__name__)

TEXT_REMEDY = "name the pretrained one by model.text, or a trained model by model.init_from"
WITHIN = "model.dit."  # of a module of lightning


class Tuned:
    """A model under a tuning.

    Args:
        model: changed in place: what does not learn is frozen, its text encoder too unless all of it learns.
        tuning: spec; see ``TUNINGS``.
        seed: of initial values.
        taken: names of the denoiser's parameters that were taken over from another training.

    Attributes:
        whole: whether all of it learns.
        fingerprint: of the frozen weights that checkpoints leave out, since they lie elsewhere; None where nothing is
            left out.

    Raises:
        SoraError: an unknown tuning, or one that finds nothing to train.
    """

    def __init__(self, model: LatentDiffusion, tuning: str, seed: int = 0, taken: Collection[str] = ()) -> None:
        self.model, self.tuning = model, TUNINGS.create(tuning)
        self.tuning.begin(model.dit, seed, taken)
        self.whole, self._taken = self.tuning.whole, bool(taken)
        self._left_out: list[str] = []
        self.fingerprint: str | None = None
        self._shown: tuple[object, list[Clip]] = None, []
        self._without_vae = False
        if self.whole:
            return
        model.text.requires_grad_(False)
        if model.dit.pretrained or taken:
            self._without_vae = model.vae.pretrained and any(True for _ in model.vae.parameters())
            self._left_out = [f"{WITHIN}{name}" for name, p in model.dit.named_parameters() if not p.requires_grad]
            if self._without_vae:
                self._left_out += [f"model.vae.{name}" for name in model.vae.state_dict()]
            # Now: in training they may be rounded to another precision.
            self.fingerprint, _ = fingerprint(frozen(model.dit)), model.vae_hash

    def begin(self) -> None:
        """Says, as a fit begins, what of it nobody may have meant."""
        if not self.whole and self.model.text.trainable and not self._taken:
            log.warning("the text encoder is of weights drawn at random, and does not learn: %s", TEXT_REMEDY)

    # Checkpoints.
    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Takes the frozen weights that lie elsewhere out of a checkpoint, and puts down which they were."""
        checkpoint["tuning"] = self.tuning.spec_of_its_own()
        if self.fingerprint is not None:
            checkpoint["base"] = {"fingerprint": self.fingerprint, "vae": self._without_vae}
            for name in self._left_out:
                checkpoint["state_dict"].pop(name, None)

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuses a checkpoint that does not stand on this model.

        Raises:
            SoraError: it is of another tuning, or its frozen weights were others.
        """
        stored, own = Spec.parse(checkpoint.get("tuning", "full")), Spec.parse(self.tuning.spec_of_its_own())
        if _learning(stored) != _learning(own):
            raise SoraError(
                f"the checkpoint was trained by model.tuning={str(stored)!r}, and {str(own)!r} is asked for; resume it "
                "as it was, or begin a new training with it by model.init_from"
            )
        base = checkpoint.get("base", {}).get("fingerprint")
        if base != self.fingerprint:
            raise SoraError(
                f"the checkpoint was trained upon frozen weights {base}, which it does not hold, and those that "
                f"model.denoiser and model.init_from name here are {self.fingerprint}; give them as they were then"
            )
        if checkpoint.get("base", {}).get("vae") and checkpoint["vae"]["hash"] != self.model.vae_hash:
            raise SoraError(
                f"the checkpoint was trained on latents of VAE {checkpoint['vae']['hash']}, which it does not hold, "
                f"and the one of model.vae here is {self.model.vae_hash}; give that which it was trained with"
            )

    def put_back(self, checkpoint: dict[str, Any]) -> None:
        """Completes a checkpoint by this model's own frozen weights."""
        values = self.model.state_dict(prefix="model.")
        checkpoint["state_dict"] |= {name: values[name] for name in self._left_out if name in values}

    @contextmanager
    def drawing(self, seed: int, keys: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Draws what dropout drops from a stream of the clips of a batch, and moves no global generator."""
        if not self.tuning.dropout:
            yield
            return
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stream_seed(seed, "dropout", repr(list(keys))))
            yield

    # How far it has come.
    def base(self) -> AbstractContextManager[None]:
        """Computes as before any training; of a tuning that is not ``whole``."""
        return self.tuning.base(self.model.dit)

    @torch.no_grad()
    def prediction_distance(
        self, terms: DenoisingTerms, again: Callable[[], DenoisingTerms], layout: TokenLayout
    ) -> Float[Tensor, " clips"]:
        """The root mean square of how a clip's predicted ``x_0`` differs from the base's, over that of the base's.

        Args:
            terms: of the tuned model.
            again: computes them anew, from the same noise.
        """
        with self.base():
            base = again().x_0.float()
        error, size = ((terms.x_0.float() - base).square(), base.square())
        return (layout.clip_mean(error.mean(dim=-1)) / layout.clip_mean(size.mean(dim=-1))).sqrt()

    def shown(self, key: object, make: Callable[[], list[Clip]]) -> list[Clip]:
        """What the base makes of the gallery, made once for each ``key``: it stays what it is."""
        if self._shown[0] != key:
            with self.base():
                self._shown = key, make()
        return self._shown[1]


def clip_distance(made: list[Clip], base: list[Clip]) -> float:
    """The root mean square difference of the pixels of two sets of clips, in units of their range (0 to 1)."""
    squares = [((one.float() - other.float()) / 255).square().flatten() for one, other in zip(made, base, strict=True)]
    return float(torch.cat(squares).mean().sqrt())


def _learning(spec: Spec) -> Spec:
    """What of a tuning says which parameters there are: not how they are trained."""
    return Spec(spec.name, {name: value for name, value in spec.options.items() if name != "dropout"})
