"""Attention blocks, by name."""

from lightning_sora.nn.attention import (  # noqa: F401  (they register themselves)
    causal,
    differential,
    dilated,
    factorised,
    full,
    gated,
    linear,
    neighborhood,
    radial,
    tile,
    window,
)
from lightning_sora.nn.attention.base import (
    ATTENTION,
    AttentionBlock,
    TextKeys,
    create_attention,
    create_operator,
    list_attention,
    register_attention,
)
from lightning_sora.nn.attention.cross import CrossAttention, attend_contexts
from lightning_sora.nn.attention.joint import JointText
from lightning_sora.nn.attention.kernels import KERNELS
from lightning_sora.nn.attention.masked import MaskedBlock
from lightning_sora.nn.attention.partition import PartitionBlock
from lightning_sora.nn.attention.pattern import layer_specs

__all__ = [
    "ATTENTION",
    "KERNELS",
    "AttentionBlock",
    "CrossAttention",
    "JointText",
    "MaskedBlock",
    "PartitionBlock",
    "TextKeys",
    "attend_contexts",
    "create_attention",
    "create_operator",
    "layer_specs",
    "list_attention",
    "register_attention",
]
