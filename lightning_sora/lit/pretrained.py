"""A VAE that a DiT stands on: trained, or without weights."""

from __future__ import annotations

import os

from lightning_sora.errors import SoraError
from lightning_sora.lit.vae import LitVAE
from lightning_sora.models.saved import is_saved
from lightning_sora.models.vae import VAES, ClipVAE, VideoVAE
from lightning_sora.names import local_path
from lightning_sora.randomness import initialize

UNTRAINED = "untrained:"


def load_vae(source: str, seed: int) -> tuple[VideoVAE, str, str | None]:
    """A VAE from a checkpoint of a LitVAE, a folder that it was saved to, or a spec.

    Returns:
        the VAE, its spec, and the mlflow run that trained it, if recorded.

    Raises:
        SoraError: a path that is no checkpoint, an unknown spec, or a VAE that would need training.
    """
    spec = source.removeprefix(UNTRAINED)
    if is_saved(spec):
        saved = ClipVAE.load(spec)
        return saved.vae, saved.spec, None
    if spec.endswith(".ckpt") or os.path.exists(local_path(spec)):
        module = LitVAE.load(spec)
        return module.vae, str(module.hparams["vae"]), module.run_id
    if "(" not in spec and "/" in spec:
        raise SoraError(
            f"model.vae={source!r} is no file here, and models of a hub are not read; give the path of a LitVAE's "
            f"checkpoint, or '{UNTRAINED}SPEC' with a spec of {', '.join(VAES.list())}"
        )
    vae = VAES.create(spec)
    if any(True for _ in vae.parameters()) and not source.startswith(UNTRAINED):
        raise SoraError(
            f"model.vae={source!r} names a VAE without its weights; give the path of a checkpoint of a LitVAE run, "
            f"or '{UNTRAINED}{source}' if random weights are what you want"
        )
    initialize(vae, seed, "vae.")
    return vae, spec, None
