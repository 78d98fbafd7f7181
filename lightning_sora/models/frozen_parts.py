"""The frozen parts of a model, whose weights lie elsewhere: whether those of a folder are they, and where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_sora.diffusion.guidance import GUIDANCE
from lightning_sora.diffusion.samplers import SAMPLERS, DiffusersSampler
from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.models.denoisers import DENOISERS, DiffusersDenoiser
from lightning_sora.models.image import ImageEncoder
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.text import TEXT_ENCODERS
from lightning_sora.models.text_cached import CachedTransformer
from lightning_sora.models.text_hf import FrozenTransformer, places
from lightning_sora.models.text_hunyuan import HunyuanVideoText
from lightning_sora.models.vae import VAES
from lightning_sora.models.vae.of_diffusers import DiffusersVAE
from lightning_sora.names import local_path
from lightning_sora.registry import Registry
from lightning_sora.specs import Spec

#: Options of parts that are paths, where something lies there.
PATHS = ("path", "name", "cache", "checkpoint")
#: Options of parts that are specs of text encoders.
NESTED = ("encoder",)
#: Text encoders that pipelines of diffusers have, and the option that names the folder.
OF_PIPELINES = {"hf": "name", "hunyuan_video": "path"}
_CACHE, _ANY = "cache.json", "hf(name='MODEL')"
_SAME = "use the same weights, tokenizer, max_tokens and dtype"


def replace_text(model: LatentDiffusion, asked: str) -> None:
    """Puts the text encoder of a spec in the place of a model's, of which only the embeddings may be at hand.

    Args:
        asked: spec of an encoder of the same weights and settings, as "hf(name='DIR', max_tokens=512)".

    Raises:
        SoraError: it is another, or the model's learned with it.
    """
    own = _fingerprint(model.text)
    if own is None:
        raise SoraError(
            f"--text {asked}: the model's text encoder is a {type(model.text).__name__}, whose weights are among the "
            "model's own; leave it out"
        )
    made = TEXT_ENCODERS.create(asked)
    if (found := _fingerprint(made)) != own:
        raise SoraError(
            f"--text {asked} is another text encoder than the model was trained with: its fingerprint is "
            f"{found or 'none'}, and not {own}; {_SAME}"
        )
    model.text = made.eval().to(model.device)
    model.config = {**(model.config or {}), "text": asked}


def encoder_of(text: CachedTransformer) -> str | None:
    """The spec of the encoder that made a cache: as it is given, or as the cache says; None where neither is."""
    if text.encoder is not None:
        return str(text.encoder)
    told = text.folder.parent.parent / _CACHE
    try:
        found = json.loads(told.read_text())["text"]
    except (OSError, ValueError, LookupError, TypeError):  # a cache that says less
        return None
    return None if found is None else str(found)


def check_answers(model: LatentDiffusion, path: str) -> None:
    """Refuses a model that could answer no prompt but those that it was trained with.

    Raises:
        SoraError: its text encoder is a cache of embeddings alone, or it asks for more than a request gives.
    """
    if model.dit.image_frames > 1:
        raise SoraError(
            f"{path} makes clips between a first and a last frame, and a request to mlflow gives a first one alone; "
            "write it by --to pretrained, and sample by the task first_and_last"
        )
    if is_cache_alone(model):
        made: Any = model.text
        raise SoraError(
            f"{path} has embeddings of its captions in {made.folder} and no text encoder, so that it would answer no "
            f'other prompt; name the encoder by --text "{encoder_of(made) or _ANY}"'
        )


def is_cache_alone(model: LatentDiffusion) -> bool:
    """Whether a model reads embeddings of captions, and has nothing that would encode others."""
    return isinstance(model.text, CachedTransformer) and model.text.encoder is None


def text_differs(model: LatentDiffusion, pipeline: Path) -> str | None:
    """Why the text encoder and the tokenizer of a pipeline's folder are not a model's; None where they are.

    Raises:
        SoraError: that of the folder cannot be loaded.
    """
    text, kind = model.text, type(model.text).__name__
    spec = (model.config or {}).get("text")
    if isinstance(text, CachedTransformer):
        spec = encoder_of(text)
        if spec is None:
            return f'its text encoder is known by embeddings alone; name it by text (--text "{_ANY}")'
    elif not isinstance(text, FrozenTransformer) or spec is None:
        return f"its text encoder is a {kind}, which diffusers does not have"
    asked = TEXT_ENCODERS.resolve(spec)
    option = OF_PIPELINES.get(asked.name)
    if option is None:
        return f"its text encoder is {asked.name!r}, which diffusers does not have"
    try:
        there = _resolved(str(pipeline))
    except WeightsMissing as problem:
        return str(problem)
    if isinstance(text, FrozenTransformer) and there == _resolved(str(asked.options[option])):
        return None  # which was compared when it was loaded
    options = {name: value for name, value in asked.options.items() if name != "cache"}
    found = _fingerprint(TEXT_ENCODERS.create(Spec(asked.name, {**options, option: str(pipeline)})))
    if found == (own := _fingerprint(text)):
        return None
    return f"its text encoder is {own} by fingerprint, and that of {pipeline} with the same settings is {found}"


def image_differs(model: LatentDiffusion, pipeline: Path) -> str | None:
    """Why the image encoder of a pipeline's folder is not a model's; None where it is, or the model has none."""
    if model.image is None:
        return None
    there = pipeline / "image_encoder"
    if not there.is_dir():
        return f"it attends to an image encoder, and {pipeline} has no image_encoder/"
    if there.resolve() == local_path(model.image.name).resolve():
        return None
    own, found = model.image.fingerprint(), ImageEncoder(str(there)).fingerprint()
    return None if own == found else f"its image encoder is {own} by fingerprint, and that of {pipeline} is {found}"


def _resolved(name: str) -> tuple[Path, ...]:
    return tuple(local_path(place).resolve() for place in places(name))


def _fingerprint(text: Any) -> str | None:
    told = getattr(text, "fingerprint", None)
    return None if text.trainable or told is None else str(told())


def with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The specs that build a model, by which it is built from any working directory; see ``LatentDiffusion.config``."""
    told = dict(config)
    of_parts: dict[str, Registry[Any]] = {"vae": VAES, "text": TEXT_ENCODERS, "denoiser": DENOISERS}
    for part, registry in of_parts.items():
        if told.get(part) is not None:
            told[part] = _absolute_spec(registry, told[part])
    if told.get("image") is not None:
        told["image"] = _absolute(str(told["image"]))
    if isinstance(guidance := (told.get("sampling") or {}).get("guidance"), str) and "checkpoint" in guidance:
        told["sampling"] = {**told["sampling"], "guidance": _absolute_spec(GUIDANCE, guidance)}
    return told


def _absolute_spec(registry: Registry[Any], asked: Any) -> Any:
    spec = registry.resolve(asked)
    changed = {name: _absolute(value) for name, value in spec.options.items() if name in PATHS and value is not None}
    changed |= {
        name: str(_absolute_spec(TEXT_ENCODERS, value))
        for name, value in spec.options.items()
        if name in NESTED and value is not None
    }
    same = all(spec.options[name] == value for name, value in changed.items())
    return asked if same else str(Spec(spec.name, {**spec.options, **changed}))


def _absolute(value: Any) -> Any:
    """A path of what lies here; a name on a hub stays what it is."""
    place = local_path(value) if isinstance(value, str) else None
    return value if place is None or not place.exists() else str(place.absolute())


def extras_of(model: LatentDiffusion) -> list[str]:
    """What of this package's optional parts a model needs to be built and to make videos."""
    text, sampler = model.text, SAMPLERS.create(model.sampling.sampler)
    diffusers = (model.vae, DiffusersVAE), (model.dit, DiffusersDenoiser), (sampler, DiffusersSampler)
    encoder = "hf" if isinstance(text, FrozenTransformer) else ""
    if isinstance(text, CachedTransformer) and text.encoder is not None:
        encoder = TEXT_ENCODERS.resolve(text.encoder).name
    of_hunyuan = isinstance(text, HunyuanVideoText) or encoder == "hunyuan_video"  # whose prompts diffusers has
    needed = {
        "diffusers": of_hunyuan or any(isinstance(*pair) for pair in diffusers),
        "hf": encoder in ("hf", "hunyuan_video") or model.image is not None,
    }
    return [extra for extra, asked in needed.items() if asked]
