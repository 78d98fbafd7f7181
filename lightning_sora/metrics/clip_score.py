"""CLIP score of clips: does each frame fit the caption, by CLIP's judgement?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_means import EncodedClips
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.pretrained import card_name

PAPER_SCALE = 2.5
"""Of CLIPScore (Hessel et al. 2021)."""


@runtime_checkable
class FrameAndTextEncoder(Protocol):
    """Embeds frames and captions in one space: CLIPEncoder, or a stub.

    It may also have ``model_id``, ``describe()`` for cards and ``truncated(texts)``, how many captions it cuts.
    """

    def embed_images(self, frames: UInt8[Tensor, "frames height width 3"]) -> Float[Tensor, "frames dim"]:
        """One row a frame."""

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """One row a caption."""


def spaced_frames(clip: Clip, count: int | None) -> Clip:
    """``count`` frames of a clip, each the middle of an equal share of it; None takes all.

    Raises:
        SoraError: the clip has fewer.
    """
    if count is None:
        return clip
    if len(clip) < count:
        raise SoraError(f"frames={count} of a clip of {len(clip)} cannot be scored; ask for at most {len(clip)}")
    return clip[[(2 * i + 1) * len(clip) // (2 * count) for i in range(count)]]


class VideoCLIPScore(EncodedClips):
    """The mean over clips of the mean over frames of 100 cos(image, caption), in [-100, 100].

    Args:
        model: embeds frames and captions.
        frames: scored per clip, evenly spaced; None scores all.
        paper: the paper's scale, 2.5 max(cos, 0), for each frame, in [0, 2.5].

    Raises:
        SoraError: ``frames`` below 1.
    """

    higher_is_better = True
    truncated: Tensor

    def __init__(self, model: FrameAndTextEncoder, frames: int | None = None, paper: bool = False) -> None:
        super().__init__(["clip_score"], model)
        if frames is not None and frames < 1:
            raise SoraError(f"frames={frames} of the CLIP score must be at least 1, or None for all")
        self.frames, self.paper = frames, paper
        self.add_state("truncated", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, clips: Sequence[Clip], captions: Sequence[str]) -> None:
        """Adds clips with their captions.

        Raises:
            SoraError: not one caption per clip, or a clip of too few frames.
        """
        if len(clips) != len(captions):
            raise SoraError(f"{len(clips)} clips have {len(captions)} captions; give one for each")
        if not clips:
            return
        texts = self.encoder.embed_texts(list(captions)).double()
        scores = []
        for clip, text in zip(clips, texts, strict=True):
            images = self.encoder.embed_images(spaced_frames(clip, self.frames)).double()
            cosine = F.cosine_similarity(images, text.to(images.device)[None])
            scores.append((PAPER_SCALE * cosine.clamp(min=0) if self.paper else 100 * cosine).mean())
        self.add({"clip_score": torch.stack(scores)})
        if count := getattr(self.encoder, "truncated", None):
            self.truncated += count(list(captions))

    def compute(self) -> dict[str, Tensor]:
        """``clip_score``, ``clip_score_se``, and ``clip_score_truncated``, how many captions were longer than the
        model reads."""
        return {**super().compute(), "clip_score_truncated": self.truncated.clone()}

    def card(self) -> dict[str, Any]:
        """What a protocol card says of the score."""
        describe = getattr(self.encoder, "describe", dict)
        return {
            "model": card_name(getattr(self.encoder, "model_id", type(self.encoder).__name__)),
            **describe(),
            "frames": "all" if self.frames is None else self.frames,
            "scale": "2.5 max(cos, 0)" if self.paper else "100 cos",
        }


class ChanceCLIPScore(Metric):
    """The CLIP score that chance gives: the mean of 100 cos(clip, caption) over all clips and all captions of others.

    The sum over all pairs is the product of two sums, less that of the clips' own pairs: so it is exact, and no
    name, order, batch or number of ranks changes it.

    Args:
        width: of the embeddings.
    """

    is_differentiable = False
    full_state_update = False
    clips: Tensor
    captions: Tensor
    own: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, shape in (("clips", (width,)), ("captions", (width,)), ("own", ()), ("count", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, clips: Float[Tensor, "clips width"], captions: Float[Tensor, "captions width"]) -> None:
        """Adds clips with their captions, both as embeddings of unit length, row by row.

        Raises:
            SoraError: not one caption per clip, or another width.
        """
        if clips.shape != captions.shape or clips.shape[1:] != self.clips.shape:
            raise SoraError(
                f"clips {tuple(clips.shape)} and captions {tuple(captions.shape)} must be as many embeddings, of "
                f"width {len(self.clips)}; give one caption for each clip"
            )
        clips, captions = (rows.detach().double().to(self.clips.device) for rows in (clips, captions))
        self.clips += clips.sum(0)
        self.captions += captions.sum(0)
        self.own += (clips * captions).sum()
        self.count += len(clips)

    def compute(self) -> dict[str, Tensor]:
        """``clip_score_shuffled``, in [-100, 100]; nothing of fewer than two clips, which have no other's caption."""
        if self.count < 2:
            return {}
        pairs = self.count * (self.count - 1)
        return {"clip_score_shuffled": 100 * (self.clips @ self.captions - self.own) / pairs}
