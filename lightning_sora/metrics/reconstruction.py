"""How well a VAE gives back its input: PSNR and SSIM, averaged over clips."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

PSNR_CAP = 100.0
"""Identical clips have infinite PSNR; they count as this many dB."""


def clip_quality(
    reconstruction: Float[Tensor, "clips 3 frames height width"], video: Float[Tensor, "clips 3 frames height width"]
) -> tuple[Float[Tensor, " clips"], Float[Tensor, " clips"]]:
    """PSNR in dB and SSIM of each clip, in float64; values in [-1, 1], beyond which they are clamped."""
    made = ((reconstruction.float() + 1) / 2).clamp(0, 1)
    real = ((video.float() + 1) / 2).clamp(0, 1)
    psnr, ssim = [], []
    for a, b in zip(made.transpose(1, 2), real.transpose(1, 2), strict=True):
        psnr.append(peak_signal_noise_ratio(a, b, data_range=1.0).clamp(max=PSNR_CAP).double())
        value = structural_similarity_index_measure(a, b, data_range=1.0)
        assert isinstance(value, Tensor)  # it is a pair only where more is asked for
        ssim.append(value.double())
    return torch.stack(psnr), torch.stack(ssim)


class ReconstructionQuality(Metric):
    """Mean over clips of each clip's PSNR (dB) and SSIM (mean over its frames), on pixels in [0, 1].

    The mean of per-clip values is not the value of the pooled error: clips weigh the same.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    psnr: Tensor
    ssim: Tensor
    clips: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("psnr", "ssim", "clips"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        reconstruction: Float[Tensor, "clips 3 frames height width"],
        video: Float[Tensor, "clips 3 frames height width"],
    ) -> None:
        """Adds clips with values in [-1, 1]; values beyond are clamped."""
        self.add(*clip_quality(reconstruction, video))

    def add(self, psnr: Float[Tensor, " clips"], ssim: Float[Tensor, " clips"]) -> None:
        """Adds clips whose quality is known."""
        self.psnr += psnr.sum()
        self.ssim += ssim.sum()
        self.clips += len(psnr)
        # For torchmetrics, which sees calls of update alone.
        self._update_count += 1
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """``psnr`` in dB and ``ssim``."""
        return {"psnr": self.psnr / self.clips, "ssim": self.ssim / self.clips}
