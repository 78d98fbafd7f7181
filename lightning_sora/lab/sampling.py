"""Videos from prompts, by a trained model, as files."""

from __future__ import annotations

import base64
import html
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.lab.request import Request
from lightning_sora.lab.sidecars import changed_since, digest, settle, sidecar_of
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.sealing import write_whole
from lightning_sora.shipped import is_shipped
from lightning_sora.texts import parsed_json, read_text
from lightning_sora.writing import check_folder, unwritable

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_sora.diffusion.samplers import Progress
    from lightning_sora.lab.models import VideoModel
    from lightning_sora.media import Video
    from lightning_sora.models.expander import Expander


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


def sample_row(request: Request, model: VideoModel, out: Path, index: int, fingerprint: str | None = None) -> Samples:
    """Makes the one video of a request as :func:`sample` does, without a word and without a contact sheet.

    Args:
        out: folder.
        index: among others of the folder, for the names of the files.
        fingerprint: of the model; None to compute it.
    """
    return _sample(
        request, out=out, scale=1, preview=False, device=None, stem=row_file(request, Path(), index).stem, loaded=model,
        progress=iter, sheet=False, fingerprint=fingerprint,
    )  # fmt: skip


def row_changed(request: Request, model: VideoModel, out: Path, index: int, fingerprint: str) -> list[str] | None:
    """What of the video that :func:`sample_row` made before is not as it would make it now; arguments as there.

    Returns:
        nothing where it is whole and the same, so that it need not be made; None where none was finished.
    """
    file = row_file(request, out, index)
    if not os.path.lexists(file):
        return None
    load_packages()
    load_plugins(request.plugins)
    expander = None if request.expand is None else _expander(request.expand, str(model.device)).fingerprint()
    return changed_since(file, request, settle(request, model, expander, fingerprint))


def row_file(request: Request, out: Path, index: int) -> Path:
    """The JSON beside the video of a row."""
    return out / f"{_stem(index, request.prompts[0], request.seeds[0])}.json"


def _sample(
    request: Request, *, out: str | Path | None, scale: int, preview: bool, device: str | None,
    expected: Mapping[str, Any] | None = None, stem: str | None = None, loaded: VideoModel | None = None,
    progress: Progress | None = None, sheet: bool = True, fingerprint: str | None = None,
) -> Samples:  # fmt: skip
    load_packages()
    load_plugins(request.plugins)
    request.check()
    folder = _samples_of(Path(request.model)) if out is None else Path(out)
    check_folder("--out", folder)

    from tqdm import tqdm

    from lightning_sora import media
    from lightning_sora.lab.models import load_video_model
    from lightning_sora.tasks import sample_task

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
    model, settled = loaded.model, settle(request, loaded, expander, fingerprint)
    if expected is not None:
        changed = [name for name, value in settled.known.items() if value != expected.get(name)]
        if changed:
            raise SoraError(f"the {' and the '.join(changed)} of this sample changed since; it cannot be made again")
    videos: list[Video] = []
    written: list[Path] = []
    for index, (text, one) in enumerate(zip(expanded, request.seeds, strict=True)):
        on_step = partial(_preview, model, folder / "preview.png", settled.size, scale) if preview else None
        label = f"sampling {index + 1}/{len(expanded)}"
        # One by one: what a clip is computed beside changes its last digits.
        (video,) = sample_task(
            model, settled.task, [text], settled.size, settled.inputs, keys=[(0,)], seed=one,
            negative=request.negative, **settled.chosen, on_step=on_step,
            progress=progress or partial(tqdm, desc=label, unit="step", file=sys.stderr),
        )  # fmt: skip
        name = folder / (stem or _stem(index, asked[index], one))
        written += [name.with_suffix(ending) for ending in (".mp4", ".gif", ".json")]
        _remove(written[-1])  # first: a JSON tells of the files beside it, whenever this may be ended
        media.write_mp4(written[-3], video, settled.rate, scale=scale)
        media.write_gif(written[-2], video, settled.rate, scale=scale)
        alone, pixels = replace(request, prompts=(asked[index],), seeds=(one,)), digest(video)
        write_whole(written[-1], sidecar_of(alone, settled, text, pixels))
        if expected is not None and pixels != expected["pixels"]:
            raise SoraError(
                f"{name.with_suffix('.mp4')} differs from what was made before: this machine or this version of torch "
                "computes otherwise"
            )
        videos.append(video)
    if sheet:
        written.append(folder / "contact_sheet.png")
        media.contact_sheet(written[-1], videos, asked)
    return Samples(tuple(asked), tuple(expanded), tuple(videos), settled.rate, tuple(written))


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


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as problem:
        raise unwritable(file, problem) from problem


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
