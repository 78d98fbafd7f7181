"""How close clips come to the real ones of the same ids: PSNR, SSIM and LPIPS."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.base import Evaluated, Needs, PerVideoMetric, Side, register_metric
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.pretrained import is_published, read_state_dict
from lightning_sora.metrics.reconstruction import clip_quality

BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's ImageNet weights that LPIPS v0.1 was made on; the file name ends in the beginning of its SHA-256."""


class _OfPairs(PerVideoMetric):
    """Of a clip and the real one of the same id.

    Args:
        of: whose clips are compared with the real ones: "generated", or "reconstructed" by a VAE.
    """

    needs = Needs(pairs=True)

    def __init__(self, of: str = "generated") -> None:
        if of not in ("generated", "reconstructed"):
            raise SoraError(f"{self.name}: of={of!r} must be 'generated' or 'reconstructed'")
        self.of: Side = of  # type: ignore[assignment]

    def pair(self, video: Evaluated) -> tuple[Clip, Clip]:
        """The clip and the real one.

        Raises:
            SoraError: they differ in size.
        """
        assert video.real is not None
        if video.clip.shape != video.real.shape:
            raise SoraError(
                f"{self.name} compares clips pixel by pixel, and {video.id} is {tuple(video.clip.shape)} where "
                "the real "
                f"one is {tuple(video.real.shape)}; give pairs of equal sizes"
            )
        return video.clip, video.real


def _quality(video: Evaluated, pair: tuple[Clip, Clip]) -> tuple[Tensor, Tensor]:
    made, real = (rearrange(clip, "t h w c -> 1 c t h w").float() / 127.5 - 1 for clip in pair)
    return video.once("clip_quality", lambda: clip_quality(made, real))


@register_metric("psnr")
class PSNR(_OfPairs):
    """Peak signal-to-noise ratio to the real clip of the same id, in dB; equal clips count as 100.

    Args:
        of: whose clips are compared with the real ones: "generated", or "reconstructed" by a VAE.
    """

    higher_is_better = True

    def score(self, video: Evaluated) -> float:
        return float(_quality(video, self.pair(video))[0])


@register_metric("ssim")
class SSIM(_OfPairs):
    """Structural similarity to the real clip of the same id, mean over frames, in [-1, 1].

    Args:
        of: whose clips are compared with the real ones: "generated", or "reconstructed" by a VAE.
    """

    higher_is_better = True

    def score(self, video: Evaluated) -> float:
        return float(_quality(video, self.pair(video))[1])


@register_metric("lpips")
class LPIPS(_OfPairs):
    """LPIPS v0.1 (Zhang et al. 2018, arXiv:1801.03924) to the real clip of the same id; 0 is identical.

    Args:
        weights: path of the backbone's ImageNet weights, torchvision's.
        net: the backbone: "alex", "vgg" or "squeeze".
        of: whose clips are compared with the real ones: "generated", or "reconstructed" by a VAE.
    """

    higher_is_better = False

    def __init__(self, weights: str, net: str = "alex", of: str = "generated") -> None:
        super().__init__(of)
        _file_of(net)  # refuses an unknown one now
        self.net, self.weights = net, weights

    @cached_property
    def lpips(self) -> nn.Module:
        return lpips_network(self.net, self.weights)

    def load(self) -> None:
        _ = self.lpips

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self.lpips.to(device)

    @torch.no_grad()
    def score(self, video: Evaluated) -> float:
        device = next(self.lpips.parameters()).device
        frames = [rearrange(c, "t h w c -> t c h w").float().to(device) / 127.5 - 1 for c in self.pair(video)]
        return float(self.lpips(*frames).double().mean())

    def card(self) -> dict[str, Any]:
        return {**super().card(), "net": self.net, "verified": bool(self.lpips.published)}


def lpips_network(net: str, weights: str | Path) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018): torchmetrics' network and heads on a backbone of torchvision read from a file.

    Args:
        net: "alex", "vgg" or "squeeze".
        weights: the backbone's state dict.

    Raises:
        WeightsMissing: no such file.
        SoraError: unknown net, or a file of another network.
    """
    path, published = Path(weights), _file_of(net)
    if not os.path.isfile(path):
        raise WeightsMissing(
            f"LPIPS on {net} needs torchvision's ImageNet weights {published}, and there is no {path}; download "
            f"that file from the PyTorch model store, put it at {path}, or give its path"
        )
    network = _NoTrainLpips(net=net, pnet_rand=True)
    known = read_state_dict(path, "LPIPS")
    own = network.net.state_dict()
    # torchmetrics cuts torchvision's "features" into slices and keeps their numbers.
    named = {name: re.sub(r"^slices?\.?\d+\.", "features.", name) for name in own}
    wrong = [theirs for ours, theirs in named.items() if theirs not in known or known[theirs].shape != own[ours].shape]
    if wrong:
        raise SoraError(
            f"{path} is not the backbone {net}: {', '.join(wrong[:3])} is missing or of another shape; give {published}"
        )
    network.net.load_state_dict({ours: known[theirs] for ours, theirs in named.items()})
    network.published = is_published(path, published, "LPIPS")
    return network.eval().requires_grad_(False)


def _file_of(net: str) -> str:
    """The published weights of a backbone."""
    if net not in BACKBONES:
        raise SoraError(f"unknown LPIPS backbone {net!r}; choose one of: {', '.join(BACKBONES)}")
    return BACKBONES[net]
