"""A trained model in mlflow's format, so that `mlflow models serve` answers a prompt with a video."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_sora import __version__
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import VideoModel, load_video_model
from lightning_sora.lab.sampling import sample
from lightning_sora.plugins import load_plugins, loaded
from lightning_sora.sealing import write_whole
from lightning_sora.texts import parsed_json, read_text
from lightning_sora.tracking import store
from lightning_sora.writing import check_folder

MODEL, LIMITS, PLUGINS = "model", "limits.json", "plugins"
#: The folder of the model among the artifacts of a run.
ARTIFACT = "model"
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


def export(
    model: str | Path, out: str | Path, *, limits: Mapping[str, int] | None = None, plugins: Sequence[str | Path] = (),
    uri: str | None = None, log_to_run: bool = False,
) -> str:  # fmt: skip
    """Writes a text-to-video model in mlflow's format, with its moving average.

    A request names prompts, and may name negative prompts and what is in ``PARAMS``; it names no files. The answer has
    an MP4 of each prompt, the one that :func:`sample` writes.

    Args:
        model: as :func:`sample` takes it.
        out: folder that is not there yet.
        limits: fields of :class:`Limits` to replace; by default twice the longest clips of the training.
        plugins: files that register parts of the model; they are copied.
        uri: of the mlflow store; None for MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        log_to_run: whether to keep it among the artifacts of the run that trained the model as well.

    Returns:
        what `mlflow models serve -m` takes.

    Raises:
        SoraError: no such model, a limit that is none, a folder that is there, or no such run.

    Example:
        >>> import lightning_sora as ls
        >>> ls.export("outputs/world_dit", "served", limits={"frames": 33})  # doctest: +SKIP
        'served'
    """
    folder = Path(out).expanduser()
    check_folder("--out", folder.parent)
    if folder.exists():
        raise SoraError(f"{folder} is there already; give --out of a folder that is not")
    files = [plugin.path for plugin in load_plugins(plugins)]
    made = load_video_model(model, "cpu")
    least, most = made.model.patch, made.model.seen_sizes.most or (1, 1, 1)
    frames, height, width = (LARGER * max(one, two) for one, two in zip(least, most, strict=True))
    try:
        allowed = Limits(**{"frames": frames, "height": height, "width": width, **(limits or {})})
    except TypeError:
        raise SoraError(f"limits={dict(limits or {})} must be of {', '.join(Limits.__annotations__)}") from None
    run = _run_of(made, uri) if log_to_run else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mlflow's, of its own type hints, and of an example that it lacks
        _write(made, folder, allowed, files)
    if run is None:
        return str(folder)
    client, run_id = run
    client.log_artifacts(run_id, str(folder), ARTIFACT)
    return f"runs:/{run_id}/{ARTIFACT}"


def _write(made: VideoModel, folder: Path, limits: Limits, plugins: Sequence[Path]) -> None:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    texts = ("prompt", True), ("negative_prompt", False)
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
            pip_requirements=[f"lightning-sora=={__version__}"],
        )


def _run_of(made: VideoModel, uri: str | None) -> tuple[Any, str]:
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
    return client, made.run_id


def _load_pyfunc(path: str) -> ServedModel:
    """How mlflow loads what :func:`export` wrote."""
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
            data: a table with a column ``prompt``, and maybe ``negative_prompt``.
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
        seed, found = asked.pop("seed", 0), []
        for prompt, negative in zip(prompts, negatives, strict=True):
            with tempfile.TemporaryDirectory() as place:
                made = sample(self.model, prompt, seed=seed, negative=negative, out=place, progress=iter, **asked)
                video = next(file for file in made.files if file.suffix == ".mp4").read_bytes()
            found.append({"video": base64.b64encode(video).decode(), "fps": made.fps, "seed": seed})
        return found
