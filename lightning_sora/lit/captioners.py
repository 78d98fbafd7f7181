"""What ``lightning-sora caption`` can ask for a caption: a trained run, a vision-language model."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import NamedTuple

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.lit.captioner import LitCaptioner
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.models.expander import whole_sentences
from lightning_sora.models.saved import is_saved
from lightning_sora.names import local_path
from lightning_sora.registry import Registry
from lightning_sora.spacetime import PatchSize, SpacetimeBatch


class Captioned(NamedTuple):
    """A caption of one clip.

    Attributes:
        text: to its last whole sentence, where it did not come to its end within the length that it had.
        confidence: the geometric mean of its tokens' probabilities, in [0, 1].
        whole: whether it came to its end.
    """

    text: str
    confidence: float
    whole: bool = True


def _captioned(text: str, log_probability: float, whole: bool) -> Captioned:
    text = " ".join(text.split())
    return Captioned(text if whole else whole_sentences(text), math.exp(log_probability), whole)


class ClipCaptioner(ABC):
    """Captions batches of pixel rows.

    Attributes:
        patch: pixels per row that it takes.
        size, fps: of the clips that it was trained on; or the most that it looks at unless told otherwise, and None.
        any_size: it takes clips at their own aspect, and frames from the first to the last of a clip.
    """

    patch: PatchSize = PatchSize(1, 8, 8)
    size: tuple[int, int, int] = (8, 336, 336)
    fps: float | None = None
    any_size = False

    @abstractmethod
    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        """A caption for each clip, which does not depend on the others of the batch."""

    @abstractmethod
    def fingerprint(self) -> str:
        """What moves the captions."""


CAPTIONERS: Registry[ClipCaptioner] = Registry("captioner", name="captioner", given=("device",), path="run")


@CAPTIONERS.register("run")
class TrainedCaptioner(ClipCaptioner):
    """A LitCaptioner's checkpoint.

    Args:
        path: of the checkpoint, or of the folder of its run.
    """

    def __init__(self, device: str = "cpu", *, path: str) -> None:
        self.module = LitCaptioner.load(checkpoint_of(path), device)
        if self.module.native_size is None:
            raise SoraError(f"{path} was never trained, so that the size of its clips is unknown; run `fit` first")
        self.patch, self.size, self.fps = self.module.patch, self.module.native_size, self.module.native_fps

    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        words = self.module.captioner.vocabulary
        written = self.module.write(batch.to(self.module.device))
        return [_captioned(words.decode(one.ids), one.log_probability, one.ended) for one in written]

    def fingerprint(self) -> str:
        return f"{weights_sha256(self.module.captioner)[:16]} {self.module.longest}"


@CAPTIONERS.register("hf")
class HuggingFaceCaptioner(ClipCaptioner):
    """A local vision-language model of transformers that is asked about some frames.

    Args:
        name: a local directory of an image-text-to-text model with its processor.
        question: what it is asked; None asks for the content, the look, the motion and the camera.
        frames: how many frames of a clip it sees, evenly spread.
        max_tokens: of a caption.
    """

    any_size = True

    def __init__(
        self, device: str = "cpu", *, name: str, question: str | None = None, frames: int = 8, max_tokens: int = 160
    ) -> None:
        from lightning_sora.models.captioner_hf import QUESTION, VisionLanguageModel

        self.model = VisionLanguageModel(name, question or QUESTION, frames, max_tokens)
        self.size = (frames, *self.size[1:])
        self.model.model.to(device)

    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        return [_captioned(*self.model.caption(video)) for video in batch.videos()]

    def fingerprint(self) -> str:
        return f"hf {self.model.digest}"


def create_captioner(text: str, device: str = "cpu") -> ClipCaptioner:
    """A captioner by a spec, such as the path of a run or "hf:DIRECTORY".

    Raises:
        SoraError: nothing there, an unknown spec, or one that does not load.
    """
    return CAPTIONERS.create(text, device)


def checkpoint_of(path: str) -> str:
    """The checkpoint of a path: the last one of a run's folder, or itself, a file or a folder that ``save`` wrote.

    Raises:
        SoraError: the folder has none.
    """
    folder = local_path(path)
    if not os.path.isdir(folder) or is_saved(folder):
        return path
    for last in (folder / "checkpoints" / "last.ckpt", folder / "last.ckpt"):
        if last.is_file():
            return str(last)
    raise WeightsMissing(
        f"{path} holds no checkpoints/last.ckpt; give a .ckpt file, or the folder of a run that `fit` wrote"
    )
