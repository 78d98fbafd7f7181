"""What ``lightning-sora caption`` can ask for a caption: a trained run, a vision-language model, the world itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.lit.captioner import LitCaptioner
from lightning_sora.metrics.caption_facts import tell
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.registry import Registry, Spec
from lightning_sora.spacetime import PatchSize, SpacetimeBatch

#: (caption, confidence in [0, 1]): the geometric mean of its tokens' probabilities.
Captioned = tuple[str, float]


class ClipCaptioner(ABC):
    """Captions batches of pixel rows.

    Attributes:
        patch: pixels per row that it takes.
        size, fps: of the clips that it was trained on; None for any.
    """

    patch: PatchSize = PatchSize(1, 8, 8)
    size: tuple[int, int, int] | None = None
    fps: float | None = None

    @abstractmethod
    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        """A caption for each clip, which does not depend on the others of the batch."""

    @abstractmethod
    def fingerprint(self) -> str:
        """What moves the captions."""


CAPTIONERS: Registry[ClipCaptioner] = Registry("captioner")


@CAPTIONERS.register("run")
class TrainedCaptioner(ClipCaptioner):
    """A LitCaptioner's checkpoint.

    Args:
        path: of the checkpoint, or of the folder of its run.
    """

    def __init__(self, device: str = "cpu", *, path: str) -> None:
        self.module = LitCaptioner.load(checkpoint_of(path), device)
        self.patch, self.size, self.fps = self.module.patch, self.module.native_size, self.module.native_fps

    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        words = self.module.captioner.vocabulary
        written = self.module.write(batch.to(self.module.device))
        return [(" ".join(words.decode(one.ids).split()), math.exp(one.log_probability)) for one in written]

    def fingerprint(self) -> str:
        return f"{weights_sha256(self.module.captioner)[:16]} {self.module.longest}"


@CAPTIONERS.register("hf")
class HuggingFaceCaptioner(ClipCaptioner):
    """A local vision-language model of transformers; see :class:`VisionLanguageModel`."""

    def __init__(self, device: str = "cpu", *, name: str, question: str | None = None, frames: int = 8) -> None:
        from lightning_sora.models.captioner_hf import QUESTION, VisionLanguageModel

        self.model = VisionLanguageModel(name, question or QUESTION, frames)
        self.model.model.to(device)

    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        found = (self.model.caption(video) for video in batch.videos())
        return [(text, math.exp(score)) for text, score in found]

    def fingerprint(self) -> str:
        return f"hf {self.model.fingerprint()}"


@CAPTIONERS.register("facts")
class Oracle(ClipCaptioner):
    """Tells the world's own facts: the best that a captioner could do.

    Args:
        style: of the world's captions.
    """

    def __init__(self, device: str = "cpu", *, style: str = "dense") -> None:
        self.style = style

    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        if batch.facts is None:
            raise SoraError("the captioner 'facts' tells what the source knows, and this source knows no facts")
        return [(tell(facts, self.style), 1.0) for facts in batch.facts]

    def fingerprint(self) -> str:
        return f"facts {self.style}"


def create_captioner(text: str, device: str = "cpu") -> ClipCaptioner:
    """A captioner by the path of a checkpoint or run, by "hf:DIRECTORY", or by a spec.

    Raises:
        SoraError: nothing there, an unknown spec, or one that does not load.
    """
    if text.startswith("hf:"):
        return CAPTIONERS.create(Spec("hf", {"name": text.removeprefix("hf:")}), device)
    if "(" not in text and (text.endswith(".ckpt") or "/" in text or Path(text).exists()):
        return CAPTIONERS.create(Spec("run", {"path": text}), device)
    return CAPTIONERS.create(text, device)


def checkpoint_of(path: str) -> str:
    """The checkpoint of a path: itself, or the last one of a run's folder.

    Raises:
        SoraError: the folder has none.
    """
    if not Path(path).is_dir():
        return path
    for last in (Path(path) / "checkpoints" / "last.ckpt", Path(path) / "last.ckpt"):
        if last.is_file():
            return str(last)
    raise SoraError(
        f"{path} holds no checkpoints/last.ckpt; give a .ckpt file, or the folder of a run that `fit` wrote"
    )
