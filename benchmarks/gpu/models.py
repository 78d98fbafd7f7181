"""The models that are measured: the sizes of the DiT paper, over latents of a 4x8x8 VAE cut into 1x2x2 patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.session import Session
from lightning_sora.models.denoisers import DiT
from lightning_sora.models.text import TextContext
from lightning_sora.randomness import generator
from lightning_sora.spacetime import TokenGrid, TokenLayout

#: Layers, width and heads (Peebles & Xie 2022, arXiv:2212.09748, table 1).
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
#: Values of a row: 16 latent channels of a 1x2x2 patch.
IN_DIM = 64
TEXT_TOKENS, TEXT_DIM = 64, 512
#: Tokens of one clip. Time grows first, as videos do.
GRIDS = {
    1024: TokenGrid(4, 16, 16),
    4096: TokenGrid(16, 16, 16),
    16384: TokenGrid(16, 32, 32),
    65536: TokenGrid(16, 64, 64),
}
REDUCED_GRID = TokenGrid(2, 4, 4)


def make_dit(session: Session, size: str, **options: Any) -> DiT:
    """A DiT on the session's device, drawn there; at reduced size, one of a single layer whatever the name."""
    depth, dim, heads = (1, 32, 2) if session.reduced else SIZES[size]
    with session.device:
        model = DiT(IN_DIM, dim=dim, depth=depth, num_heads=heads, text_dim=TEXT_DIM, **options)
    # What starts at zero would keep the backward pass from most of the network.
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


@dataclass(frozen=True)
class Inputs:
    """A batch of rows, timesteps and text."""

    x: Tensor
    t: Tensor
    text: TextContext
    layout: TokenLayout


def make_inputs(session: Session, layout: TokenLayout) -> Inputs:
    draws = generator(1, "gpu inputs")
    x = torch.randn(*layout.shape, IN_DIM, generator=draws)
    t = torch.rand(layout.clips, generator=draws)
    embeddings = torch.randn(layout.clips, TEXT_TOKENS, TEXT_DIM, generator=draws)
    mask = torch.ones(layout.clips, TEXT_TOKENS, dtype=torch.bool)
    x, t, embeddings, mask = (value.to(session.device) for value in (x, t, embeddings, mask))
    return Inputs(x, t, TextContext(embeddings, mask), layout)


def training_step(
    session: Session, model: DiT, inputs: Inputs, optimizer: torch.optim.Optimizer | None
) -> Callable[[], None]:
    """Forward, backward and the optimizer's step, in bfloat16 by autocast."""
    target = torch.randn_like(inputs.x)

    def step() -> None:
        with session.half():
            prediction = model(inputs.x, inputs.t, inputs.text, inputs.layout)
            loss = torch.nn.functional.mse_loss(prediction.float(), target)
        loss.backward()
        if optimizer is None:
            model.zero_grad(set_to_none=True)
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def adamw(session: Session, model: DiT) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=session.cuda)
