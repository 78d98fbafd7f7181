"""Counting the FLOPs of parts that do not declare them: convolutional VAEs, text encoders."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.models.conditioning import condition_encodes
from lightning_sora.models.denoisers.base import Denoiser
from lightning_sora.models.learning_flops import LearningFlops
from lightning_sora.models.text_base import TextEncoder
from lightning_sora.models.vae import VideoVAE
from lightning_sora.spacetime import PatchSize, TokenLayout

#: A backward pass costs twice the forward one: a product for the input's gradient, one for the weights'.
FORWARD_AND_BACKWARD = 3


class CountedFlops:
    """Runs a part once per key under torch's counter, and remembers.

    What an operator does that the counter does not know (element-wise work, a custom kernel) counts as zero;
    so parts with sparse attention declare their FLOPs and are not counted here.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._learning: dict[bool, LearningFlops] = {}

    def of_what_learns(self, denoiser: Denoiser, per_token: bool) -> LearningFlops:
        """What a step of a denoiser of which a part learns spends less and more; looked at once."""
        if per_token not in self._learning:
            self._learning[per_token] = LearningFlops(denoiser, per_token)
        return self._learning[per_token]

    def __call__(self, key: Hashable, module: nn.Module, run: Callable[[], Any]) -> int:
        """Forward FLOPs of ``run``, in evaluation mode and without gradients."""
        if key not in self._known:
            training = module.training
            module.eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run()
            module.train(training)
            self._known[key] = int(counter.get_total_flops())
        return self._known[key]


class Costly(Protocol):
    """A latent diffusion model, of which each part costs."""

    vae: VideoVAE
    text: TextEncoder
    dit: Denoiser

    @property
    def patch(self) -> PatchSize: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


def training_flops(
    model: Costly,
    count: CountedFlops,
    layout: TokenLayout,
    text_tokens: int,
    pixels: bool,
    part: TokenLayout,
    per_token: bool,
) -> int:
    """FLOPs of one training step of a latent diffusion model.

    Weights that are frozen beside others that learn have no gradient: see :class:`LearningFlops`.

    The denoiser's are declared; those of the text encoder and of the VAE are counted. A clip counts as encoded at every
    visit, also where its latent or its caption's embedding is kept: equal batches cost equal FLOPs.

    Args:
        text_tokens: length of each caption, padding included.
        pixels: whether the VAE encodes the clips, or they come as latents.
        part: what the denoiser sees of the clips.
        per_token: whether each token has a timestep of its own.
    """
    total = FORWARD_AND_BACKWARD * model.dit.flops(part, text_tokens, per_token)
    learns = {p.requires_grad for p in model.dit.parameters()}
    partly = learns == {True, False}
    if partly:
        total += count.of_what_learns(model.dit, per_token)(part, text_tokens)
    text = layout.clips * count(("text", text_tokens), model.text, lambda: model.text.probe(text_tokens))
    total += text * (FORWARD_AND_BACKWARD if model.text.trainable and not partly else 1)
    for size in (grid.size(model.patch) for grid in layout.grids if pixels):
        shown = [condition_encodes(model.vae, model.dit, size)] if model.dit.condition_channels else []
        for encoded in (size, *shown):
            clip = torch.zeros((1, 3, *encoded), device=model.device, dtype=model.dtype)
            total += count(encoded, model.vae, lambda clip=clip: model.vae.encode(clip))  # type: ignore[misc]
    return total
