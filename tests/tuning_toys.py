"""A pretrained denoiser in miniature, for tests of what is trained of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lightning_sora.models.denoisers import DENOISERS, DiT
from lightning_sora.randomness import coarse_generator, initialize
from lightning_sora.specs import Spec

SHAPE: dict[str, Any] = {"patch_size": (4, 8, 8), "dim": 16, "depth": 2, "num_heads": 2}
TEXT_DIM = 8


class Kept(DiT):
    """A DiT whose weights lie in a file; blocks that are put in are fresh, where they have other parameters."""

    def __init__(
        self, channels: int, text_dim: int, *, path: str | None = None, attention: str | Sequence[str] = "full"
    ) -> None:
        super().__init__(channels, text_dim, attention=attention, **SHAPE)
        self.pretrained = path is not None
        self._fresh: frozenset[str] = frozenset()
        if path is not None:
            missing, _ = self.load_state_dict(load_file(Path(path) / "kept.safetensors"), strict=False)
            self._fresh = frozenset(missing)

    def fresh(self) -> frozenset[str]:
        return self._fresh if self.pretrained else super().fresh()

    def draw(self, seed: int) -> None:
        values = {name: p.detach().clone() for name, p in self.named_parameters() if name not in self.fresh()}
        initialize(self, seed, "dit.")
        self.load_state_dict(values, strict=False)

    def spec_of_its_own(self, spec: str) -> str:
        asked = DENOISERS.resolve(spec)
        return str(Spec(asked.name, {name: value for name, value in asked.options.items() if name != "path"}))


def write_kept(folder: Path, seed: int = 0, channels: int = 3) -> str:
    """Writes weights of a ``kept`` denoiser, of which none is zero, and returns the spec that reads them."""
    network = DiT(channels, TEXT_DIM, **SHAPE)
    weights = {
        name: torch.randn(p.shape, generator=coarse_generator(seed, "toy", name)) * 0.1
        for name, p in network.named_parameters()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "kept.safetensors")
    return f"kept(path={str(folder)!r})"
