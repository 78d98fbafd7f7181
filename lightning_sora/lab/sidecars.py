"""What a request comes to by a model, as the JSON beside a video says; and whether a video that is there is that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.given_files import read_inputs, task_for
from lightning_sora.redaction import redacted
from lightning_sora.sealing import is_whole
from lightning_sora.texts import parsed_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_sora.lab.models import VideoModel
    from lightning_sora.lab.request import Request
    from lightning_sora.spacetime import VideoSize

#: Options of a request that a model has values of its own for.
CHOSEN = ("sampler", "steps", "guidance", "rope", "shift_by_size")
#: What of a sidecar only the sampling tells.
MADE = ("pixels", "expanded")
ENDINGS = (".mp4", ".gif")


@dataclass(frozen=True)
class Settled:
    """A request as a model takes it.

    Attributes:
        inputs: read, by the names that tasks know.
        chosen: options that the request sets.
        known: the digests of what the pixels are made from.
        told: all that the sidecar says beside the request and what is made.
    """

    size: VideoSize
    rate: float
    task: str
    inputs: Mapping[str, Any] = field(repr=False)
    chosen: Mapping[str, Any]
    known: Mapping[str, Any]
    told: Mapping[str, Any]


def settle(request: Request, model: VideoModel, expander: str | None, fingerprint: str | None = None) -> Settled:
    """Reads what a request gives, and takes from the model what it leaves open.

    Args:
        expander: the digest of what makes its prompts rich.
        fingerprint: of the model; None to compute it.

    Raises:
        SoraError: an input that cannot be read.
    """
    from lightning_sora.models.configs import plain
    from lightning_sora.spacetime import VideoSize
    from lightning_sora.tasks import TASKS

    own = model.model
    native = own.seen_sizes.native or (1, own.patch.height, own.patch.width)
    wanted = (request.frames, request.height, request.width)
    size = VideoSize(*(trained if one is None else one for one, trained in zip(wanted, native, strict=True)))
    rate = own.seen_sizes.fps if request.fps is None else request.fps
    task = request.task or task_for(request.inputs)
    inputs = read_inputs(TASKS.create(task), request.inputs, size, rate)
    known = {
        "model": own.fingerprint() if fingerprint is None else fingerprint,
        "expander": expander,
        "inputs": {name: digest(value) for name, value in inputs.items() if not isinstance(value, int | float)},
    }
    chosen = {name: getattr(request, name) for name in CHOSEN if getattr(request, name) is not None}
    told = {
        **known, **{name: plain(getattr(own.sampling, name)) for name in CHOSEN}, **chosen, "shift": own.sampling.shift,
        "size": list(size), "fps": rate, "task": task, "run_id": model.run_id, "device": str(model.device),
    }  # fmt: skip
    return Settled(size, rate, task, inputs, chosen, known, told)


def sidecar_of(request: Request, settled: Settled, text: str, pixels: str) -> bytes:
    """The JSON beside the video of a request of one prompt.

    Args:
        text: what was sampled from.
        pixels: the digest of what was made.
    """
    value = {"request": asdict(request), "expanded": text, "pixels": pixels, **settled.told}
    return json.dumps(redacted(value), indent=1, ensure_ascii=False).encode()


def changed_since(sidecar: Path, request: Request, settled: Settled) -> list[str] | None:
    """What of a video that is there is not as a request would have it now, in words.

    A device of the same kind makes the same video; what makes prompts rich does so by its digest and the seed.

    Args:
        request: of one prompt.

    Returns:
        nothing where the video is whole and that of the request; None where no video was finished.
    """
    if not os.path.lexists(sidecar):  # it is written last
        return None
    try:
        there = parsed_json(read_text(sidecar), sidecar)
    except SoraError:
        there = None
    if not isinstance(there, dict) or not isinstance(there.get("request"), dict):
        return ["a JSON that cannot be read"]
    wanted = json.loads(sidecar_of(request, settled, "", ""))
    changed = [f"another {name}" for name in _differing(_flat(there), _flat(wanted))]
    for file in (sidecar.with_suffix(ending) for ending in ENDINGS):
        kind = file.suffix[1:].upper()
        try:
            if not (whole := is_whole(file.read_bytes())):
                changed.append(f"a {kind} that is cut short or has no digest" if whole is None else f"a damaged {kind}")
        except OSError:
            changed.append(f"no {kind}")
    return changed


def digest(video: Tensor) -> str:
    """SHA-256 of the shape and the pixels of a video."""
    return hashlib.sha256(repr(tuple(video.shape)).encode() + video.contiguous().numpy().tobytes()).hexdigest()


def _flat(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """By name, what the request says and what it came to."""
    told = {name: [value] for name, value in sidecar.items() if name not in ("request", *MADE)}
    told["device"] = [str(sidecar.get("device")).split(":")[0]]
    for name, value in sidecar["request"].items():
        told.setdefault(name, []).append(value)
    return told


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = [*other, *(name for name in one if name not in other)]
    return [name for name in names if one.get(name) != other.get(name)]
