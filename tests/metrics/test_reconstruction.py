"""PSNR and SSIM against closed forms."""

import math

import pytest
import torch

from lightning_sora.metrics.reconstruction import PSNR_CAP, ReconstructionQuality


def quality(made: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    metric = ReconstructionQuality()
    metric.update(made, real)
    return {name: float(value) for name, value in metric.compute().items()}


def test_psnr_of_a_constant_offset_is_its_logarithm() -> None:
    """An offset of d in [0, 1] has an error of d squared: -20 log10 d."""
    real = torch.zeros(2, 3, 5, 16, 16)
    assert quality(real + 2 * 0.05, real)["psnr"] == pytest.approx(-20 * math.log10(0.05), abs=1e-4)


def test_psnr_is_the_mean_over_clips_not_of_the_pooled_error() -> None:
    real = torch.zeros(2, 3, 5, 16, 16)
    made = real.clone()
    made[0] += 2 * 0.1
    made[1] += 2 * 0.001
    assert quality(made, real)["psnr"] == pytest.approx((20 + 60) / 2, abs=1e-3)


def test_identical_clips_count_as_the_cap() -> None:
    real = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    assert quality(real, real) == pytest.approx({"psnr": PSNR_CAP, "ssim": 1.0})


def test_ssim_of_black_against_white_is_its_constant() -> None:
    """Constant images 0 and 1: C1 / (1 + C1) with C1 = 0.01 squared (Wang et al. 2004, Eq. 13)."""
    black, white = -torch.ones(1, 3, 2, 32, 32), torch.ones(1, 3, 2, 32, 32)
    assert quality(black, white)["ssim"] == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-4)


def test_values_beyond_the_range_are_clamped() -> None:
    white = torch.ones(1, 3, 2, 16, 16)
    assert quality(white * 3, white)["psnr"] == PSNR_CAP
