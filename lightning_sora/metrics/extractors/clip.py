"""CLIP: embeddings of frames and captions in one space, and a distance on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.pretrained import (
    card_name,
    device_of,
    exact_float32,
    is_pinned,
    load_pretrained,
    load_tokenizer,
    normalised,
    resized_uint8,
    short_side,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 64
"""Images of one forward."""


class CLIPEncoder(nn.Module):
    """A frozen CLIP of transformers, for the CLIP score and the consistency of frames.

    Args:
        weights: a local directory of a CLIPModel and, for captions, its tokenizer; or a name on the hub.
        antialias: of the bicubic resizing; OpenAI's CLIP, which resizes with PIL, has it, VBench has not.
        sha256: digest that the weights must have; without it they count as not verified.
        captions: whether captions will be embedded: the tokenizer is loaded then.

    Attributes:
        model_id: ``weights`` as given.
        width: of the embeddings.

    Raises:
        SoraError: the model cannot be loaded, or has other weights than pinned.
    """

    def __init__(
        self,
        weights: str = "openai/clip-vit-base-patch32",
        antialias: bool = True,
        sha256: str | None = None,
        captions: bool = True,
    ) -> None:
        super().__init__()
        self.model_id, self.antialias = weights, antialias
        self.network = load_pretrained("CLIPModel", weights, "CLIP")
        self.tokenizer = load_tokenizer(weights, "CLIP") if captions else None
        self.width = int(self.network.config.projection_dim)
        self.side = int(self.network.config.vision_config.image_size)
        self.max_tokens = int(self.network.config.text_config.max_position_embeddings)
        freeze(self)
        self.digest = weights_sha256(self.network)
        self.verified = is_pinned(self.digest, sha256, "CLIP")

    def prepare(self, frames: Clip) -> Float[Tensor, "frames 3 side side"]:
        """The short side to the model's size, the middle of it, then CLIP's mean and deviation."""
        height, width = short_side(frames.shape[1], frames.shape[2], self.side)
        values = resized_uint8(frames, (height, width), "bicubic", self.antialias)
        top, left = round((height - self.side) / 2), round((width - self.side) / 2)
        return normalised(values[:, :, top : top + self.side, left : left + self.side], MEAN, STD)

    def embed(self, images: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images dim"]:
        """Embeddings of prepared images, not normalised."""
        with exact_float32(images.device):
            rows = [_tensor(self.network.get_image_features(pixel_values=part)) for part in images.split(BATCH)]
        return torch.cat(rows)

    @torch.no_grad()
    def embed_images(self, frames: Clip) -> Float[Tensor, "frames dim"]:
        """Embeddings of frames of any size, not normalised."""
        self.eval()
        return self.embed(self.prepare(frames.to(device_of(self))))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Embeddings of captions, not normalised; captions beyond ``max_tokens`` (CLIP: 77) are cut.

        Raises:
            SoraError: the encoder was made without captions.
        """
        self.eval()
        device = device_of(self)
        tokens = self._tokenizer()(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        with exact_float32(device):
            return _tensor(
                self.network.get_text_features(
                    input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
                )
            )

    def truncated(self, texts: Sequence[str]) -> int:
        """How many of the captions are longer than the model reads."""
        return sum(len(row) > self.max_tokens for row in self._tokenizer()(list(texts))["input_ids"])

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise SoraError("this CLIP was loaded without its tokenizer; make it with captions=True to embed captions")
        return self.tokenizer

    def describe(self) -> dict[str, Any]:
        """The model, its weights, and the preprocessing in full."""
        return {
            "model": card_name(self.model_id),
            "weights": f"sha256:{self.digest}",
            "verified": self.verified,
            "resize": f"bicubic, half-pixel centres, short side to {self.side}, rounded to uint8",
            "antialias": self.antialias,
            "crop": f"centre {self.side}x{self.side}",
            "range": "x/255, CLIP mean and deviation, float32",
        }


@EXTRACTORS.register("clip")
class CLIPExtractor(Extractor):
    """CLIP's image embeddings, averaged over frames: what is shown, blind to the order of frames.

    Args:
        weights: a local directory of a CLIPModel and, for captions, its tokenizer; or a name on the hub.
        antialias: of the bicubic resizing; OpenAI's CLIP, which resizes with PIL, has it, VBench has not.
        sha256: digest that the weights must have; without it they count as not verified.
        captions: whether captions will be embedded too: the tokenizer is loaded then.

    Raises:
        SoraError: as for :class:`CLIPEncoder`.
    """

    title = "CLIP-FD"
    text_per = "frame"

    def __init__(
        self,
        weights: str = "openai/clip-vit-base-patch32",
        antialias: bool = True,
        sha256: str | None = None,
        captions: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = CLIPEncoder(weights, antialias, sha256, captions)
        self.width = self.encoder.width
        freeze(self)

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames side side"]:
        """As CLIP takes images."""
        return self.encoder.prepare(clip).transpose(0, 1)

    def features(self, clips: Float[Tensor, "clips 3 frames side side"]) -> Float[Tensor, "clips dim"]:
        """The mean over frames of embeddings, which are not normalised."""
        rows = self.encoder.embed(clips.transpose(1, 2).flatten(0, 1))
        return rows.view(len(clips), -1, self.width).mean(dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Embeddings of captions, not normalised; see :meth:`CLIPEncoder.embed_texts`."""
        return self.encoder.embed_texts(texts)

    def truncated(self, texts: Sequence[str]) -> int:
        return self.encoder.truncated(texts)

    def describe(self) -> dict[str, Any]:
        """The encoder's, and how frames are pooled."""
        return {"name": "clip", **self.encoder.describe(), "pooling": "mean over frames, not normalised"}


def _tensor(found: Any) -> Tensor:
    # transformers 5 gives an output object, whose pooler_output is the projected embedding; earlier ones a tensor.
    return found if isinstance(found, Tensor) else found.pooler_output
