"""An exponential moving average of the trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sora.errors import SoraError


class ExponentialMovingAverage:
    """A float32 shadow of a module's trainable parameters, used inside ``with ema.applied(module)``.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so that the first
    weights are forgotten soon. Until the first update the shadow is the module itself.

    Args:
        decay: of the shadow per update, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise SoraError(f"ema_decay={decay} must lie in [0, 1); null switches it off")
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the shadow towards the module's present parameters."""
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.shadow:
            self.shadow = {n: p.detach().float().clone() for n, p in parameters.items()}
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        shadows = [self.shadow[n] for n in parameters]
        torch._foreach_lerp_(shadows, [p.detach().float() for p in parameters.values()], weight)
        self.updates += 1

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Puts the shadow into the module, and the module's own parameters back on leaving, come what may."""
        parameters = dict(module.named_parameters())
        kept = {n: parameters[n].data for n in self.shadow}
        try:
            for name, average in self.shadow.items():
                parameters[name].data = average.to(kept[name])
            yield
        finally:
            for name, raw in kept.items():
                parameters[name].data = raw

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "updates": self.updates, "shadow": dict(self.shadow)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Takes over a saved average; the decay stays the one that the recipe gives."""
        self.updates = state["updates"]
        self.shadow = {name: value.to(device) for name, value in state["shadow"].items()}

    def to(self, device: torch.device | str) -> None:
        self.shadow = {name: value.to(device) for name, value in self.shadow.items()}
