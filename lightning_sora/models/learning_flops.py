"""FLOPs of a training step of which a part learns: what frozen weights spare, and what adapters add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sora.models.denoisers.base import Condition, Denoiser
from lightning_sora.models.text_base import TextContext
from lightning_sora.spacetime import TokenGrid, TokenLayout

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_GRIDS, _LENGTHS = (TokenGrid(1, 2, 2), TokenGrid(2, 2, 2)), (3, 5)


class _Product(NamedTuple):
    """A product of rows with a weight, as one forward pass met it."""

    rows: int
    numel: int
    added: bool  # by an adapter
    of_input: bool  # whether the backward pass asks for the gradient of the rows
    of_weight: bool


class _Products(TorchFunctionMode):
    def __init__(self, added: set[int]) -> None:
        super().__init__()
        self.added, self.found = added, list[_Product]()
        self.made: dict[int, Tensor] = {}  # of weights alone, such as views of them; held, so that no id comes again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear or func in _CONVOLUTIONS:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            x, weight = given["input"], given["weight"]
            if self._is_weight(weight):
                width = out.shape[-1] if func is F.linear else out.shape[1]
                rows = out.numel() // width
                added = id(weight) in self.added
                self.found.append(_Product(rows, weight.numel(), added, x.requires_grad, weight.requires_grad))
        elif isinstance(out, Tensor):
            of = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
            if of and all(map(self._is_weight, of)):
                self.made[id(out)] = out
        return out

    def _is_weight(self, one: Tensor) -> bool:
        return isinstance(one, nn.Parameter) or id(one) in self.made


class LearningFlops:
    """What a step spends less and more than forward and backward passes of a denoiser of which all learns.

    A backward pass makes two products for each of the forward one: the gradient of what goes in, and that of the
    weight. That of a frozen weight is not made, nor that of what goes into it where nothing that learns comes before;
    an adapter's products are made beside. Which are made, and of how many rows, three small forward passes tell:
    rows are a constant, and a multiple of the tokens and of the length of the text, for every weight.

    Products of activations, as of attention's queries and keys, have both gradients, and are counted so. Against
    torch's counter the whole is off by at most a twentieth more than it is where all learns.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.models.learning_flops import LearningFlops
        >>> from lightning_sora.models.lora import add_lora
        >>> from lightning_sora.spacetime import TokenGrid, TokenLayout
        >>> dit = {"patch_size": (1, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
        >>> model, layout = ls.LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit), None
        >>> names = add_lora(model.dit, rank=4)
        >>> LearningFlops(model.dit, False)(TokenLayout.uniform(TokenGrid(1, 2, 2), 1), 8) < 0
        True
    """

    def __init__(self, denoiser: Denoiser, per_token: bool) -> None:
        base = _met(denoiser, _GRIDS[0], _LENGTHS[0], per_token)
        wide = _met(denoiser, _GRIDS[1], _LENGTHS[0], per_token)
        long = _met(denoiser, _GRIDS[0], _LENGTHS[1], per_token)
        step, letters = _GRIDS[1].tokens - _GRIDS[0].tokens, _LENGTHS[1] - _LENGTHS[0]
        self.per_token = self.per_letter = self.per_clip = 0.0
        for one, more, longer in zip(base, wide, long, strict=True):
            tokens, text = (more.rows - one.rows) / step, (longer.rows - one.rows) / letters
            clips = one.rows - tokens * _GRIDS[0].tokens - text * _LENGTHS[0]
            made = one.of_input + one.of_weight
            cost = 2 * one.numel * (1 + made if one.added else made - 2)
            self.per_token += tokens * cost
            self.per_letter += text * cost
            self.per_clip += clips * cost

    def __call__(self, layout: TokenLayout, text_tokens: int) -> int:
        """FLOPs, below zero where more is spared than added.

        Args:
            text_tokens: length of each text, padding included.
        """
        return round(layout.total * self.per_token + layout.clips * (text_tokens * self.per_letter + self.per_clip))


def _met(denoiser: Denoiser, grid: TokenGrid, length: int, per_token: bool) -> list[_Product]:
    """The products with weights of a forward pass on one clip."""
    layout, like = TokenLayout.uniform(grid, 1), next(denoiser.parameters())

    def zeros(*size: int) -> Tensor:
        return torch.zeros(size, device=like.device, dtype=denoiser.dtype)

    mask = torch.ones(1, length, device=like.device, dtype=torch.bool)
    pooled = None if denoiser.pooled_dim is None else zeros(1, denoiser.pooled_dim)
    text = TextContext(zeros(1, length, denoiser.text_dim), mask, pooled)
    shown = None
    if denoiser.condition_channels:
        image = None if denoiser.image_dim is None else zeros(1, denoiser.image_tokens, denoiser.image_dim)
        shown = Condition(zeros(*layout.shape, denoiser.patch_size.volume * denoiser.condition_channels), image)
    added = {id(p) for name, p in denoiser.named_parameters() if ".lora_" in name}
    training = denoiser.training
    denoiser.eval()  # without dropout, which would draw
    try:
        with torch.enable_grad(), _Products(added) as products:
            t = zeros(*layout.shape) if per_token else zeros(1)
            denoiser(zeros(*layout.shape, denoiser.in_dim), t, text, layout, condition=shown)
    finally:
        denoiser.train(training)
    return products.found
