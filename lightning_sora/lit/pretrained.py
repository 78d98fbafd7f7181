"""A VAE that a DiT stands on: of a trained run, or made from a spec."""

from __future__ import annotations

import os

from lightning_sora.errors import SoraError
from lightning_sora.lit.vae import LitVAE
from lightning_sora.models.diffusers_folder import is_folder
from lightning_sora.models.saved import is_saved
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.names import local_path
from lightning_sora.randomness import initialize
from lightning_sora.shipped import model_path
from lightning_sora.specs import SPEC, is_path, prefixed


def load_vae(source: str, seed: int) -> tuple[VideoVAE, str, str | None]:
    """A VAE from a checkpoint of a LitVAE; a folder that it, or a model that has it, was saved to, or the name of one
    that comes with the package; or a spec, such as "diffusers(path='DIR')": "spec:" before it asks for fresh weights,
    where the VAE brings none of its own.

    Returns:
        the VAE, the spec that builds it where its weights are kept elsewhere, and the mlflow run that trained it, if
        recorded.

    Raises:
        SoraError: a path that is no checkpoint, an unknown spec, or a VAE that would need training.
    """
    if prefixed(source) is None and source.partition("(")[0] not in VAES.list():
        if is_folder(source):
            raise SoraError(
                f"model.vae={source!r} is a folder of diffusers; write it as \"diffusers(path='{source}')\""
            )
        if is_saved(model_path(source)) or source.endswith(".ckpt") or os.path.exists(local_path(source)):
            return LitVAE.trained(source)
        if is_path(source):
            raise SoraError(
                f'model.vae={source!r} is no file here; give the path of a LitVAE\'s checkpoint, "diffusers(path=...)" '
                f"for a model of a hub, or '{SPEC}NAME' with a name of {', '.join(VAES.list())}"
            )
    spec = VAES.resolve(source)
    vae = VAES.create(spec)
    if not vae.pretrained:
        if any(True for _ in vae.parameters()) and not source.startswith(SPEC):
            raise SoraError(
                f"model.vae={source!r} names a VAE without its weights; give the path of a checkpoint of a LitVAE run, "
                f"or '{SPEC}{source}' if fresh weights are what you want"
            )
        initialize(vae, seed, "vae.")
    return vae, vae.spec_of_its_own(str(spec)), None
