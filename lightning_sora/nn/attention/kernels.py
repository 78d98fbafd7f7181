"""Kernels: how softmax attention is computed, apart from who attends to whom.

Every kernel takes queries, keys and values as ``[batch, tokens, heads, head_dim]`` and a mask of the
keys, and returns the same numbers up to rounding. ``sdpa`` is torch's fused kernel. ``matmul`` is two
batched matrix products around a softmax: it holds all scores in memory, and wins where the fused
kernel is poor: bfloat16 on a CPU without AMX, in segments of tens of tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Query = Float[Tensor, "batch tokens heads head_dim"]
Key = Float[Tensor, "batch keys heads head_dim"]
Mask = Bool[Tensor, "batch keys"]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

KERNELS: Registry[Tensor] = Registry("attention kernel")


@KERNELS.register("sdpa")
def sdpa(q: Query, k: Key, v: Key, mask: Mask | None = None) -> Query:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    attn_mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2)


@KERNELS.register("matmul")
def matmul(q: Query, k: Key, v: Key, mask: Mask | None = None) -> Query:
    q, k, v = q.transpose(1, 2), rearrange(k, "b n h d -> b h d n"), v.transpose(1, 2)
    scores = (q * q.shape[-1] ** -0.5) @ k
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    return (torch.softmax(scores, dim=-1).type_as(v) @ v).transpose(1, 2)


def kernel_for(name: str, supported: tuple[str, ...], operator: str) -> Kernel:
    """The kernel of that name, if the operator can run on it.

    Raises:
        SoraError: unknown kernel, or one that cannot honour the operator; those that can are named.
    """
    kernel = KERNELS.builder(name)
    if name not in supported:
        raise SoraError(f"attention {operator!r} cannot run on kernel {name!r}; it can on: {', '.join(supported)}")
    return kernel
