"""Attention blocks of ours within networks of diffusers, and the FLOPs of such networks.

diffusers gives each attention layer a processor, which projects, normalises, rotates and calls torch's fused kernel.
Here it runs as it is, but for that call, in whose place a block mixes: what is before and behind stays diffusers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention import AttentionBlock
from lightning_sora.spacetime import TokenLayout


class Whereabouts:
    """Where the tokens of the forward pass that is on are, which networks of diffusers do not hand to their layers.

    Attributes:
        layout: of that pass; None between passes.
        counting: whether the pass is one whose FLOPs are counted.
    """

    def __init__(self) -> None:
        self.layout: TokenLayout | None = None
        self.counting = False

    @contextmanager
    def at(self, layout: TokenLayout, counting: bool = False) -> Iterator[None]:
        before = self.layout, self.counting
        self.layout, self.counting = layout, counting
        try:
            yield
        finally:
            self.layout, self.counting = before

    def checkpointed(self, layer: nn.Module, *args: Any) -> Any:
        """Recomputes a layer in the backward pass, where its tokens were in the forward pass."""
        layout = self.layout
        assert layout is not None

        def run(*given: Any) -> Any:
            with self.at(layout):
                return layer(*given)

        return checkpoint(run, *args, use_reentrant=False)


class BlockProcessor:
    """A processor of diffusers whose scores are a block's.

    Args:
        own: the processor that the layer had.
        block: mixes; its parameters belong to the denoiser.
        here: where the tokens are.
        text: where text is in the sequence: ``"before"`` or ``"behind"`` the tokens; None where it is not in it.
    """

    def __init__(self, own: Any, block: AttentionBlock, here: Whereabouts, text: str | None) -> None:
        self.own, self.block, self.here, self.text = own, block, here, text

    def __call__(  # diffusers hands over what it finds in this signature
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        if self.here.layout is None:
            raise SoraError(
                f"this network of diffusers has {type(self.block).__name__} inside, which has to know where tokens "
                "are: call the denoiser, or load what `save_pretrained` of diffusers_module() wrote"
            )
        with _Scores(self._mixed, hidden_states) as scores:
            made = self.own(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if scores.rows != len(hidden_states):
            raise SoraError(
                f"{type(self.own).__name__} of diffusers did not attend by torch's scaled_dot_product_attention, in "
                "whose place a block of ours mixes; unset DIFFUSERS_ATTN_BACKEND, or leave out attention=..."
            )
        return made

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
        """What the block makes of ``[batch heads sequence head_dim]``, of the same shape."""
        assert self.here.layout is not None
        if self.here.counting:  # the block declares what it costs
            return torch.empty_like(q)
        layout = TokenLayout.uniform(self.here.layout.grids[0], len(q))
        tokens = layout.shape[1]
        values = v.transpose(1, 2)
        queries, keys = q.transpose(1, 2).type_as(values), k.transpose(1, 2).type_as(values)
        if self.text is None:
            mixed = self.block.attend(queries, keys, values, layout)
            return self._passed_on(mixed, x).transpose(1, 2)
        first = values.shape[1] - tokens if self.text == "before" else 0
        seen = None if mask is None else mask[:, 0, 0]
        mixed = self.block.attend_jointly(queries, keys, values, layout, seen, first)
        here = mixed[:, first : first + tokens]
        passed = self._passed_on(here, x)
        if passed is not here:
            mixed = torch.cat([mixed[:, :first], passed, mixed[:, first + tokens :]], dim=1)
        return mixed.transpose(1, 2)

    def _passed_on(self, mixed: Tensor, x: Tensor) -> Tensor:
        if type(self.block).passed_on is AttentionBlock.passed_on:
            return mixed
        return self.block.passed_on(mixed.flatten(2), x).unflatten(-1, mixed.shape[2:])


class _Scores(TorchFunctionMode):
    """Calls something else where torch's fused attention is called.

    Some processors call it once for each clip: ``rows`` counts those that are done.
    """

    def __init__(self, mixed: Callable[..., Tensor], x: Tensor) -> None:
        super().__init__()
        self.mixed, self.x, self.rows = mixed, x, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v, mask = _attention_of(*args, **(kwargs or {}))
        start, self.rows = self.rows, self.rows + len(q)
        return self.mixed(q, k, v, mask, self.x[start : self.rows])


def _attention_of(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **other: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys, values and mask of a call of torch's fused attention.

    Raises:
        SoraError: the call asks for more than those.
    """
    kind = None if attn_mask is None else (attn_mask.dtype, attn_mask.ndim, *attn_mask.shape[1:3])
    if dropout_p or any(other.values()) or kind not in (None, (torch.bool, 4, 1, 1)):
        raise SoraError(
            f"this version of diffusers attends with dropout_p={dropout_p}, {other} and a mask of {kind}, which blocks "
            "of ours do not take; leave out attention=..."
        )
    return query, key, value, attn_mask


def swap(layers: Sequence[Any], blocks: Sequence[AttentionBlock], here: Whereabouts, text: str | None) -> None:
    """Puts a block into each attention layer of a network."""
    for layer, block in zip(layers, blocks, strict=True):
        layer.processor = BlockProcessor(layer.processor, block, here, text)


def block_flops(block: AttentionBlock, layout: TokenLayout, text_tokens: int) -> int:
    """Of a block in another network: all but projections.

    Args:
        text_tokens: of the text in its sequence, which sees everything; 0 where there is none.
    """
    projections = 8 * layout.total * block.dim**2
    spoken = 4 * layout.clips * text_tokens * (layout.shape[1] + text_tokens) * block.dim
    return block.flops(layout, text_tokens) - projections + spoken


class CountedScores(TorchFunctionMode):
    """Counts the FLOPs of torch's fused attention in place of computing it, whichever kernel would.

    ``total`` holds two products per query, key and channel. Of a text all positions count as such.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k, v, _ = _any_attention(*args, **(kwargs or {}))
            self.total += 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
            return q.new_empty((*q.shape[:-1], v.shape[-1]))
        if func is torch.nonzero:  # of a mask of text, whose length must not depend on values
            (mask, *_) = args
            return torch.arange(mask.numel(), device=mask.device)[:, None]
        return func(*args, **(kwargs or {}))


def _any_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return query, key, value, attn_mask
