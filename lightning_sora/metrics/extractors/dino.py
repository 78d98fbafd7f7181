"""DINO: embeddings of frames that tell instances apart, and a distance on them."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError, WeightsMissing, first_line
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    card_name,
    device_of,
    exact_float32,
    is_pinned,
    load_pretrained,
    normalised,
    resized_uint8,
    short_side,
)

BATCH = 32
"""Images of one forward."""


@EXTRACTORS.register("dino")
class DINOExtractor(Extractor):
    """A vision transformer trained by DINO: the class token, averaged over frames.

    Frames are prepared as in VBench's subject consistency (``vbench/utils.py:dino_transform``): short side to
    ``side``, bilinear without antialiasing, no crop. What is left of the last patch is not seen, there as here.

    Args:
        weights: a local directory of transformers or of timm, a name on the hub, or a name of timm (one without "/").
        side: of the resized frames' short side, a multiple of the patch.
        sha256: digest that the weights must have; without it they count as not verified.

    Raises:
        SoraError: the model cannot be loaded, has other weights than pinned, or ``side`` is no multiple of its patch.
    """

    title = "DINO-FD"

    def __init__(self, weights: str = "facebook/dino-vitb16", side: int = 224, sha256: str | None = None) -> None:
        super().__init__()
        self.model_id, self.side = weights, side
        self.network: Any
        if _is_timm(weights):
            self.network, self.library = _timm(weights), "timm"
            self.width, patch = self.network.num_features, self.network.patch_embed.patch_size[0]
        else:
            # The pooler is a head on the class token that DINO's files lack: it would be random, and so the digest.
            self.network = load_pretrained("AutoModel", weights, "the extractor dino", optional=("pooler.",))
            self.network.pooler = None
            self.library = "transformers"
            self.width, patch = self.network.config.hidden_size, self.network.config.patch_size
        self.patch = int(patch)
        if side < 1 or side % self.patch:
            raise SoraError(f"side={side} of the extractor dino must be a positive multiple of its patch, {self.patch}")
        freeze(self)
        # Older transformers interpolate positions only where asked; DINOv2 always does and cannot be asked.
        asks = "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if asks else {}
        self.digest = weights_sha256(self.network)
        self.verified = is_pinned(self.digest, sha256, "the extractor dino")

    def _images(self, frames: Clip) -> Float[Tensor, "frames 3 h w"]:
        height, width = short_side(frames.shape[1], frames.shape[2], self.side)
        values = resized_uint8(frames, (height, width), "bilinear", antialias=False)
        values = values[:, :, : height - height % self.patch, : width - width % self.patch]
        return normalised(values, IMAGENET_MEAN, IMAGENET_STD)

    def _embed(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images dim"]:
        with exact_float32(images.device):
            return torch.cat([self._class_token(part) for part in images.split(BATCH)])

    def _class_token(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images dim"]:
        if self.library == "timm":
            return self.network(images)
        return self.network(pixel_values=images, **self._options).last_hidden_state[:, 0]

    @torch.no_grad()
    def embed_images(self, frames: Clip) -> Float[Tensor, "frames dim"]:
        """Class tokens of frames of any size."""
        self.eval()
        return self._embed(self._images(frames.to(device_of(self))))

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames h w"]:
        """As DINO takes images."""
        return self._images(clip).transpose(0, 1)

    def features(self, clips: Float[Tensor, "clips 3 frames h w"]) -> Float[Tensor, "clips dim"]:
        """The mean over frames of class tokens."""
        return self._embed(clips.transpose(1, 2).flatten(0, 1)).view(len(clips), -1, self.width).mean(dim=1)

    def describe(self) -> dict[str, Any]:
        """The model, its weights, and the preprocessing in full."""
        return {
            "name": "dino",
            "model": card_name(self.model_id),
            "library": self.library,
            "weights": f"sha256:{self.digest}",
            "verified": self.verified,
            "resize": f"bilinear, half-pixel centres, short side to {self.side}, rounded to uint8",
            "antialias": False,
            "crop": f"right and bottom, to multiples of the patch of {self.patch}",
            "range": "x/255, ImageNet mean and deviation, float32",
            "pooling": "class token, mean over frames",
        }


def _is_timm(name: str) -> bool:
    config = Path(name) / "config.json"
    if os.path.isfile(config):
        return "model_type" not in json.loads(config.read_text())
    return not os.path.exists(name) and ("/" not in name or name.startswith("timm/"))


def _timm(name: str) -> nn.Module:
    import timm

    local = os.path.isdir(name)
    source = f"local-dir:{name}" if local else f"hf-hub:{name}" if "/" in name else name
    try:
        return timm.create_model(source, pretrained=True, num_classes=0, global_pool="token", dynamic_img_size=True)
    except Exception as problem:
        # timm raises whatever the hub, the file or the architecture does; all of it is about the name given.
        reason = first_line(problem)
        raise WeightsMissing(
            f"the extractor dino cannot load {name!r} with timm ({reason}); give a local directory that holds a vision "
            "transformer of timm or transformers, or a name that this machine can reach"
        ) from problem
