"""Protocol cards: everything but the model that moves a score, as one hashed record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_sora.errors import SoraError

OFFSETS = ("first", "center")


@dataclass(frozen=True)
class ProtocolCard:
    """What a score was measured by.

    Attributes:
        fields: names to plain values: extractor, weights, preprocessing, clip length, rate, sampler, counts ...
    """

    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        """12 hexadecimal digits that stand for all fields: equal ids, comparable scores."""
        text = json.dumps(self.fields, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, other: ProtocolCard) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, nested ones by dotted names, each with both values."""
        mine, theirs = _flat(self.fields), _flat(other.fields)
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        }

    def check_same(self, other: ProtocolCard, what: str) -> None:
        """Refuses to put scores of two cards side by side.

        Raises:
            SoraError: the cards differ; it names the fields.
        """
        found = self.differences(other)
        if found:
            told = "; ".join(f"{name}: {ours!r} against {theirs!r}" for name, (ours, theirs) in found.items())
            raise SoraError(
                f"{what} were measured by different protocols ({self.id} and {other.id}) and cannot be compared: "
                f"{told}; measure both by one"
            )


@dataclass(frozen=True)
class ClipProtocol:
    """How one clip is cut from a video.

    Attributes:
        frames: of the clip.
        fps: frames per second that it is resampled to, by timestamps; None takes the frames as they are recorded.
        offset: where it begins: with the video ("first"), or so that its middle is the video's ("center").
        recorded: the rate of frames that are taken as they are recorded, once it is known; see :func:`nominal_rate`.
    """

    frames: int = 16
    fps: float | None = None
    offset: str = "first"
    recorded: float | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.fps is not None and self.fps <= 0):
            raise SoraError(f"clips of {self.frames} frames at {self.fps} fps: both must be positive")
        if self.offset not in OFFSETS:
            raise SoraError(f"unknown offset {self.offset!r}; choose one of: {', '.join(OFFSETS)}")

    @property
    def rate(self) -> float | None:
        """Frames per second of the clips; None where it is not known."""
        return self.fps or self.recorded

    def as_fields(self) -> dict[str, Any]:
        """For a card."""
        return {"frames": self.frames, "fps": self.rate, "resampled": self.fps is not None, "offset": self.offset}


def nominal_rate(fps: float) -> float:
    """The rate that a recording is meant to have: the whole number within 1 % (30 for 29.97), or itself."""
    return float(round(fps)) if abs(fps - round(fps)) <= 0.01 * fps else round(fps, 2)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found
