"""Torchvision's video classifiers, up to the layer before the last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.pretrained import exact_float32, is_published, read_state_dict


class TorchvisionExtractor(Extractor):
    """A classifier of Kinetics-400, without its last layer, preprocessed as torchvision does for these weights.

    Args:
        architecture: a video model of torchvision.
        title: of the distance, where the weights are the published ones.
        width: of the features.
        last: path of the module that is left out.
        min_frames, frames: as for :class:`Extractor`.
        weights: path of a state_dict; None looks where torchvision would have downloaded it.

    Raises:
        SoraError: no weights, or damaged or other ones.
    """

    def __init__(
        self,
        architecture: str,
        *,
        title: str,
        width: int,
        last: str,
        min_frames: int,
        frames: int | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.width, self.min_frames, self.frames = architecture, width, min_frames, frames
        choice = get_model_weights(architecture).DEFAULT
        part, published = f"the extractor {architecture}", choice.url.rpartition("/")[2]
        path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / published
        if not os.path.isfile(path):
            raise WeightsMissing(
                f"{part} finds no weights at {str(path)!r}; download {published} (torchvision's {choice}, SHA-256 "
                f"beginning with {published.rpartition('-')[2].removesuffix('.pth')}) to that path, or give its path "
                "as weights=..."
            )
        self.verified = is_published(path, published, part)
        self.title = title if self.verified else f"{title}, unpublished weights"
        # Nothing is drawn for parameters that the file replaces.
        with torch.device("meta"):
            self.network = get_model(architecture, weights=None)
        try:
            self.network.load_state_dict(read_state_dict(path, part), assign=True)
        except RuntimeError as problem:
            raise SoraError(
                f"{part}: the parameters in {str(path)!r} are not those of torchvision's {architecture}; give "
                f"{published} or a file saved from that architecture"
            ) from problem
        self.network.set_submodule(last, nn.Identity())
        self.preset = choice.transforms()
        freeze(self)
        self.digest = weights_sha256(self.network)

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames height width"]:
        """Torchvision's own preprocessing of these weights."""
        return self.preset(clip.permute(0, 3, 1, 2).contiguous())

    def features(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips dim"]:
        """What the last layer would have been given, averaged over what is left of space and time."""
        with exact_float32(clips.device):
            return self.network(clips)

    def describe(self) -> dict[str, Any]:
        """The model, its weights, and the preprocessing in full."""
        size = self.preset.resize_size
        target = f"short side to {size[0]}" if len(size) == 1 else f"to {size[0]}x{size[1]}"
        mean, std = (", ".join(f"{value:g}" for value in part) for part in (self.preset.mean, self.preset.std))
        return {
            "name": self.architecture,
            "weights": f"sha256:{self.digest}",
            "verified": self.verified,
            "resize": f"{self.preset.interpolation.value}, half-pixel centres, {target}, rounded to uint8",
            "antialias": False,
            "crop": "centre {}x{}".format(*self.preset.crop_size),
            "range": f"x/255, mean ({mean}), deviation ({std}), float32",
        }


@EXTRACTORS.register("r3d_18")
def r3d_18(weights: str | None = None) -> Extractor:
    """ResNet3D-18 (Tran et al. 2018): 512 features at 112x112.

    Args:
        weights: path of a state_dict of torchvision; None looks in torch's cache.
    """
    return TorchvisionExtractor("r3d_18", title="R3D-FD", width=512, last="fc", min_frames=1, weights=weights)


@EXTRACTORS.register("mvit")
def mvit(weights: str | None = None) -> Extractor:
    """MViT-v2-S (Li et al. 2022): the class token's 768 features of exactly 16 frames.

    Args:
        weights: path of a state_dict of torchvision; None looks in torch's cache.
    """
    return TorchvisionExtractor(
        "mvit_v2_s", title="MViT-FD", width=768, last="head", min_frames=16, frames=16, weights=weights
    )


@EXTRACTORS.register("s3d")
def s3d(weights: str | None = None) -> Extractor:
    """S3D (Xie et al. 2018): 1024 features.

    Args:
        weights: path of a state_dict of torchvision; None looks in torch's cache.
    """
    # Time is halved three times, the last time rounding down, and the pool spans two of what is left.
    return TorchvisionExtractor("s3d", title="S3D-FD", width=1024, last="classifier", min_frames=13, weights=weights)


@EXTRACTORS.register("swin3d")
def swin3d(weights: str | None = None) -> Extractor:
    """Video Swin-T (Liu et al. 2022): 768 features.

    Args:
        weights: path of a state_dict of torchvision; None looks in torch's cache.
    """
    return TorchvisionExtractor("swin3d_t", title="Swin3D-FD", width=768, last="head", min_frames=1, weights=weights)
