"""Learned scores of frames that torchmetrics has: LPIPS and FID, with weights by path and clips as the unit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_means import ClipMeans
from lightning_sora.metrics.clip_score import spaced_frames
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.pretrained import is_published, read_state_dict

BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's ImageNet weights that LPIPS v0.1 was made on; the file name ends in the beginning of its SHA-256."""


def lpips_network(net: str, weights: str | Path) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018): torchmetrics' network and heads on a backbone of torchvision read from a file.

    Args:
        net: "alex", "vgg" or "squeeze".
        weights: the backbone's state dict.

    Raises:
        SoraError: unknown net, or no such file, or one of another network.
    """
    if net not in BACKBONES:
        raise SoraError(f"unknown LPIPS backbone {net!r}; choose one of: {', '.join(BACKBONES)}")
    path = Path(weights)
    if not os.path.isfile(path):
        raise SoraError(
            f"LPIPS on {net} needs torchvision's ImageNet weights {BACKBONES[net]}, and there is no {path}; download "
            f"that file from the PyTorch model store, put it at {path}, or give its path"
        )
    network = _NoTrainLpips(net=net, pnet_rand=True)
    known = read_state_dict(path, "LPIPS")
    own = network.net.state_dict()
    # torchmetrics cuts torchvision's "features" into slices and keeps their numbers.
    named = {name: f"features.{name.split('.', 1)[1]}" for name in own}
    wrong = [theirs for ours, theirs in named.items() if theirs not in known or known[theirs].shape != own[ours].shape]
    if wrong:
        raise SoraError(
            f"{path} is not the backbone {net}: {', '.join(wrong[:3])} is missing or of another shape; give "
            f"{BACKBONES[net]}"
        )
    network.net.load_state_dict({ours: known[theirs] for ours, theirs in named.items()})
    network.published = is_published(path, BACKBONES[net], "LPIPS")
    return network.eval().requires_grad_(False)


class LPIPS(ClipMeans):
    """The mean over clips of the mean over frames of LPIPS between two versions of a clip; 0 is identical.

    Args:
        network: of :func:`lpips_network`.
    """

    higher_is_better = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__(["lpips"])
        self._hidden = (network,)

    @torch.no_grad()
    def update(self, clips: Sequence[Clip], others: Sequence[Clip]) -> None:
        """Adds pairs of clips of equal size, uint8.

        Raises:
            SoraError: not as many of one as of the other, or sizes that differ.
        """
        if [c.shape for c in clips] != [o.shape for o in others]:
            raise SoraError(f"{len(clips)} and {len(others)} clips are no pairs of equal sizes; give one for each")
        (network,) = self._hidden
        scores: list[Float[Tensor, ""]] = []
        for clip, other in zip(clips, others, strict=True):
            frames = [rearrange(c, "t h w c -> t c h w").float().to(self.device) / 127.5 - 1 for c in (clip, other)]
            scores.append(network.to(self.device)(*frames).double().mean())
        if scores:
            self.add({"lpips": torch.stack(scores)})


class FrameFID(FrechetInceptionDistance):
    """torchmetrics' FID over the same number of evenly spaced frames of every clip.

    Frames of a clip depend on each other: give the numbers of clips and of frames beside the value. A rank without
    clips is counted as such.

    Args:
        feature: of torch-fidelity's InceptionV3, or a module that takes uint8 [frames 3 height width].
        frames: of each clip.
        weights: path of the InceptionV3 weights, where they are not to be downloaded.

    Raises:
        SoraError: torch-fidelity is not installed.
    """

    def __init__(self, feature: int | nn.Module = 2048, frames: int = 4, weights: str | None = None) -> None:
        try:
            super().__init__(feature=feature, feature_extractor_weights_path=weights)
        except ModuleNotFoundError as problem:
            raise SoraError(
                "FID's InceptionV3 is part of torch-fidelity, which is not installed: pip install torch-fidelity, or "
                "give another network as feature"
            ) from problem
        self.frames = frames
        self.orig_dtype = torch.float32  # torchmetrics sets it at the first update, which a rank may never have

    def update(self, imgs: Sequence[Clip], real: bool) -> None:
        """Adds clips, uint8, of any sizes.

        Raises:
            SoraError: a clip of fewer frames.
        """
        for clip in imgs:
            super().update(rearrange(spaced_frames(clip, self.frames), "t h w c -> t c h w").to(self.device), real)
