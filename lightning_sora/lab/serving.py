"""A trained model in mlflow's format, so that `mlflow models serve` answers a prompt with a video."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_sora import __version__
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import VideoModel, load_video_model
from lightning_sora.lab.sampling import sample
from lightning_sora.names import local_path
from lightning_sora.plugins import load_plugins, loaded
from lightning_sora.sealing import write_whole
from lightning_sora.texts import parsed_json, read_text
from lightning_sora.tracking import store

MODEL, LIMITS, PLUGINS = "model", "limits.json", "plugins"
#: The folders of a model and of adapters among the artifacts of a run.
ARTIFACT, LORA = "model", "lora"
#: The column of first frames, of an image-to-video model.
IMAGE = "image"
#: How the files begin that it may hold, and what they are called.
PICTURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
LARGEST = 4096 * 4096  # pixels of such a file: a small one may unfold to more than there is memory
#: What may be asked for beside the prompts, and mlflow's type of it; what is left out is as the recipe has it.
PARAMS = {
    "seed": "long", "frames": "long", "height": "long", "width": "long", "fps": "double", "steps": "long",
    "guidance": "double", "sampler": "string", "rope": "string",
}  # fmt: skip
LARGER = 2  # than the longest clips of the training, along each axis: the most that is made where nothing else is said


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
        frames, height, width: of a clip.
        steps: of the sampler.
        prompts: of one request, each of which makes a clip.
    """

    frames: int
    height: int
    width: int
    steps: int = 100
    prompts: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise SoraError(f"the most {name} of a request, {value}, must be at least 1")

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raises SoraError for a request that asks for more."""
        for name, most in asdict(self).items():
            if (asked.get(name) or 0) > most:
                raise SoraError(f"{name}={asked[name]} is more than is made here; ask for {most} at most")

    @classmethod
    def of(cls, made: VideoModel, replaced: Mapping[str, int]) -> Limits:
        """Twice the longest clips of the training of a model, and what replaces that.

        Raises:
            SoraError: a limit that is none.
        """
        least, most = made.model.patch, made.model.seen_sizes.most or (1, 1, 1)
        frames, height, width = (LARGER * max(one, two) for one, two in zip(least, most, strict=True))
        try:
            return cls(**{"frames": frames, "height": height, "width": width, **replaced})
        except TypeError:
            raise SoraError(f"limits={dict(replaced)} must be of {', '.join(cls.__annotations__)}") from None


def command(where: str) -> str:
    """What serves a model on this machine."""
    return f"mlflow models serve --env-manager local -m {shlex.quote(where)}"


def write(made: VideoModel, folder: Path, limits: Limits, plugins: Sequence[Path]) -> None:
    """Writes a model of videos in mlflow's format, with its moving average.

    Args:
        plugins: files that register parts of the model; they are copied.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mlflow's, of its own type hints, and of an example that it lacks
        _write(made, folder, limits, plugins)


def _write(made: VideoModel, folder: Path, limits: Limits, plugins: Sequence[Path]) -> None:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    texts = [("prompt", True), ("negative_prompt", False), *([(IMAGE, True)] if shown_frames(made) else [])]
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", name, required=required) for name, required in texts]),
        params=ParamSchema([ParamSpec(name, kind, None) for name, kind in PARAMS.items()]),
    )
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        made.model.save(data / MODEL)
        write_whole(data / LIMITS, json.dumps(asdict(limits), indent=1).encode())
        for index, file in enumerate(plugins):
            (data / PLUGINS).mkdir(exist_ok=True)
            shutil.copy(file, data / PLUGINS / f"{index:02d}_{file.name}")
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(data),
            signature=signature,
            pip_requirements=[_requirement(made)],
        )


def shown_frames(made: VideoModel) -> bool:
    """Whether a model makes clips from their first frame, and none without."""
    return bool(made.model.dit.condition_channels)


def _requirement(made: VideoModel) -> str:
    """This package, with the packages that the parts of a model need."""
    from lightning_sora.models.frozen_parts import extras_of

    extras = extras_of(made.model)
    told = f"[{','.join(extras)}]" if extras else ""
    return f"lightning-sora{told}=={__version__}"


class Run(NamedTuple):
    """A run in a store of mlflow."""

    client: Any
    id: str


def run_of(made: VideoModel, uri: str | None) -> Run:
    """The run that trained a model.

    Raises:
        SoraError: it is not known, or not in the store.
    """
    from mlflow.exceptions import MlflowException

    address = store.resolve_uri(uri)
    if made.run_id is None:
        raise SoraError(f"{made.path} names no run that trained it; give the checkpoint of one, or leave out --log")
    client = store.connect(address)
    try:
        client.get_run(made.run_id)
    except MlflowException as problem:
        raise SoraError(
            f"the run {made.run_id} that trained {made.path} is not in {address}; give --uri of its store"
        ) from problem
    return Run(client, made.run_id)


def keep(run: Run, folder: Path, artifact: str, register: str | None = None) -> str:
    """Copies a model of mlflow's format to the artifacts of a run, and makes it a version of a registered name.

    Returns:
        its address.

    Raises:
        SoraError: the registry does not take the name.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    run.client.log_artifacts(run.id, str(folder), artifact)
    if register is None:
        return f"runs:/{run.id}/{artifact}"
    try:
        try:
            run.client.create_registered_model(register)
        except MlflowException as problem:
            if problem.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        place = f"{run.client.get_run(run.id).info.artifact_uri}/{artifact}"
        made = run.client.create_model_version(register, place, run.id)
    except MlflowException as problem:
        raise SoraError(
            f"mlflow's registry does not take {register!r} ({store.brief(problem)}); the model is kept as "
            f"runs:/{run.id}/{artifact}"
        ) from problem
    return f"models:/{register}/{made.version}"


def keep_lora(run: Run, file: Path, base: str, register: str | None = None) -> str:
    """Keeps a file of LoRA in the run that trained it, as a model of ``mlflow.diffusers``; see :func:`keep`.

    Args:
        base: folder or hub's name of the pipeline that it goes with.

    Raises:
        SoraError: a registry that does not take the name, or mlflow knows no models of diffusers.
    """
    try:
        import mlflow.diffusers
    except ImportError as problem:
        raise SoraError("this mlflow knows no LoRA of diffusers; upgrade it: pip install -U mlflow") from problem
    place = local_path(base)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        # A relative path would be taken for a hub's name.
        of = str(place.resolve()) if place.exists() else base
        mlflow.diffusers.save_model(str(file), str(Path(folder) / LORA), base_model=of)
        return keep(run, Path(folder) / LORA, LORA, register)


def _load_pyfunc(path: str) -> ServedModel:
    """How mlflow loads what :func:`write` wrote."""
    folder = Path(path)
    there = {plugin.source for plugin in loaded().values()}  # of the process that exported it
    load_plugins([file for file in sorted((folder / PLUGINS).glob("*.py")) if read_text(file) not in there])
    limits = Limits(**parsed_json(read_text(folder / LIMITS), folder / LIMITS))
    return ServedModel(load_video_model(folder / MODEL), limits)


class ServedModel:
    """What mlflow calls: one request after another."""

    def __init__(self, model: VideoModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self._one_by_one = threading.Lock()

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Makes a video of each prompt.

        Args:
            data: a table with a column ``prompt``, and maybe ``negative_prompt``; of an image-to-video model, with a
                column ``image``, the first frame of each clip: a PNG or JPEG as base64.
            params: of ``PARAMS``; None for what the recipe has.

        Returns:
            of each prompt the MP4 as base64, its rate and its seed.

        Raises:
            MlflowException: what is asked for cannot be made; the answer then has the status 400.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        try:
            with self._one_by_one:
                return self._made(data, {k: v for k, v in (params or {}).items() if v is not None})
        except SoraError as problem:
            raise MlflowException(" ".join(str(problem).split()), INVALID_PARAMETER_VALUE) from problem

    def _made(self, data: Any, params: dict[str, Any]) -> list[dict[str, Any]]:
        prompts = list(data["prompt"])
        # What a row of a table leaves out is no text, but None or not a number.
        if not all(isinstance(text, str) for text in prompts):
            raise SoraError("a row has no prompt; give each a text")
        told = list(data["negative_prompt"]) if "negative_prompt" in data else [""] * len(prompts)
        negatives = [text if isinstance(text, str) else "" for text in told]
        self.limits.check({**params, "prompts": len(prompts)})
        asked: dict[str, Any] = {
            name: int(value) if PARAMS[name] == "long" else value for name, value in params.items()
        }
        if not shown_frames(self.model):
            images = [None] * len(prompts)
        elif IMAGE in data:
            images = list(data[IMAGE])
        else:
            raise SoraError(f"this model makes a clip from its first frame, and there is no column {IMAGE!r}; {_ADD}")
        seed, found = asked.pop("seed", 0), []
        for row, (prompt, negative, image) in enumerate(zip(prompts, negatives, images, strict=True)):
            with tempfile.TemporaryDirectory() as place:
                if shown_frames(self.model):
                    asked["inputs"] = {"image": str(_picture(image, Path(place), row))}
                made = sample(self.model, prompt, seed=seed, negative=negative, out=place, progress=iter, **asked)
                video = next(file for file in made.files if file.suffix == ".mp4").read_bytes()
            found.append({"video": base64.b64encode(video).decode(), "fps": made.fps, "seed": seed})
        return found


_ADD = "give a PNG or JPEG as base64 text in each row: base64.b64encode(open(FILE, 'rb').read()).decode()"


def _picture(text: Any, folder: Path, row: int) -> Path:
    """The file of a picture that a request brings.

    Raises:
        SoraError: it is none, or too large.
    """
    from lightning_sora.data.decode import probe

    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        content = b""
    ending = next((ending for begin, ending in PICTURES.items() if content.startswith(begin)), None)
    if ending is None:
        raise SoraError(f"the {IMAGE} of row {row} is no picture; {_ADD}")
    file = folder / f"{IMAGE}{ending}"
    file.write_bytes(content)
    told = probe(file)
    if told.height * told.width > LARGEST:
        raise SoraError(
            f"the {IMAGE} of row {row} is {told.height}x{told.width} large, and {LARGEST} pixels are taken; scale it"
        )
    return file
