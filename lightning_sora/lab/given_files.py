"""What a task is given, from files: stills and clips brought to the size and the rate of what is sampled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_sora.spacetime import VideoSize
    from lightning_sora.tasks import Task

#: Tasks by what they are given: the first of which all is there.
BY_INPUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("first", "last"), "first_and_last"),
    (("image",), "image_to_video"),
    (("video", "second"), "connect"),
    (("video", "mask"), "inpaint"),
    (("video", "strength"), "edit"),
    (("video", "times"), "interpolate"),
    (("video", "extra"), "extend_forward"),
    (("extra",), "windows"),
)


def task_for(inputs: Mapping[str, Any]) -> str:
    """The task that inputs alone tell.

    Raises:
        SoraError: they tell none.
    """
    there = {name for name, value in inputs.items() if value is not None}
    if not there:
        return "text_to_video"
    for names, task in BY_INPUTS:
        if set(names) <= there:
            return task
    told = ", ".join(f"{' and '.join(names)}: {task}" for names, task in BY_INPUTS)
    raise SoraError(f"{' and '.join(sorted(there))} alone tells no task; give --task NAME, or more inputs ({told})")


def task_of_flags(
    given: Mapping[str, Any], *, connect: Sequence[str] | None, loop: bool, backward: bool, task: str | None
) -> tuple[str | None, dict[str, Any]]:
    """The task that flags name, None if their inputs tell it, and those inputs.

    Raises:
        SoraError: flags that do not go together.
    """
    inputs = {"extra" if name == "extend" else name: value for name, value in given.items()}
    if connect is not None:
        if "video" in inputs:
            raise SoraError("--connect and --video are both given; --connect names the clips by itself")
        inputs |= zip(("video", "second"), connect, strict=True)
    if backward and not {"extra", "video"} <= set(inputs):
        raise SoraError("--backward goes with --video and --extend")
    chosen = [name for name, there in (("loop", loop), ("extend_backward", backward), (task, task)) if there]
    if len(chosen) > 1:
        raise SoraError(f"one task at a time: these flags name {' and '.join(map(str, chosen))}")
    return next(iter(chosen), None), inputs


def check_files(inputs: Mapping[str, Any]) -> None:
    """Raises SoraError for a file that is not there or cannot be read, before a model is loaded."""
    from lightning_sora.data.decode import probe

    for name, value in inputs.items():
        if isinstance(value, str | Path):
            path = Path(value).expanduser()
            if not os.path.isfile(path):
                raise SoraError(f"no {name} at {path}; give the path of an image or a video")
            probe(path)


def read_inputs(task: Task, inputs: Mapping[str, Any], size: VideoSize, fps: float) -> dict[str, Any]:
    """Reads files, and passes on what is none.

    Pictures are scaled so that they cover the size, and cut in the middle. What is outpainted is scaled so that it fits
    instead, if it is larger, and laid in the middle of the size; its mask is what it leaves.

    Args:
        inputs: paths, tensors or numbers, by the names that tasks know.
        fps: at which clips are read.

    Raises:
        SoraError: a file that cannot be read, or one in place of a number.
    """
    from lightning_sora.tasks.base import CLIPS, STILLS
    from lightning_sora.tasks.paint import Outpaint

    read: dict[str, Any] = {}
    for name, value in inputs.items():
        if value is None or not isinstance(value, str | Path):
            read |= {} if value is None else {name: value}
        elif name == "video" and isinstance(task, Outpaint):
            read |= _on_canvas(Path(value).expanduser(), size, fps)
        elif name in STILLS:
            read[name] = _read(Path(value).expanduser(), 1, size, fps)
        elif name in CLIPS:
            whole = "extra" in task.takes or "second" in task.needs or "times" in task.needs
            read[name] = _read(Path(value).expanduser(), None if whole else size.frames, size, fps)
        else:
            raise SoraError(f"{name}={value!r} must be a number")
    return read


def check_rates(inputs: Mapping[str, Any], fps: float | None) -> None:
    """Raises SoraError where two clips are to be connected that have two rates, and none is asked for."""
    from lightning_sora.data.decode import is_image, probe

    files = [
        Path(inputs[name]).expanduser() for name in ("video", "second") if isinstance(inputs.get(name), str | Path)
    ]
    rates = {str(file): probe(file).fps for file in files if not is_image(file)}
    if fps is None and len(files) == 2 and len({round(rate, 3) for rate in rates.values()}) > 1:
        told = ", ".join(f"{file}: {rate:g}" for file, rate in rates.items())
        raise SoraError(f"the clips have two rates ({told} frames per second); say by --fps at which both are taken")


def _read(path: Path, frames: int | None, size: VideoSize, fps: float) -> Tensor:
    from lightning_sora.data.decode import is_image, probe, read_clip
    from lightning_sora.data.window import covering, cut

    info, still = probe(path), is_image(path)
    there = 1 if still else max(1, int((info.frames - 0.5) / info.fps * fps) + 1)
    wanted = min(there, frames or there)
    scaled = read_clip(path, 0.0, wanted, None if still else fps, size=covering(info.height, info.width, size))
    return cut(scaled, size, None)


def _on_canvas(path: Path, size: VideoSize, fps: float) -> dict[str, Tensor]:
    import torch

    from lightning_sora.data.decode import probe, read_clip

    info = probe(path)
    scale = min(1.0, size.height / info.height, size.width / info.width)
    height, width = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    shown = read_clip(path, 0.0, size.frames, fps, size=(height, width))
    if (height, width) == (size.height, size.width):
        raise SoraError(
            f"{path} fills {size.height}x{size.width} pixels, so that nothing is left to paint around it; ask for a "
            "greater --height or --width"
        )
    top, left = (size.height - height) // 2, (size.width - width) // 2
    video, mask = torch.zeros((*size, 3), dtype=torch.uint8), torch.full((1, *size[1:], 3), 255, dtype=torch.uint8)
    video[:, top : top + height, left : left + width] = shown
    mask[:, top : top + height, left : left + width] = 0
    return {"video": video, "mask": mask}
