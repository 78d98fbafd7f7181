"""CLIP-score of videos: does each frame fit the caption, by CLIP's judgement?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric, SumMetric

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import Evaluated, Needs, PerVideoMetric, Score, Side, register_metric
from lightning_sora.metrics.extractors.base import EXTRACTORS, Extractor
from lightning_sora.specs import SPEC, Spec, prefixed

PAPER_SCALE = 2.5
"""Of CLIPScore (Hessel et al. 2021)."""


def text_extractor(model: str) -> str:
    """The spec of the extractor that a model of captions names: a part's spec, or the name or directory of a CLIP."""
    parted = prefixed(model)
    bare = parted[0] if parted is not None else model.split("(")[0].strip()
    if os.path.isdir(model) or (bare not in EXTRACTORS.list() and not model.startswith(SPEC)):
        return str(Spec("clip", {"weights": model, "captions": True}))
    asked = EXTRACTORS.resolve(model)
    return "clip(captions=True)" if asked == Spec("clip") else model


@register_metric("clip_score")
class CLIPScore(PerVideoMetric):
    """The mean over clips of the mean over frames of 100 cos(image, caption), in [-100, 100].

    "shuffled" is the same over all captions of other clips: what chance gives; "truncated" is how many captions are
    longer than the model reads.

    Args:
        model: name or directory of a CLIP of transformers; or spec of an extractor that embeds captions.
        frames: scored per clip, evenly spaced; None scores all.
        paper: the paper's scale, 2.5 max(cos, 0), for each frame, in [0, 2.5] (Hessel et al. 2021, arXiv:2104.08718).

    Raises:
        SoraError: no model, ``frames`` below 1, or a model that embeds no captions, or no single frames where some
            are asked for.
    """

    higher_is_better = True
    automatic = "clip_score"
    chance: ChanceCLIPScore | None = None

    def __init__(self, model: str | None = None, frames: int | None = None, paper: bool = False) -> None:
        if model is None:
            raise SoraError(
                "clip_score needs a model: write clip_score(model='PATH'), the name or the directory of a CLIP of "
                "transformers, or give one for all metrics (--clip-model; evaluation.clip_model in a recipe)"
            )
        if frames is not None and frames < 1:
            raise SoraError(f"frames={frames} of the CLIP score must be at least 1, or None for all")
        self.frames, self.paper = frames, paper
        self.needs = Needs(captions=True, features=text_extractor(model), min_frames=frames or 1, frames=frames)

    def bind(self, network: Extractor) -> None:
        if not network.text_per:
            raise SoraError(f"{network.title} embeds no captions; give clip_score a CLIP, or an extractor that does")
        if self.frames is not None and network.text_per != "frame":
            raise SoraError(
                f"{network.title} embeds clips as wholes, of which frames={self.frames} chooses none; drop it"
            )
        super().bind(network)
        self.needs = replace(self.needs, per=network.text_per)
        self.chance, self.truncated = ChanceCLIPScore(network.width), SumMetric()

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        found = super().add(videos, side)
        assert self.network is not None
        assert self.chance is not None
        captions = [str(video.caption) for video in videos]
        if captions:
            self.chance.update(
                torch.stack([F.normalize(self._rows_of(video), dim=1).mean(0) for video in videos]),
                torch.stack([F.normalize(self._text(video), dim=0) for video in videos]),
            )
            self.truncated.update(self.network.truncated(captions))
        return found

    def _rows_of(self, video: Evaluated) -> Float[Tensor, "rows width"]:
        assert self.network is not None
        return self.network.text_rows(video.features).double().cpu()

    def _text(self, video: Evaluated) -> Float[Tensor, " width"]:
        network = self.network
        assert network is not None
        return video.once(
            f"text {self.needs.features}", lambda: network.embed_texts([str(video.caption)])[0].double().cpu()
        )

    def score(self, video: Evaluated) -> float:
        cosine = F.cosine_similarity(self._rows_of(video), self._text(video)[None])
        return float((PAPER_SCALE * cosine.clamp(min=0) if self.paper else 100 * cosine).mean())

    def compute(self) -> Score | None:
        found = super().compute()
        if found is None or self.chance is None:
            return None
        beside = {"truncated": float(self.truncated.compute())}
        shuffled = self.chance.compute()
        if shuffled and not self.paper:  # which frames fall below zero, sums do not tell
            beside["shuffled"] = float(shuffled["clip_score_shuffled"])
        return replace(found, figures=beside)

    def card(self) -> dict[str, Any]:
        return {
            "definition": "mean over clips of the mean over frames of 100 cos(image, caption)",
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
