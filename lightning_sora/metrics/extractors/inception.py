"""The extractor of FID: Inception-v3 of the TensorFlow archive of December 2015, on single frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import inception

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.extractors.base import EXTRACTORS, Clip, Extractor, freeze
from lightning_sora.metrics.extractors.i3d import legacy_bilinear
from lightning_sora.metrics.extractors.pretrained import exact_float32, is_published, read_state_dict

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
DOWNLOAD = f"{PUBLISHED} of github.com/mseitzer/pytorch-fid, whose SHA-256 begins with 6726825d"
CLASSES = 1008
SIDE = 299


class _AverageWithoutBorder(nn.Module):
    """The pool of the archive's blocks: an average over what lies inside, where torchvision's counts zeros outside."""

    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = super()._forward(x)  # type: ignore[misc]
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return [*outputs[:-1], self.branch_pool(pooled)]


class _BlockA(_AverageWithoutBorder, inception.InceptionA):
    pass


class _BlockC(_AverageWithoutBorder, inception.InceptionC):
    pass


class _BlockE(_AverageWithoutBorder, inception.InceptionE):
    pass


class _LastBlock(inception.InceptionE):
    """The archive's last block pools by the maximum."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        *others, _ = super()._forward(x)
        return [*others, self.branch_pool(F.max_pool2d(x, kernel_size=3, stride=1, padding=1))]


def _block_e(width: int) -> nn.Module:
    return _BlockE(width) if width == 1280 else _LastBlock(width)


def inception_network() -> nn.Module:
    """The network without weights, up to the 2048 features that its classifier is given."""
    parts: list[Any] = [
        inception.BasicConv2d, _BlockA, inception.InceptionB, _BlockC, inception.InceptionD, _block_e,
        inception.InceptionAux,
    ]  # fmt: skip
    return inception.Inception3(CLASSES, aux_logits=False, inception_blocks=parts, init_weights=False)


@EXTRACTORS.register("inception")
class InceptionExtractor(Extractor):
    """Inception-v3 as FID is defined on it (Heusel et al. 2017): 2048 features of a frame, resized as in TensorFlow 1.

    Of a clip of several frames it gives their mean.

    Args:
        weights: path of the published weights as PyTorch holds them.

    Raises:
        SoraError: no weights, or damaged or other ones.
    """

    title = "Inception-FD"
    frames_title = "FID"
    width = 2048

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        part = "the extractor inception"
        path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED
        if not os.path.isfile(path):
            raise WeightsMissing(
                f"{part} finds no weights at {str(path)!r}; download {DOWNLOAD} to that path, or give its path as "
                "weights=..."
            )
        self.verified = is_published(path, PUBLISHED, part)
        if not self.verified:
            self.title, self.frames_title = (f"{name}, unpublished weights" for name in (self.title, self.frames_title))
        with torch.device("meta"):  # nothing is drawn for parameters that the file replaces
            self.network = inception_network()
        try:
            self.network.load_state_dict(read_state_dict(path, part), assign=True)
        except RuntimeError as problem:
            raise SoraError(
                f"{part}: the parameters in {str(path)!r} are not those of Inception-v3 with {CLASSES} classes; give "
                f"{DOWNLOAD}"
            ) from problem
        self.network.fc, self.network.dropout = nn.Identity(), nn.Identity()
        freeze(self)
        self.digest = weights_sha256(self.network)

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames 299 299"]:
        """Resized by TensorFlow 1's bilinear kernel, then (x - 128) / 128."""
        frames = legacy_bilinear(clip.permute(0, 3, 1, 2).float(), SIDE)
        return ((frames - 128) / 128).transpose(0, 1)

    def features(self, clips: Float[Tensor, "clips 3 frames 299 299"]) -> Float[Tensor, "clips 2048"]:
        """What the classifier would have been given, averaged over frames."""
        with exact_float32(clips.device):
            rows = self.network(rearrange(clips, "clips c frames h w -> (clips frames) c h w"))
        return reduce(rows, "(clips frames) width -> clips width", "mean", clips=len(clips))

    def describe(self) -> dict[str, Any]:
        """The weights, and the preprocessing in full."""
        return {
            "name": "inception",
            "weights": f"sha256:{self.digest}",
            "verified": self.verified,
            "resize": "bilinear, origin-aligned (TensorFlow 1), to 299x299",
            "antialias": False,
            "crop": "none, the whole frame",
            "range": "(x-128)/128, float32, not rounded",
        }
