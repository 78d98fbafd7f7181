"""Softmax attention by a plan of tiles: by any kernel, or by torch's fused kernel on a CPU without copies of keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_sora.nn.attention.kernels import Kernel, sdpa
from lightning_sora.nn.attention.segments import take
from lightning_sora.nn.attention.tiling import Part, Plan, pieces

Rows = Float[Tensor, "batch tokens heads head_dim"]
Keys = Float[Tensor, "batch tokens_and_text heads head_dim"]
TextMask = Bool[Tensor, "batch text_tokens"]

#: Keys that the fused kernel is given at once, of all rows and tiles together: as much as caches hold.
KEYS_AT_ONCE = 2048


def attend_tiles(kernel: Kernel, q: Rows, k: Keys, v: Keys, plan: Plan, text: TextMask | None = None) -> Rows:
    """Attends by a plan for one grid, which all rows have.

    Args:
        k, v: of the tokens, and then of the text, of which every query sees what ``text`` keeps.
    """
    if kernel is sdpa and q.device.type == "cpu":
        if torch.is_autocast_enabled("cpu") and v.dtype != torch.float64:
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
        numbers = [int(number) for part in plan.parts for number in part]
        return _fused(q, k, v, plan.queries, plan.keys, plan.patterns, text, numbers)[0]
    tokens, extra = q.shape[1], k.shape[1] - q.shape[1]
    chosen = [take(x[:, :tokens], plan.keys) for x in (k, v)]
    words = [x[:, tokens:] for x in (k, v)]
    some_k, some_v = (x.split([part.tiles * part.keys for part in plan.parts], dim=1) for x in chosen)
    some_q = take(q, plan.queries).split([part.tiles * part.queries for part in plan.parts], dim=1)
    mixed = []
    for part, (_, _, pattern), queries, *pair in zip(plan.parts, plan.pieces(), some_q, some_k, some_v, strict=True):
        rows = [x.reshape(-1, part.keys, *x.shape[2:]) for x in pair]
        mask = None
        if text is not None:
            rows = [torch.cat([x, w.repeat_interleave(part.tiles, 0)], 1) for x, w in zip(rows, words, strict=True)]
            mask = torch.nn.functional.pad(text, (part.keys, 0), value=True).repeat_interleave(part.tiles, 0)
            pattern = None if pattern is None else torch.nn.functional.pad(pattern, (0, extra), value=True)
        found = kernel(queries.reshape(-1, part.queries, *q.shape[2:]), *rows, mask, pattern)
        mixed.append(found.reshape(len(q), -1, *found.shape[2:]))
    together = torch.cat(mixed, dim=1)
    return torch.empty_like(together).index_copy(1, plan.queries, together)


# The fused kernel, with its gradient: tiles are gathered when they are needed, forward and backward, and let go.
# Left to autograd, the gathered keys of every tile would be kept for the backward pass: tens of copies of all keys.
_LIBRARY = "lightning_sora::tiled_attention"
_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor queries, Tensor keys, Tensor patterns, Tensor? text, int[] parts"
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _tiles(
    queries: Tensor, keys: Tensor, patterns: Tensor, numbers: Sequence[int], rows: int
) -> Iterator[tuple[Int[Tensor, "tiles _"], Int[Tensor, "tiles _"], Bool[Tensor, "_ _"] | None]]:
    """Queries, keys and pattern of the tiles that are computed together."""
    parts = tuple(Part(a, b, c, bool(masked)) for a, b, c, masked in zip(*[iter(numbers)] * 4, strict=True))
    for part, (some_queries, some_keys, pattern) in zip(parts, pieces(parts, queries, keys, patterns), strict=True):
        step = max(1, KEYS_AT_ONCE // (rows * part.keys))
        for start in range(0, part.tiles, step):
            yield some_queries[start : start + step], some_keys[start : start + step], pattern


def _run(indices: Int[Tensor, "tiles length"]) -> slice | None:
    """The indices as a range of neighbours, if they are one."""
    first, last = int(indices[0, 0]), int(indices[-1, -1])
    return slice(first, last + 1) if len(indices) == 1 and last - first + 1 == indices.numel() else None


def _chosen(
    x: Tensor, indices: Int[Tensor, "tiles length"], buffer: Tensor | None = None
) -> Float[Tensor, "rows heads length head_dim"]:
    """Rows of ``x``: itself where they are neighbours, or copies, which go to the buffer if there is one."""
    run, flat = _run(indices), indices.flatten()
    if run is not None:
        rows = x[:, run]
    elif buffer is None:
        rows = take(x, flat)
    else:
        rows = buffer[: len(x) * len(flat)].view(len(x), len(flat), *x.shape[2:])
        if len(x) == 1:
            torch.index_select(x[0], 0, flat, out=rows[0])
        else:
            torch.index_select(x, 1, flat, out=rows)
    return rows.reshape(-1, indices.shape[1], *x.shape[2:]).transpose(1, 2)


def _buffers(k: Tensor, v: Tensor, tiles: list[Any], text: Tensor | None) -> tuple[Tensor, Tensor]:
    """Room for the keys and values of any of the tiles: memory that is taken once costs less than taken for each."""
    words = 0 if text is None else text.shape[1]
    most = len(k) * max(keys.numel() + len(keys) * words for _, keys, _ in tiles)
    return k.new_empty(most, *k.shape[2:]), v.new_empty(most, *v.shape[2:])


def _with_text(keys: Tensor, k: Tensor, text: Tensor | None) -> Tensor:
    """Indices of the tiles' keys, and of the text's behind those of all tokens."""
    if text is None:
        return keys
    words = torch.arange(k.shape[1] - text.shape[1], k.shape[1], device=k.device)
    return torch.cat([keys, words.expand(len(keys), -1)], dim=1)


def _bias(pattern: Tensor | None, text: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of tiles, of which ``shape`` is that of their keys: minus infinity hides a pair."""
    tiles, keys = shape
    if text is not None:
        seen = torch.nn.functional.pad(text, (keys, 0), value=True)[:, None, None]
        if pattern is not None:
            seen = seen & torch.nn.functional.pad(pattern, (0, text.shape[1]), value=True)
        seen = seen.repeat_interleave(tiles, dim=0)
    elif pattern is not None:
        seen = pattern[None, None]
    else:
        return None
    return torch.where(seen, torch.zeros((), dtype=dtype), torch.full((), float("-inf"), dtype=dtype))


@torch.library.custom_op(_LIBRARY, mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)")
def _fused(
    q: Any, k: Any, v: Any, queries: Any, keys: Any, patterns: Any, text: Any, parts: Any
) -> tuple[Tensor, Tensor]:
    """What the queries find, and the logarithms of their sums of exponentials, ``[batch, tokens, heads]``."""
    mixed = torch.empty(q.shape, dtype=q.dtype)
    sums = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    tiles = list(_tiles(queries, keys, patterns, parts, len(q)))
    room_k, room_v = _buffers(k, v, tiles, text)
    for some_queries, some_keys, pattern in tiles:
        bias = _bias(pattern, text, some_keys.shape, q.dtype)
        some_keys = _with_text(some_keys, k, text)
        found, logarithms = _forward(
            _chosen(q, some_queries), _chosen(k, some_keys, room_k), _chosen(v, some_keys, room_v), attn_mask=bias
        )
        for whole, part in ((mixed, found.transpose(1, 2)), (sums, logarithms.transpose(1, 2))):
            whole.index_copy_(1, some_queries.flatten(), part.reshape(len(q), -1, *part.shape[2:]))
    return mixed, sums


@_fused.register_fake
def _(q: Tensor, k: Any, v: Any, queries: Any, keys: Any, patterns: Any, text: Any, parts: Any) -> Any:
    sums = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(q.shape), sums


@torch.library.custom_op(
    f"{_LIBRARY}_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor mixed, Tensor sums, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _fused_backward(
    gradient: Any, mixed: Any, sums: Any, q: Any, k: Any, v: Any,
    queries: Any, keys: Any, patterns: Any, text: Any, parts: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values; those of keys are added up in float32 at least."""
    grad_q = torch.empty(q.shape, dtype=q.dtype)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    tiles = list(_tiles(queries, keys, patterns, parts, len(q)))
    room_k, room_v = _buffers(k, v, tiles, text)
    for some_queries, some_keys, pattern in tiles:
        bias = _bias(pattern, text, some_keys.shape, q.dtype)
        some_keys = _with_text(some_keys, k, text)
        part_q, part_mixed, part_gradient = (_chosen(x, some_queries) for x in (q, mixed, gradient))
        part_sums = take(sums, some_queries.flatten()).reshape(-1, some_queries.shape[1], sums.shape[2])
        found = _backward(
            part_gradient, part_q, _chosen(k, some_keys, room_k), _chosen(v, some_keys, room_v), part_mixed,
            part_sums.transpose(1, 2), 0.0, False, attn_mask=bias,
        )  # fmt: skip
        part_q, part_k, part_v = (x.transpose(1, 2).reshape(len(q), -1, *q.shape[2:]) for x in found)
        grad_q.index_copy_(1, some_queries.flatten(), part_q)
        run = _run(some_keys)
        for whole, part in ((grad_k, part_k), (grad_v, part_v)):
            if run is None:
                whole.index_add_(1, some_keys.flatten(), part.to(whole.dtype))
            else:
                whole[:, run] += part
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


@_fused_backward.register_fake
def _(gradient: Any, mixed: Any, sums: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.parts = inputs
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    return (*_fused_backward(gradient, *ctx.saved_tensors, ctx.parts), *[None] * 5)


_fused.register_autograd(_gradients, setup_context=_setup)
