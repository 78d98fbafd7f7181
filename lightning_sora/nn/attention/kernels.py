"""Kernels: how softmax attention is computed, apart from who attends to whom.

Every kernel takes queries, keys and values as ``[batch, tokens, heads, head_dim]`` and a mask of the keys of each row,
``sdpa`` and ``matmul`` also a pattern of queries and keys that all rows share, and all return the same numbers up to
rounding:

- ``sdpa``: torch's fused kernel.
- ``matmul``: two batched matrix products around a softmax. It holds all scores in memory, and wins where the fused
  kernel is poor: bfloat16 on a CPU without AMX, in segments of tens of tokens.
- ``flex``: torch's FlexAttention, which leaves out empty blocks of a mask; compiled on CUDA, forward only on CPUs.
- ``varlen``: torch's variable-length flash attention; on CUDA, in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Query = Float[Tensor, "batch tokens heads head_dim"]
Key = Float[Tensor, "batch keys heads head_dim"]
Value = Float[Tensor, "batch keys heads value_dim"]
Mixed = Float[Tensor, "batch tokens heads value_dim"]
Mask = Bool[Tensor, "batch keys"]
Pattern = Bool[Tensor, "tokens keys"]
Kernel = Callable[..., Tensor]

KERNELS: Registry[Kernel] = Registry("attention kernel", name="kernel", given=("q", "k", "v", "mask"), functions=True)


def _combined(mask: Mask | None, pattern: Pattern | None) -> Bool[Tensor, "_ 1 _ keys"] | None:
    """What may be seen, to broadcast against ``[batch, heads, tokens, keys]``."""
    rows = None if mask is None else mask[:, None, None]
    if pattern is None:
        return rows
    return pattern[None, None] if rows is None else rows & pattern[None, None]


@KERNELS.register("sdpa")
def sdpa(q: Query, k: Key, v: Value, mask: Mask | None = None, pattern: Pattern | None = None) -> Mixed:
    """Torch's fused kernel."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_combined(mask, pattern)).transpose(1, 2)


@KERNELS.register("matmul")
def matmul(q: Query, k: Key, v: Value, mask: Mask | None = None, pattern: Pattern | None = None) -> Mixed:
    """Two batched matrix products around a softmax."""
    q, k, v = q.transpose(1, 2), rearrange(k, "b n h d -> b h d n"), v.transpose(1, 2)
    scores = (q * q.shape[-1] ** -0.5) @ k
    seen = _combined(mask, pattern)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return (torch.softmax(scores, dim=-1).type_as(v) @ v).transpose(1, 2)


@KERNELS.register("flex")
def flex(q: Query, k: Key, v: Value, mask: Mask | None = None) -> Mixed:
    """Torch's FlexAttention; rules for pairs come as block masks (:mod:`lightning_sora.nn.attention.blocks`).

    Raises:
        SoraError: a gradient is asked for on a CPU, where there is none.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    block_mask = None
    if mask is not None:
        rule = lambda b, h, query, key: mask[b, key]  # noqa: E731  (torch counts the arguments)
        block_mask = create_block_mask(rule, len(q), None, q.shape[1], k.shape[1], device=q.device)
    return flex_under(q, k, v, block_mask)


def flex_under(q: Query, k: Key, v: Value, block_mask: Any) -> Mixed:
    """FlexAttention under a block mask, or none; raises what :func:`flex` raises."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise SoraError("kernel 'flex' has no backward pass on a CPU; train with kernel 'sdpa' or 'matmul'")
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return _flex(q.device.type)(q, k, v, block_mask=block_mask).transpose(1, 2)


@cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device == "cuda" else flex_attention


@KERNELS.register("varlen")
def varlen(q: Query, k: Key, v: Value, mask: Mask | None = None) -> Mixed:
    """Torch's variable-length flash attention: rows end to end, keys that a mask leaves out behind all others.

    Raises:
        SoraError: not on CUDA, or not in half precision.
    """
    flat_k, flat_v, ends_k = k.flatten(0, 1), v.flatten(0, 1), row_ends(k)
    if mask is not None:
        order = kept_first(mask)  # of fixed length, so that the host need not wait to learn how many are kept
        flat_k, flat_v, ends_k = flat_k[order], flat_v[order], masked_row_ends(mask)
    mixed = varlen_flat(q.flatten(0, 1), flat_k, flat_v, (row_ends(q), ends_k), (q.shape[1], k.shape[1]))
    return mixed.unflatten(0, q.shape[:2])


def varlen_flat(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys heads head_dim"],
    v: Float[Tensor, "keys heads head_dim"],
    ends: tuple[Int[Tensor, " rows_plus_one"], Int[Tensor, " rows_plus_one"]],
    longest: tuple[int, int],
) -> Float[Tensor, "queries heads head_dim"]:
    """Attention within rows of any lengths that lie end to end; raises what :func:`varlen` raises.

    Args:
        ends: where each row of queries and of keys starts, and the end.
        longest: the length of the longest row of queries and of keys.
    """
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        raise SoraError(
            f"kernel 'varlen' runs on CUDA in float16 or bfloat16, not on {q.device.type} in {str(q.dtype)[6:]}; set "
            "trainer.precision to bf16-mixed there, or choose kernel 'sdpa', 'matmul' or 'flex'"
        )
    from torch.nn.attention.varlen import varlen_attn

    mixed: Any = varlen_attn(q, k, v, *ends, *longest)
    return mixed


def row_ends(x: Float[Tensor, "batch tokens heads head_dim"]) -> Int[Tensor, " rows_plus_one"]:
    """Where each row of equal rows starts when they lie end to end, and the end."""
    return torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * x.shape[1]


def masked_row_ends(mask: Mask) -> Int[Tensor, " rows_plus_one"]:
    """The same, of rows of which only what the mask keeps is left."""
    return F.pad(mask.sum(dim=1, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


def kept_first(mask: Mask) -> Int[Tensor, " keys_of_all_rows"]:
    """An order of the keys of all rows, those that the mask keeps in theirs before those that it does not."""
    return torch.argsort(~mask.flatten(), stable=True)


def kernel_for(name: str, supported: tuple[str, ...], operator: str) -> Kernel:
    """The kernel of that name, if the operator can run on it.

    Raises:
        SoraError: unknown kernel, or one that cannot honour the operator; those that can are named.
    """
    kernel = KERNELS.builder(name)
    if name not in supported:
        raise SoraError(f"attention {operator!r} cannot run on kernel {name!r}; it can on: {', '.join(supported)}")
    return kernel
