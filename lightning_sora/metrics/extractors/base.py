"""Feature extractors: networks that turn a clip into the vector that a distance is measured on.

An extractor owns its preprocessing, because a change of it moves a Fréchet distance as much as a change of model:
it takes display values 0 to 255 of any size, and says in :meth:`Extractor.card` everything that it did to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Clip = Tensor
"""uint8 [frames height width 3], display values; clips of one call may differ in size, and are checked by hand."""

EXTRACTORS: Registry[Extractor] = Registry("extractor", name="extractor")
MICRO_BATCH = 8
"""Clips of one forward; each clip's features do not depend on the others."""


class Extractor(nn.Module, ABC):
    """A frozen network in float32 and evaluation mode.

    Attributes:
        title: what the distance is called in tables: "FVD" for I3D alone, else a name that cannot be taken for it.
        frames_title: what the distance between single frames is called: "FID" for Inception-v3 alone; empty for a name
            made of ``title``.
        width: of the features.
        min_frames: of a clip.
        frames: the only length that is taken, or None for any from ``min_frames`` on.
        text_per: of which outputs (see :meth:`outputs`) the rows lie in the space that its ``embed_texts`` embeds
        captions
            in; empty where it embeds none.
        by_seconds: whether it must be told the rate of clips: it picks its frames in :meth:`at_rate`, and says in
            :meth:`least_frames` how many it needs. Else frames are taken as they come, whatever their rate.
    """

    title: str
    frames_title: str = ""
    width: int
    min_frames: int = 1
    frames: int | None = None
    by_seconds: bool = False
    text_per: str = ""

    @abstractmethod
    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames height width"]:
        """One clip as the network takes it: resized, in its range, normalised."""

    @abstractmethod
    def features(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips width"]:
        """Features of prepared clips of one size."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name, weights ("sha256:..."), whether they are the published ones ("verified"), and preprocessing."""

    def at_rate(self, clip: Clip, fps: float | None) -> Clip:
        """The frames that the network looks at, of a clip of ``fps`` frames per second: here all."""
        return clip

    def least_frames(self, fps: float | None) -> int:
        """How many frames a clip of ``fps`` frames per second must have: here ``min_frames``."""
        return self.min_frames

    def outputs(self, clips: Sequence[Clip], fps: Sequence[float] | None = None, per: str = "clip") -> list[Any]:
        """What the network makes of each clip: its features, [width] (``per="clip"``), or of each frame, [frames width]
        (``per="frame"``), float64 on the CPU; a network may offer more.

        Raises:
            SoraError: what the network cannot take, or does not offer.
        """
        if per == "clip":
            return list(self(clips, fps))
        if per != "frame":
            raise SoraError(f"{self.title} has no outputs per {per!r}; ask for 'clip' or 'frame'")
        if not self.takes_per(per, 1, None):
            raise SoraError(f"{self.title} takes no single frames; give an extractor of images, such as dino or clip")
        rows = self([frame[None] for clip in clips for frame in clip])
        return list(rows.split([len(clip) for clip in clips]))

    def takes_per(self, per: str, frames: int, fps: float | None = None) -> bool:
        """Whether :meth:`outputs` takes clips of this length and rate."""
        if per == "frame":
            return not self.by_seconds and self.takes(1)
        return self.takes(frames, fps)

    def text_rows(self, output: Any) -> Float[Tensor, "rows width"]:
        """The rows of an output that compare with captions: those of ``text_per``."""
        return output

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """Captions in the space of :meth:`text_rows`.

        Raises:
            SoraError: this network embeds none.
        """
        raise SoraError(f"{self.title} embeds no captions; give a CLIP, or another extractor that does")

    def truncated(self, texts: Sequence[str]) -> int:
        """How many of the captions are longer than the network reads."""
        return 0

    def card(self) -> dict[str, Any]:
        """What a protocol card says of the extractor."""
        return {"title": self.title, "width": self.width, **self.describe()}

    def check(self, clip: Clip, fps: float | None = None) -> None:
        """Refuses what the network cannot take.

        Raises:
            SoraError: not uint8 [frames height width 3], or too few or too many frames.
        """
        if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            raise SoraError(
                f"a clip of {clip.dtype} {tuple(clip.shape)} cannot be scored: give display values 0 to 255 as uint8 "
                "[frames height width 3]"
            )
        self.check_length(len(clip), fps)

    def takes(self, frames: int, fps: float | None = None) -> bool:
        """Whether the network takes clips of this length and rate."""
        return frames >= self.least_frames(fps) and self.frames in (None, frames)

    def check_length(self, frames: int, fps: float | None = None) -> None:
        """Refuses clips of a length that the network cannot take.

        Args:
            fps: frames per second, as in :meth:`forward`.

        Raises:
            SoraError: too few or too many frames.
        """
        if not self.takes(frames, fps):
            least = self.least_frames(fps)
            wanted = f"exactly {self.frames}" if self.frames is not None else f"at least {least}"
            rate = f" at {fps:g} fps" if least != self.min_frames else ""
            raise SoraError(
                f"clips of {frames} frames{rate} are given to {self.title}, which takes {wanted}; cut them so"
            )

    @torch.no_grad()
    def forward(self, clips: Sequence[Clip], fps: Sequence[float] | None = None) -> Float[Tensor, "clips width"]:
        """Features in float64 on the CPU, in the order of the clips, which may differ in size.

        Args:
            fps: frames per second of each clip; a network that goes by seconds must be told.

        Raises:
            SoraError: a clip that the network cannot take, not one rate for each, or features that are not finite.
        """
        rates = [None] * len(clips) if fps is None else list(fps)
        if len(rates) != len(clips):
            raise SoraError(f"{len(clips)} clips have {len(rates)} frame rates; give one for each")
        self.eval()
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        rows: list[Tensor] = []
        for clip, rate in zip(clips, rates, strict=True):
            self.check(clip, rate)
        clips = [self.at_rate(clip, rate) for clip, rate in zip(clips, rates, strict=True)]
        with torch.autocast(device.type, enabled=False):
            for chosen in _runs_of_one_shape(clips):
                batch = torch.stack([self.prepare(clip.to(device)) for clip in chosen])
                rows.append(self.features(batch).double().cpu())
        if not rows:
            return torch.zeros((0, self.width), dtype=torch.float64)
        found = torch.cat(rows)
        if not found.isfinite().all():
            bad = (~found.isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise SoraError(
                f"{self.title} features of clips {bad[:8]} of this batch are not finite; the weights are damaged or "
                "the clips break the network: look at them before anything is scored"
            )
        return found


def _runs_of_one_shape(clips: Sequence[Clip]) -> list[list[Clip]]:
    runs: list[list[Clip]] = []
    for clip in clips:
        if runs and runs[-1][0].shape == clip.shape and len(runs[-1]) < MICRO_BATCH:
            runs[-1].append(clip)
        else:
            runs.append([clip])
    return runs


def freeze(module: nn.Module) -> None:
    """No gradients, evaluation mode, float32."""
    module.float().eval().requires_grad_(False)
