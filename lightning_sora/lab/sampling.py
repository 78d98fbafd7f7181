"""Videos from prompts, by a trained model, as files."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.lab.given_files import check_files, check_rates, read_inputs, task_for
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.redaction import redacted
from lightning_sora.sealing import write_whole
from lightning_sora.shipped import is_shipped, model_path
from lightning_sora.texts import parsed_json, read_text
from lightning_sora.writing import check_folder

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_sora.diffusion.samplers import Progress
    from lightning_sora.lab.models import VideoModel
    from lightning_sora.media import Video
    from lightning_sora.models.expander import Expander

#: Longest prompt, in letters: no text encoder reads as much.
LONGEST = 5000


@dataclass(frozen=True)
class Request:
    """What is asked of a model, as a sidecar file holds it; nothing else decides the pixels.

    Attributes:
        model: path of the checkpoint, the run or the saved folder, or the name of a model of the package.
        prompts: one per clip.
        seeds: of the noise of each clip.
        negative: what guidance leads away from.
        task: a spec; None for that which the inputs tell.
        inputs: paths of files, or numbers, by the names that tasks know.
        frames, height, width, fps: None for as trained; sizes in pixels.
        sampler, steps, guidance, rope, shift_by_size: None for those of the recipe.
        expand: what makes prompts rich first.
        plugins: files that register parts.
    """

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative: str = ""
    task: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: str | float | None = None
    rope: str | None = None
    shift_by_size: bool | None = None
    expand: str | None = None
    plugins: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises SoraError for what can be told without the model."""
        from lightning_sora.diffusion.guidance import guidance_of
        from lightning_sora.diffusion.samplers import SAMPLERS, time_schedule
        from lightning_sora.media import check_rate
        from lightning_sora.models.seen_sizes import check_rope
        from lightning_sora.tasks import TASKS

        for name, value in self.inputs.items():
            if not isinstance(value, str | int | float):
                raise SoraError(
                    f"{name} is a {type(value).__name__}, by which nothing could be made again; give the path of a "
                    "file, or take tensors to sample_task"
                )
        if self.fps is not None:
            check_rate(self.fps)
        if not self.prompts:
            raise SoraError("nothing to sample; give --prompt TEXT or --prompts FILE")
        for text in (*self.prompts, self.negative):
            if len(text) > LONGEST:
                raise SoraError(f"a prompt has {len(text)} letters, beginning {text[:40]!r}; give {LONGEST} at most")
        if not os.path.exists(model_path(self.model)):
            raise SoraError(
                f"no checkpoint at {self.model}; give the path of a .ckpt file that `lightning-sora fit` wrote, or of "
                "its run's folder"
            )
        TASKS.create(self.task or task_for(self.inputs))
        if self.steps is not None:
            time_schedule(self.steps)
        if self.guidance is not None:
            guidance_of(self.guidance)
        if self.sampler is not None:
            SAMPLERS.create(self.sampler)
        if self.rope is not None:
            check_rope(self.rope)
        check_files(self.inputs)
        check_rates(self.inputs, self.fps)


@dataclass(frozen=True)
class Samples:
    """Videos that were sampled, and their files; a notebook plays them.

    Attributes:
        prompts: as asked for.
        expanded: what was sampled from; the prompts themselves where nothing makes them rich.
        videos: uint8 [frames height width 3], one per prompt and seed.
        files: of each an MP4, a GIF and a JSON, by which it can be made again; then contact_sheet.png.

    Example:
        >>> import lightning_sora as ls
        >>> made = ls.Samples(("a red cube",), ("a red cube",), (), fps=8.0, files=())
        >>> made.prompts
        ('a red cube',)
    """

    prompts: tuple[str, ...]
    expanded: tuple[str, ...]
    videos: tuple[Video, ...] = field(repr=False)
    fps: float
    files: tuple[Path, ...]

    def _repr_html_(self) -> str:
        gifs = [file for file in self.files if file.suffix == ".gif"]
        return "".join(
            f"<figure style='display:inline-block'><img src='data:image/gif;base64,"
            f"{base64.b64encode(file.read_bytes()).decode()}'><figcaption>{html.escape(text)}</figcaption></figure>"
            for file, text in zip(gifs, self.expanded, strict=True)
        )


def sample(
    model: str | Path | VideoModel, prompts: str | Sequence[str], *, seed: int | Sequence[int] = 0, negative: str = "",
    task: str | None = None, inputs: Mapping[str, Any] | None = None, frames: int | None = None,
    height: int | None = None, width: int | None = None, fps: float | None = None, sampler: str | None = None,
    steps: int | None = None, guidance: str | float | None = None, rope: str | None = None,
    shift_by_size: bool | None = None, expand: str | None = None, plugins: Sequence[str | Path] = (),
    out: str | Path | None = None, scale: int = 1, preview: bool = False, device: str | None = None,
    progress: Progress | None = None,
) -> Samples:  # fmt: skip
    """Makes a video per prompt and seed, and writes each as MP4 and GIF with what makes it again, and a contact sheet.

    Args:
        model: a checkpoint of a LitDiT, the folder of its run, one that ``save`` wrote, or the name of one that comes
            with the package; or what :func:`~lightning_sora.lab.models.load_video_model` made of it.
        seed: of the noise, or several; the noise depends on the seed alone.
        negative: what guidance leads away from.
        task: spec of what is made of the inputs; None for what they tell.
        inputs: paths of images and videos, or numbers, by name: "image", "first", "last", "video", "second", "mask",
            "strength", "extra", "times".
        frames, height, width, fps: None for as trained; sizes in pixels.
        sampler, steps, guidance: None for those of the recipe; guidance is a scale, 1 is off, or a spec.
        rope, shift_by_size: of clips of other sizes than those of the training; see :class:`SamplingConfig`.
        expand: what makes prompts rich first: a LitExpander's checkpoint, hf(...) or openai(...).
        plugins: files that register parts.
        out: folder; None for samples/prompts in the run's, or here for a model of the package.
        scale: each pixel of a file is so many wide and high.
        preview: keep preview.png, the middle frame of what is being made, up to date after each step.
        device: None for CUDA where there is one; of a model that is loaded, where that is.
        progress: wraps the list of steps of each pass through the model; None for a bar on stderr.

    Raises:
        SoraError: no prompt, no such model, an input that is missing, not taken or unreadable, or a size that the model
            cannot have.

    Example:
        >>> import lightning_sora as ls
        >>> made = ls.sample("outputs/world_dit", "a red cube", inputs={"image": "cube.png"})  # doctest: +SKIP
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    pairs = [(text, one) for text in texts for one in seeds]
    given = {name: str(one) if isinstance(one, Path) else one for name, one in (inputs or {}).items()}
    path, loaded = (str(model), None) if isinstance(model, str | Path) else (model.path, model)
    request = Request(
        path, tuple(text for text, _ in pairs), tuple(one for _, one in pairs), negative, task, given, frames,
        height, width, fps, sampler, steps, guidance, rope, shift_by_size, expand, tuple(map(str, plugins)),
    )  # fmt: skip
    return _sample(request, out=out, scale=scale, preview=preview, device=device, loaded=loaded, progress=progress)


def sample_again(
    sidecar: str | Path, *, out: str | Path | None = None, scale: int = 1, preview: bool = False,
    device: str | None = None,
) -> Samples:  # fmt: skip
    """Makes a video again by the JSON beside it: on the same machine the same, bit for bit.

    Args:
        sidecar: the JSON of a clip.
        out: folder; None for ``again`` beside the JSON.
        scale, preview, device: see :func:`sample`.

    Raises:
        SoraError: no such file, or the model or what it was given is not what it was.
    """
    path = Path(sidecar)
    told = parsed_json(read_text(path), path)
    known = {one.name for one in fields(Request)}
    asked, listed = told.get("request") if isinstance(told, dict) else None, ("prompts", "seeds", "plugins")
    if (
        not isinstance(asked, dict)
        or not known >= set(asked) >= {"model", *listed}
        or not all(isinstance(asked[name], list) for name in listed)
    ):
        raise SoraError(f"{path} is no sidecar of a sample; give the JSON beside an MP4 that `sample` wrote")
    request = Request(**{**asked, **{name: tuple(asked[name]) for name in listed}})
    folder = path.parent / "again" if out is None else out
    return _sample(request, out=folder, scale=scale, preview=preview, device=device, expected=told, stem=path.stem)


def sample_row(request: Request, model: VideoModel, out: Path, index: int) -> Samples:
    """Makes the one video of a request as :func:`sample` does, without a word and without a contact sheet.

    Args:
        out: folder.
        index: among others of the folder, for the names of the files.
    """
    stem = _stem(index, request.prompts[0], request.seeds[0])
    return _sample(
        request, out=out, scale=1, preview=False, device=None, stem=stem, loaded=model, progress=iter, sheet=False
    )


def _sample(
    request: Request, *, out: str | Path | None, scale: int, preview: bool, device: str | None,
    expected: Mapping[str, Any] | None = None, stem: str | None = None, loaded: VideoModel | None = None,
    progress: Progress | None = None, sheet: bool = True,
) -> Samples:  # fmt: skip
    load_packages()
    load_plugins(request.plugins)
    request.check()
    folder = _samples_of(Path(request.model)) if out is None else Path(out)
    check_folder("--out", folder)

    from tqdm import tqdm

    from lightning_sora import media
    from lightning_sora.lab.models import load_video_model
    from lightning_sora.models.configs import plain
    from lightning_sora.spacetime import VideoSize
    from lightning_sora.tasks import TASKS, sample_task

    place = usable_device(device) if loaded is None or device is not None else loaded.device
    if loaded is not None and place != loaded.device:
        raise SoraError(
            f"{request.model} is loaded on {loaded.device}, and device={device!r} is asked for; load it there"
        )
    asked = list(request.prompts)
    expanded, expander = asked, None
    if request.expand is not None:
        made_rich = _expander(request.expand, str(place))
        expander = made_rich.fingerprint()
        expanded = [made_rich.expand([text], seed=one)[0] for text, one in zip(asked, request.seeds, strict=True)]
    loaded = loaded or load_video_model(request.model, place)
    model = loaded.model
    native = model.seen_sizes.native or (1, model.patch.height, model.patch.width)
    wanted = (request.frames, request.height, request.width)
    size = VideoSize(*(trained if one is None else one for one, trained in zip(wanted, native, strict=True)))
    rate = model.seen_sizes.fps if request.fps is None else request.fps
    task = request.task or task_for(request.inputs)
    inputs = read_inputs(TASKS.create(task), request.inputs, size, rate)
    known = {
        "model": model.fingerprint(),
        "expander": expander,
        "inputs": {name: _digest(value) for name, value in inputs.items() if not isinstance(value, int | float)},
    }
    if expected is not None:
        changed = [name for name, value in known.items() if value != expected.get(name)]
        if changed:
            raise SoraError(f"the {' and the '.join(changed)} of this sample changed since; it cannot be made again")
    drawn = model.sampling
    names = ("sampler", "steps", "guidance", "rope", "shift_by_size")
    chosen = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    own = {name: plain(getattr(drawn, name)) for name in names} | chosen
    told = {
        **known, **own, "shift": drawn.shift, "size": list(size), "fps": rate, "task": task,
        "run_id": loaded.run_id, "device": str(place),
    }  # fmt: skip
    videos: list[Video] = []
    written: list[Path] = []
    for index, (text, one) in enumerate(zip(expanded, request.seeds, strict=True)):
        on_step = partial(_preview, model, folder / "preview.png", size, scale) if preview else None
        label = f"sampling {index + 1}/{len(expanded)}"
        # One by one: what a clip is computed beside changes its last digits.
        (video,) = sample_task(
            model, task, [text], size, inputs, keys=[(0,)], seed=one, negative=request.negative,
            **chosen, on_step=on_step, progress=progress or partial(tqdm, desc=label, unit="step", file=sys.stderr),
        )  # fmt: skip
        name = folder / (stem or _stem(index, asked[index], one))
        written += [name.with_suffix(ending) for ending in (".mp4", ".gif", ".json")]
        media.write_mp4(written[-3], video, rate, scale=scale)
        media.write_gif(written[-2], video, rate, scale=scale)
        alone = replace(request, prompts=(asked[index],), seeds=(one,))
        digest = _digest(video)
        sidecar = {"request": asdict(alone), "expanded": text, "pixels": digest, **told}
        write_whole(written[-1], json.dumps(redacted(sidecar), indent=1, ensure_ascii=False).encode())
        if expected is not None and digest != expected["pixels"]:
            raise SoraError(
                f"{name.with_suffix('.mp4')} differs from what was made before: this machine or this version of torch "
                "computes otherwise"
            )
        videos.append(video)
    if sheet:
        written.append(folder / "contact_sheet.png")
        media.contact_sheet(written[-1], videos, asked)
    return Samples(tuple(asked), tuple(expanded), tuple(videos), rate, tuple(written))


def read_prompts(path: str | Path) -> list[str]:
    """Returns the prompts of a text file, one per line, without empty ones."""
    return [line.strip() for line in read_text(Path(path)).splitlines() if line.strip()]


def _preview(model: Any, file: Path, size: tuple[int, int, int], scale: int, t: float, x_0: Tensor) -> None:
    from lightning_sora import media
    from lightning_sora.spacetime import TokenGrid

    grid = TokenGrid.of(*size, model.patch)
    if x_0.shape[1] == grid.tokens:  # a task may make other sizes on its way
        (clip,) = model.decode(x_0[:1], grid)
        media.write_image(file, clip[len(clip) // 2], scale=scale)


def _digest(video: Tensor) -> str:
    import hashlib

    return hashlib.sha256(repr(tuple(video.shape)).encode() + video.contiguous().numpy().tobytes()).hexdigest()


def _samples_of(checkpoint: Path) -> Path:
    """Where the samples of a fit go: those of two do not mix. What comes with the package stays as it is."""
    if is_shipped(checkpoint):
        return Path("samples") / "prompts"
    folder = checkpoint if os.path.isdir(checkpoint) else checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "samples" / "prompts"


def _stem(index: int, prompt: str, seed: int) -> str:
    return f"{index:03d}_{_slug(prompt)}_seed{seed}"


@lru_cache(maxsize=1)
def _expander(spec: str, device: str) -> Expander:
    from lightning_sora.lit.expander import create_expander

    return create_expander(spec, device)


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40] or "empty"
