"""Guided sampling in one batch and in two passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sora.diffusion.guidance import GUIDANCE
from lightning_sora.models import denoiser
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.integration.conftest import make_dit

PROMPTS = ["a red cube moves left", "two", ""]
GRIDS = [TokenGrid(2, 1, 2), TokenGrid(1, 2, 3), TokenGrid(3, 2, 1)]
LAYOUTS = {"uniform": TokenLayout.uniform(GRIDS[0], 3), "packed": TokenLayout.pack(GRIDS)}


def model(**changes: Any) -> LatentDiffusion:
    made = make_dit(**changes).model
    for name, weight in made.dit.named_parameters():
        if not weight.any():  # what starts at zero would hide the text
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return made.eval()


@pytest.mark.parametrize("conditioning", ["cross", "joint"])
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", GUIDANCE.list())
def test_one_batch_is_two_passes_up_to_rounding(
    name: str, kind: str, conditioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, made = LAYOUTS[kind], model(conditioning=conditioning)
    monkeypatch.setattr(made, "read_weak", lambda path: model(conditioning=conditioning, depth=1))
    passes: list[int] = []
    made.dit.register_forward_hook(lambda module, given, found: passes.append(1))
    options = {"autoguidance": "checkpoint='weak.ckpt'", "apg": "momentum=-0.5, eta=0.3"}.get(name, "")
    spec = f"{name}(scale=3.0{', ' if options else ''}{options})"
    width = made.dit.in_dim
    x_t = torch.randn((*layout.shape, width), generator=torch.Generator().manual_seed(0))

    def found(limit: int) -> list[torch.Tensor]:
        monkeypatch.setattr(denoiser, "TOGETHER_TOKENS", limit)
        passes.clear()
        denoise = made.denoiser(PROMPTS, layout, spec)
        with torch.no_grad():
            return [denoise(x_t, t) for t in (0.95, 0.6, 0.3)]

    together = found(layout.total)
    calls = len(passes)
    apart = found(layout.total - 1)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert calls == 3
    # Of autoguidance the other pass is that of the weak model; 0.95 lies outside the interval.
    assert len(passes) == {"autoguidance": 3, "interval": 5}.get(name, 6)
    plain = made.denoiser(PROMPTS, layout, 1.0)
    with torch.no_grad():
        assert (together[1] - plain(x_t, 0.6)).abs().max() > 1e-2
