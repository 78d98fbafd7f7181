"""The weights of a run in the form that others read: mlflow, folders of our own, of diffusers, LoRA, ComfyUI."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError, WeightsMissing, did_you_mean
from lightning_sora.lab import serving
from lightning_sora.lab.models import VideoModel, load, load_video_model
from lightning_sora.plugins import load_plugins
from lightning_sora.writing import check_folder

if TYPE_CHECKING:
    from lightning_sora.models.hub import PretrainedModel
    from lightning_sora.models.latent_diffusion import LatentDiffusion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What may be asked for beside the form; each form takes some (``FORMS``). See :func:`export`."""

    limits: Mapping[str, int] | None = None
    uri: str | None = None
    log_to_run: bool = False
    register: str | None = None
    base: str | None = None
    stored: str | None = None
    link: bool = False
    push: str | None = None
    text: str | None = None


#: What an option is called on the command line, where not by its own name.
FLAGS = {"limits": "--max-...", "log_to_run": "--log"}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        where: the folder or the file; of what is kept in mlflow, its address there.
        told: what it is and how it is loaded, in lines.
    """

    where: str
    told: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """A form of weights.

    Attributes:
        write: writes a model to a place that is not there yet.
        takes: names of the fields of :class:`Options`.
        told: for whom it is.
    """

    write: Callable[[Any, Path, Options, Sequence[Path]], Exported]
    takes: tuple[str, ...]
    told: str


def export(
    model: str | Path, out: str | Path, *, to: str = "mlflow", plugins: Sequence[str | Path] = (),
    limits: Mapping[str, int] | None = None, uri: str | None = None, log_to_run: bool = False,
    register: str | None = None, base: str | None = None, stored: str | None = None, link: bool = False,
    push: str | None = None, text: str | None = None,
) -> str:  # fmt: skip
    """Writes a trained model, with its moving average, in the form that others read.

    By ``to``:

    - ``"mlflow"``: a model for ``mlflow models serve``, prompts in, MP4s out. LoRA is merged.
    - ``"pretrained"``: a folder of config.json and safetensors, for ``from_pretrained``; of VAEs, too. LoRA is merged.
    - ``"diffusers"``: a folder of diffusers, of a run whose denoiser is one of its transformers. LoRA is merged.
    - ``"lora"``: the adapters of a LoRA run, as ``load_lora_weights`` of diffusers reads them.
    - ``"comfyui"``: one file for ComfyUI, of Wan: the adapters of a LoRA run, the whole transformer of another.

    A request to what is served names prompts, and may name negative prompts and what is in ``serving.PARAMS``; it names
    no files. Of an image-to-video model, it brings the first frame of each clip. The answer has an MP4 of each prompt,
    the one that :func:`sample` writes. Parts whose weights lie elsewhere are named by absolute paths.

    Args:
        model: as :func:`load` takes it.
        out: folder that is not there yet; of "lora" and "comfyui", maybe a file that ends in .safetensors.
        plugins: files that register parts of the model; "mlflow" copies them.
        limits: of "mlflow": fields of :class:`~lightning_sora.lab.serving.Limits` to replace; by default twice the
            longest clips of the training.
        log_to_run: of "mlflow" and "lora": whether to keep it among the artifacts of the run that trained it as well,
            LoRA as a model of ``mlflow.diffusers``.
        uri: of the mlflow store; None for MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        register: the name in mlflow's registry of which what is kept becomes a version.
        base: of "diffusers", the folder of the pipeline that the other parts are of; of "lora" that is logged, the
            folder or the hub's name of the model that it goes with. None for where the transformer came from. Of any
            form, where the pretrained folder that the run was trained on is now, if it was moved.
        stored: of "pretrained", "diffusers" and whole models of "comfyui": precision of the weights in the files, such
            as "bfloat16". None for their own.
        link: of "diffusers": link to the parts of the base instead of copying them.
        push: of "pretrained": OWNER/NAME of a hub that it is uploaded to as well.
        text: of "mlflow", "pretrained" and "diffusers": spec of the text encoder that goes with it, of the same
            fingerprint as the one of the training; for runs on cached embeddings, which answer no other prompts, and
            which "mlflow" refuses without. None for the run's own.

    Returns:
        the place; of what is kept in mlflow its address, which `mlflow models serve -m` takes.

    Raises:
        SoraError: an unknown form or one that the model does not have, an option of another form, a place that is there
            already, no such model or run, a limit that is none, another text encoder, or no base that adapters go on.

    Example:
        >>> import lightning_sora as ls
        >>> ls.export("outputs/world_dit", "served", limits={"frames": 33})  # doctest: +SKIP
        'served'
        >>> ls.export("outputs/wan_lora", "lora", to="lora")  # doctest: +SKIP
        'lora/pytorch_lora_weights.safetensors'
    """
    asked = Options(limits, uri, log_to_run, register, base, stored, link, push, text)
    return exported(model, out, to, asked, plugins).where


def exported(
    model: str | Path, out: str | Path, to: str, asked: Options, plugins: Sequence[str | Path] = ()
) -> Exported:
    """Does as :func:`export`, and says what was written.

    Raises:
        SoraError: see there.
    """
    if to not in FORMS:
        raise SoraError(
            f"weights cannot be written --to {to!r}; {did_you_mean(to, FORMS, repr)}choose {', '.join(FORMS)}"
        )
    form = FORMS[to]
    _check(to, form, asked)
    place = Path(out).expanduser()
    check_folder("--out", place.parent)
    if place.exists():
        raise SoraError(f"{place} is there already; give --out of a place that is not")
    files = [plugin.path for plugin in load_plugins(plugins)]
    made: VideoModel | PretrainedModel = (
        _pretrained(model, asked) if to == "pretrained" else _video_model(model, to, asked)
    )
    return form.write(made, place, asked, files)


@contextmanager
def _all_or_nothing(place: Path) -> Iterator[None]:
    """Leaves nothing of what was not there before, where it cannot be written to the end."""
    try:
        yield
    except BaseException:
        if place.is_file() or place.is_symlink():
            place.unlink()
        else:
            shutil.rmtree(place, ignore_errors=True)
        raise


def _check(to: str, form: Form, asked: Options) -> None:
    """Raises SoraError for an option that the form does not take, or that has no meaning without another."""
    for field in fields(asked):
        if field.name == "base":  # of any form it says where a base was moved to; see _loaded
            continue
        if getattr(asked, field.name) not in (None, False, {}) and field.name not in form.takes:
            of = ", ".join(name for name, one in FORMS.items() if field.name in one.takes)
            flag = FLAGS.get(field.name, f"--{field.name}")
            raise SoraError(f"{flag} is of --to {of}, and not of --to {to}; leave it out")
    for name in ("register", "uri"):
        if getattr(asked, name) is not None and not asked.log_to_run:
            raise SoraError(f"--{name} is of what is kept in mlflow; add --log, or leave it out")


def _loaded(path: str | Path, to: str, asked: Options) -> Any:
    """What a path holds; where the folder that it stands on was moved, by the base that is asked for.

    Raises:
        SoraError: as :func:`load`; or a base that is neither needed for that nor by the form.
    """
    try:
        found = load(path, "cpu")
    except SoraError as problem:
        missing = any(isinstance(one, WeightsMissing) for one in (problem, problem.__cause__))
        if asked.base is None or not missing:
            raise
        return load(path, "cpu", base=asked.base)
    if asked.base is not None and "base" not in FORMS[to].takes:
        of = ", ".join(name for name, one in FORMS.items() if "base" in one.takes)
        raise SoraError(f"--base is of --to {of}, and of --to {to} where a pretrained folder was moved; leave it out")
    if asked.base is not None and to == "lora" and not asked.log_to_run:
        raise SoraError(
            "--base is of what is kept in mlflow, or of a pretrained folder that was moved; add --log, or leave it out"
        )
    return found


def _video_model(path: str | Path, to: str, asked: Options) -> VideoModel:
    from lightning_sora.models.vae import ClipVAE

    loaded = _loaded(path, to, asked)
    if isinstance(getattr(loaded, "clips", loaded), ClipVAE):
        raise SoraError(f"{path} holds a VAE, and --to {to} writes models that make videos; --to pretrained writes it")
    made = load_video_model(path, "cpu", loaded)
    _prepare(made.model, asked, whole=to == "mlflow")
    return made


def _prepare(model: LatentDiffusion, asked: Options, whole: bool) -> None:
    """Replaces the text encoder where that is asked, and has what is written whole hold its VAE."""
    from lightning_sora.models.frozen_parts import replace_text
    from lightning_sora.models.other_formats import take_in_vae

    if asked.text is not None:
        replace_text(model, asked.text)
    if whole:
        take_in_vae(model)


@contextmanager
def _found_anywhere(model: Any) -> Iterator[None]:
    """Has the specs of a model name what lies here by absolute paths, and on leaving as before."""
    from lightning_sora.models.frozen_parts import with_absolute_paths

    asked = getattr(model, "config", None)
    if asked is None:  # a VAE, which is whole by itself
        yield
        return
    model.config = with_absolute_paths(asked)
    try:
        yield
    finally:
        model.config = asked


def _pretrained(path: str | Path, asked: Options) -> PretrainedModel:
    from lightning_sora.models.hub import PretrainedModel
    from lightning_sora.models.latent_diffusion import LatentDiffusion

    loaded = _loaded(path, "pretrained", asked)
    for found in (loaded, getattr(loaded, "clips", None), getattr(loaded, "model", None)):
        if isinstance(found, PretrainedModel):
            found.run_id = getattr(loaded, "run_id", None)
            if isinstance(found, LatentDiffusion):
                _prepare(found, asked, whole=True)
            elif asked.text is not None:
                raise SoraError(
                    f"--text {asked.text} is of models that make videos, and {path} holds a VAE; leave it out"
                )
            return found
    raise SoraError(
        f"{path} holds a {type(loaded).__name__}, and folders are of models that make videos and of VAEs; keep its "
        "checkpoint"
    )


def _to_mlflow(made: VideoModel, place: Path, asked: Options, plugins: Sequence[Path]) -> Exported:
    from lightning_sora.models.frozen_parts import check_answers

    check_answers(made.model, made.path)
    limits = serving.Limits.of(made, asked.limits or {})
    run = serving.run_of(made, asked.uri) if asked.log_to_run else None
    where = str(place)
    with _all_or_nothing(place), _found_anywhere(made.model):
        serving.write(made, place, limits, plugins)
    if run is not None:
        where = serving.keep(run, place, serving.ARTIFACT, asked.register)
    return Exported(where, (serving.command(where),))


def _to_pretrained(made: PretrainedModel, place: Path, asked: Options, plugins: Sequence[Path]) -> Exported:
    from lightning_sora.models.frozen_parts import is_cache_alone
    from lightning_sora.models.latent_diffusion import LatentDiffusion

    with _all_or_nothing(place), _found_anywhere(made):
        made.save_pretrained(place, stored=asked.stored)
    if isinstance(made, LatentDiffusion) and is_cache_alone(made):
        log.warning(
            "what is written answers the prompts alone whose embeddings are in %s; --text \"hf(name='MODEL')\" puts "
            "the text encoder in their place", made.text.folder,
        )  # fmt: skip
    told = [f"ls.{type(made).__name__}.from_pretrained({str(place)!r})"]
    if asked.push is not None:
        told.append(made.push_to_hub(asked.push, stored=asked.stored))
    return Exported(str(place), tuple(told))


def _to_diffusers(made: VideoModel, place: Path, asked: Options, plugins: Sequence[Path]) -> Exported:
    from lightning_sora.models.other_formats import write_diffusers

    with _all_or_nothing(place):
        told = write_diffusers(made.model, place, asked.base, stored=asked.stored, link=asked.link)
    return Exported(str(place), tuple(told))


def _to_lora(made: VideoModel, place: Path, asked: Options, plugins: Sequence[Path]) -> Exported:
    from lightning_sora.models.lora_files import write_lora
    from lightning_sora.models.other_formats import base_of, is_of_diffusers

    _check_lora(made)
    theirs = is_of_diffusers(made.model.dit)
    base = asked.base or base_of(made.model) if theirs else None
    run = serving.run_of(made, asked.uri) if asked.log_to_run else None
    if run is not None and base is None:
        raise SoraError("mlflow keeps LoRA beside its base, and this run names none of diffusers; leave out --log")
    if run is not None and made.init_from is not None and asked.base is None:
        raise SoraError(
            f"mlflow keeps LoRA beside its base, and these adapters go upon the weights of {made.init_from}, with "
            f"which the run began, and not upon {base}; name the folder of a pipeline that has them by --base, or "
            "leave out --log"
        )
    with _all_or_nothing(place):
        file = write_lora(made.model.dit, place, "diffusers" if theirs else "own")
    told = [
        f"diffusers' pipelines: pipeline.load_lora_weights({str(file)!r})" if theirs else
        "by this package's own names, as its network is none of diffusers",
        f'a training: --model.tuning="lora(init={str(file)!r})"', *_beside(made),
    ]  # fmt: skip
    if run is None:
        return Exported(str(file), tuple(told))
    assert base is not None
    where = serving.keep_lora(run, file, base, asked.register)
    return Exported(where, (*told, f"mlflow.diffusers.load_model({where!r}).load_pipeline()"))


def _to_comfyui(made: VideoModel, place: Path, asked: Options, plugins: Sequence[Path]) -> Exported:
    from lightning_sora.models.adapted import has_adapters
    from lightning_sora.models.lora_files import write_lora
    from lightning_sora.models.other_formats import write_comfyui

    if not has_adapters(made.model.dit):
        with _all_or_nothing(place):
            file = write_comfyui(made.model.dit, place, stored=asked.stored)
        told = f"the whole transformer, for ComfyUI's models/diffusion_models: {file}"
        return Exported(str(file), (told, *_attends(made, "it was")))
    if asked.stored is not None:
        raise SoraError(f"--stored={asked.stored} is of whole models, and this run has LoRA adapters; leave it out")
    with _all_or_nothing(place):
        file = write_lora(made.model.dit, place, "comfyui")
    return Exported(str(file), (f"the LoRA adapters, for ComfyUI's models/loras: {file}", *_beside(made)))


def _beside(made: VideoModel) -> list[str]:
    """What is to be told of adapters that were trained upon more than the base's weights and attention."""
    began = made.init_from
    told = [] if began is None else [f"they go upon the weights of {began}, with which the run began"]
    return told + _attends(made, "they were")


def _attends(made: VideoModel, they_were: str) -> list[str]:
    """What is to be told of weights that were trained with other attention than those have who read them."""
    from lightning_sora.models.other_formats import attention_left_behind

    blocks = attention_left_behind(made.model.dit)
    return [f"{they_were} trained with attention by {', '.join(blocks)}, and others attend in full"] * bool(blocks)


def _check_lora(made: VideoModel) -> None:
    from lightning_sora.models.adapted import has_adapters

    if not has_adapters(made.model.dit):
        raise SoraError(
            f"{made.path} has no LoRA adapters: all of it was trained, or its adapters are merged; train with "
            "model.tuning=lora, or write the whole by --to pretrained or --to diffusers"
        )


FORMS: dict[str, Form] = {
    "mlflow": Form(_to_mlflow, ("limits", "log_to_run", "register", "uri", "text"), "for mlflow to serve"),
    "pretrained": Form(_to_pretrained, ("stored", "push", "text"), "config.json and safetensors, for from_pretrained"),
    "diffusers": Form(_to_diffusers, ("stored", "base", "link", "text"), "a folder of diffusers"),
    "lora": Form(_to_lora, ("base", "log_to_run", "register", "uri"), "adapters, for load_lora_weights of diffusers"),
    "comfyui": Form(_to_comfyui, ("stored",), "adapters or a whole Wan transformer, for ComfyUI"),
}
