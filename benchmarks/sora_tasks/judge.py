"""Judge: what the world evaluator reads of clips, and measures that need no learned judge."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sora.testbench.adherence import FACTS, agreement, asked_codes, read_codes
from lightning_sora.testbench.evaluator.network import moments
from lightning_sora.testbench.evaluator.reading import ObjectReading, Reading, load_evaluator, prepare
from lightning_sora.testbench.evaluator.vocabulary import FPS, code

KEPT = 4096  # readings in memory
SEEN = 0.25  # of the true coverage, from which a frame shows an object
LOST = 50.0  # percent of the frame that an object is off where it is not seen, and at most
SHOWN = 1e-3  # share of the frame, from which the truth shows an object


class Judge:
    """Reads clips; what was read once is not read again."""

    def __init__(self) -> None:
        self.evaluator = load_evaluator()
        self._readings: dict[bytes, Reading] = {}
        self._places: dict[bytes, tuple[Tensor, Tensor]] = {}

    def read(self, clips: Sequence[Tensor]) -> list[Reading]:
        """What each clip shows in its first two seconds, as the evaluator reads it."""
        keys = [digest(clip) for clip in clips]
        new = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in self._readings}
        if len(self._readings) > KEPT:
            kept = {key: self._readings[key] for key in keys if key in self._readings}
            self._readings = kept
        for size in {clip.shape for clip in new.values()}:
            some = {key: clip for key, clip in new.items() if clip.shape == size}
            read = self.evaluator.read(list(some.values()), [FPS] * len(some))
            self._readings |= zip(some, read, strict=True)
        return [self._readings[key] for key in keys]

    def places(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Per frame and colour, how much of the frame shows it and where its centre is; by colour alone, not learned.

        Returns:
            shares [frames colors], and places [frames colors 2] right and down in halves of the frame.
        """
        key = digest(clip)
        if key not in self._places:
            with torch.no_grad():
                share, place, _ = moments(self.evaluator.network.colors(prepare_all(clip)[None]))
            self._places[key] = (share[0], place[0])
        return self._places[key]

    def facts(self, clips: Sequence[Tensor], told: Sequence[dict[str, object]]) -> list[dict[str, float]]:
        """Of each clip the share of each fact that is as told, in [0, 1]; without those that cannot be read."""
        scores = agreement(read_codes(self.read(clips)), asked_codes(told))
        return [{n: v for n, v in zip(FACTS, row, strict=True) if not math.isnan(v)} for row in scores.tolist()]

    def path_error(self, clip: Tensor, truth: Tensor, color: str, frames: Sequence[int]) -> float | None:
        """How far an object is in the picture from where it should be: mean over frames that should show it, in
        percent of the frame's shorter side; ``LOST`` where it is not seen. None where no frame should show it."""
        number = code("color", color)
        (share, place), (wanted, where) = self.places(clip), self.places(truth)
        errors = []
        for t in frames:
            if float(wanted[t, number]) < SHOWN:
                continue
            seen = float(share[t, number]) >= SEEN * float(wanted[t, number])
            off = 50 * float((place[t, number] - where[t, number]).norm())
            errors.append(min(off, LOST) if seen else LOST)
        return sum(errors) / len(errors) if errors else None

    def kept(self, clip: Tensor, truth: Tensor, color: str, shape: str, frames: Sequence[int]) -> float | None:
        """The share of the frames that should show an object which show it, with its shape."""
        number, thing = code("color", color), find(self.read([clip])[0], color)
        (share, _), (wanted, _) = self.places(clip), self.places(truth)
        ought = [t for t in frames if float(wanted[t, number]) >= SHOWN]
        if not ought:
            return None
        if thing is None:
            return 0.0
        shapes = thing.frame_shapes.tolist()
        right = [
            float(share[t, number]) >= SEEN * float(wanted[t, number]) and shapes[t] == code("shape", shape)
            for t in ought
        ]
        return sum(right) / len(right)


def find(reading: Reading, color: str) -> ObjectReading | None:
    """The object of a colour."""
    return next((thing for thing in reading.objects if thing.color == color), None)


def prepare_all(clip: Tensor) -> Tensor:
    """All frames of a clip as the evaluator sees them; it reads no more than two seconds at once."""
    if len(clip) < 17:  # its least is nine frames: the last is repeated, and dropped again
        padded = torch.cat([clip, clip[-1:].expand(17 - len(clip), -1, -1, -1)])
        return prepare(padded, FPS)[:, : len(clip)]
    if len(clip) > 17:
        return torch.cat([prepare_all(clip[t : t + 17]) for t in range(0, len(clip), 17)], dim=1)
    return prepare(clip, FPS)


def psnr(clip: Tensor, truth: Tensor, frames: Sequence[int] | None = None, where: Tensor | None = None) -> float:
    """Of all these frames and pixels together, in dB; 60 at most.

    Args:
        where: bool [frames height width].
    """
    error = (clip.float() - truth.float()).square().mean(-1)
    if frames is not None:
        error, where = error[list(frames)], None if where is None else where[list(frames)]
    if where is not None:
        error = error[where]
    return float(min(60.0, 10 * (255**2 / error.mean().clamp(min=1e-9)).log10()))


def steps(clip: Tensor) -> Tensor:
    """Mean absolute difference of each frame and the next, of 255."""
    return (clip[1:].float() - clip[:-1].float()).abs().mean(dim=(1, 2, 3))


def digest(clip: Tensor) -> bytes:
    """Of a clip's pixels and size."""
    return hashlib.blake2b(repr(tuple(clip.shape)).encode() + clip.contiguous().numpy().tobytes()).digest()
