"""Models in the forms that others read: folders of diffusers' pipelines, and single files of ComfyUI."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lightning_sora.errors import SoraError
from lightning_sora.models.adapted import has_adapters
from lightning_sora.models.denoisers import DENOISERS, Denoiser
from lightning_sora.models.denoisers.wan_files import write_folder
from lightning_sora.models.denoisers.wan_keys import to_original
from lightning_sora.models.diffusers_folder import CONFIG, PIPELINE
from lightning_sora.models.frozen_parts import image_differs, text_differs
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.lora import merged
from lightning_sora.models.saved import stored_weights
from lightning_sora.models.vae import VAES
from lightning_sora.models.vae.of_diffusers import DiffusersVAE
from lightning_sora.models.vae.on_demand import OnDemand
from lightning_sora.names import local_path
from lightning_sora.specs import Spec
from lightning_sora.writing import whole

TRANSFORMER, VAE = "transformer", "vae"
#: Of the one file of a whole transformer, and before each of its keys.
COMFYUI_FILE, COMFYUI_PREFIX = "comfyui_transformer.safetensors", "model.diffusion_model."
#: Pipelines by transformer: of text, and of those that are shown a first frame in channels of its own.
PIPELINES = {
    "WanTransformer3DModel": ("WanPipeline", "WanImageToVideoPipeline"),
    "CogVideoXTransformer3DModel": ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
    "HunyuanVideoTransformer3DModel": ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    "LTXVideoTransformer3DModel": ("LTXPipeline", "LTXPipeline"),
    "MochiTransformer3DModel": ("MochiPipeline", "MochiPipeline"),
}
_PRETRAINED = "--to pretrained writes any model"


def base_of(model: LatentDiffusion) -> str | None:
    """The path or the hub's name that a model's transformer came from; None of one that came from nowhere."""
    spec = (model.config or {}).get("denoiser")
    found = None if spec is None else DENOISERS.resolve(spec).options.get("path")
    return None if found is None else str(found)


def is_of_diffusers(denoiser: Denoiser) -> bool:
    """Whether a denoiser is a transformer that diffusers has."""
    return hasattr(denoiser, "save_diffusers") or hasattr(denoiser, "diffusers_module")


def take_in_vae(model: LatentDiffusion) -> None:
    """Has a model hold the weights of its VAE itself, where they were to be read on demand from a folder."""
    if not isinstance(model.vae, DiffusersVAE) or not isinstance(model.vae.network, OnDemand) or model.config is None:
        return
    asked = VAES.resolve(model.config["vae"])
    spec = str(Spec(asked.name, {name: value for name, value in asked.options.items() if name != "on_demand"}))
    vae = VAES.create(spec)
    model.replace_vae(vae)
    model.config = {**model.config, "vae": vae.spec_of_its_own(spec)}


def attention_left_behind(denoiser: Denoiser) -> list[str]:
    """The attention blocks inside of a transformer of diffusers, in whose place others will attend in full."""
    found = [one if isinstance(one, str) else type(one).__name__ for one in getattr(denoiser, "attention", ())]
    return sorted(set(found) - {"full"}) if is_of_diffusers(denoiser) else []


def write_diffusers(
    model: LatentDiffusion,
    folder: str | Path,
    base: str | None = None,
    *,
    stored: str | None = None,
    link: bool = False,
) -> list[str]:
    """Writes a model as a folder of diffusers: ``transformer``, its ``vae``, and of a base what else its pipeline has.

    Where all of a pipeline is there, ``DiffusionPipeline.from_pretrained(folder)`` loads it. LoRA is merged.

    Args:
        base: folder of the pipeline whose other parts go with it; None for where the transformer came from. They are
            taken if the model was trained with them: on latents of a VAE of diffusers, and with the base's text encoder
            and image encoder, by their fingerprints.
        stored: precision of the transformer's weights in the files, such as "bfloat16"; None for their own.
        link: point to the base's parts by links, where they would take room; they must then stay there.

    Returns:
        what was written, in lines; and where parts are missing, how it is put together.

    Raises:
        SoraError: a transformer that diffusers does not have, a base that is no pipeline or one of other classes, or
            nothing can be written there.
    """
    place = local_path(folder)
    told = ["its LoRA adapters are merged into the weights"] if has_adapters(model.dit) else []
    asked = None if base is None else _pipeline(base)
    if base is not None and asked is None:
        raise SoraError(f"base={base!r} is no pipeline here: it has no {PIPELINE}; give the folder of one, or leave it")
    found = base_of(model)
    source = asked if asked is not None else None if found is None else _pipeline(found)
    network = _transformer(merged(model.dit), place / TRANSFORMER, stored)
    own = {TRANSFORMER: network}
    if isinstance(model.vae, DiffusersVAE):
        vae = model.vae.network
        own[VAE] = _write_module(vae.network() if isinstance(vae, OnDemand) else vae, place / VAE)
    told.append(f"written: {', '.join(f'{name} ({kind})' for name, kind in own.items())}")
    of_text, of_frames = PIPELINES.get(network, ("PIPELINE", "PIPELINE"))
    pipeline = of_frames if model.dit.condition_channels else of_text
    theirs = None if source is None else str(_index(source)["_class_name"])
    if theirs == of_text != pipeline:
        missing: str | None = f"{source} is a {theirs}, and this model makes clips from their first frame"
    else:
        missing, pipeline = _why_no_pipeline(model, source), theirs or pipeline
    if missing is None:
        assert source is not None
        return told + _complete(place, source, own, link)
    place_of = str(source or base or found or "BASE")
    # Not DiffusionPipeline, which leaves out what it is given (0.42).
    given = [f"{name}=diffusers.{kind}.from_pretrained({str(place / name)!r})" for name, kind in own.items()]
    return [
        *told,
        f"it is no whole pipeline: {missing}",
        f"with one: diffusers.{pipeline}.from_pretrained({place_of!r}, {', '.join(given)})",
    ]


def _pipeline(path: str) -> Path | None:
    """The folder of the pipeline that a path is, or is a part of."""
    place = local_path(path)
    return next((one for one in (place, place.parent) if (one / PIPELINE).is_file()), None)


def _index(pipeline: Path) -> dict[str, Any]:
    """What a pipeline's folder says of its parts."""
    try:
        found = json.loads((pipeline / PIPELINE).read_text())
        return {"_class_name": found["_class_name"], **found}
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise SoraError(f"{pipeline / PIPELINE} cannot be read ({problem!r}); download the folder again") from problem


def _why_no_pipeline(model: LatentDiffusion, source: Path | None) -> str | None:
    if not isinstance(model.vae, DiffusersVAE):
        return f"its latents are those of a {type(model.vae).__name__}, which diffusers does not have"
    if model.text.trainable:
        return f"its text encoder is a {type(model.text).__name__}, which diffusers does not have"
    if source is None:
        return "text encoder, tokenizer and scheduler are in no pipeline here; name one by base (--base DIR)"
    return text_differs(model, source) or image_differs(model, source)


def _transformer(denoiser: Denoiser, place: Path, stored: str | None) -> str:
    """Writes a transformer; returns its class in diffusers."""
    if not is_of_diffusers(denoiser):
        raise SoraError(
            f"a {type(denoiser).__name__} is no transformer of diffusers, and only runs whose model.denoiser is one "
            f"are written so; {_PRETRAINED}"
        )
    network: Any = denoiser
    if hasattr(denoiser, "save_diffusers"):
        network.save_diffusers(place, stored=stored)
    else:
        _write_module(network.diffusers_module(), place, stored)
    return str(json.loads((place / CONFIG).read_text())["_class_name"])


def _write_module(network: Any, place: Path, stored: str | None = None) -> str:
    write_folder(place, json.loads(network.to_json_string()), stored_weights(network, stored))
    return type(network).__name__


def _complete(place: Path, source: Path, own: Mapping[str, str], link: bool) -> list[str]:
    """Takes the other parts of a pipeline over, and writes what says that it is one."""
    index = _index(source)
    parts = {name: kind for name, kind in index.items() if isinstance(kind, list) and None not in kind}
    for name, kind in own.items():
        if parts.get(name, [None, None])[1] != kind:
            raise SoraError(
                f"{source} has {name} of {parts.get(name, ['', 'no class'])[1]}, and this model's is a {kind}; give "
                "the pipeline that it was trained with"
            )
    others = [name for name in parts if name not in own]
    if absent := [name for name in others if not (source / name).is_dir()]:
        raise SoraError(f"{source} lacks {', '.join(absent)}, which its {PIPELINE} names; download it whole")
    for name in others:
        if link:
            os.symlink((source / name).resolve(), place / name)
        else:
            shutil.copytree(source / name, place / name)
    with whole(place / PIPELINE) as partial:
        partial.write_text(f"{json.dumps(index, indent=2)}\n")
    told = [f"{'linked' if link else 'copied'} from {source}: {', '.join(others)}"]
    if f"{TRANSFORMER}_2" in others:
        told.append("of the pipeline's two transformers, this one was written as the first; the second is the base's")
    call = f"diffusers.{index['_class_name']}.from_pretrained({str(place)!r})"
    return [*told, f"it is whole: {call}"]


def write_comfyui(denoiser: Denoiser, path: str | Path, *, stored: str | None = None) -> Path:
    """Writes a whole Wan transformer as one file, by the names of Wan's own code, as ComfyUI reads it. LoRA is merged.

    Args:
        path: of a file that ends in .safetensors; or of a folder, in which it is made.
        stored: precision of the weights, such as "bfloat16"; None for their own.

    Raises:
        SoraError: no Wan, or one with parameters that Wan does not have.
    """
    plain = merged(denoiser)
    place = local_path(path)
    file = place if place.suffix == ".safetensors" else place / COMFYUI_FILE
    try:
        named = {name: to_original(plain.diffusers_key(name)) for name in plain.state_dict()}
    except SoraError as problem:
        raise SoraError(f"ComfyUI's form is known of Wan alone ({problem}); {_PRETRAINED}") from problem
    weights = {COMFYUI_PREFIX + named[name]: value for name, value in stored_weights(plain, stored).items()}
    with whole(file) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    return file
