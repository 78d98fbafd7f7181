"""Attention blocks, by name."""

from lightning_sora.nn.attention import factorised, full, window  # noqa: F401  (they register themselves)
from lightning_sora.nn.attention.base import (
    ATTENTION,
    AttentionBlock,
    PartitionBlock,
    TextKeys,
    create_attention,
    list_attention,
    register_attention,
)
from lightning_sora.nn.attention.cross import CrossAttention
from lightning_sora.nn.attention.joint import JointText
from lightning_sora.nn.attention.kernels import KERNELS
from lightning_sora.nn.attention.pattern import layer_specs

__all__ = [
    "ATTENTION",
    "KERNELS",
    "AttentionBlock",
    "CrossAttention",
    "JointText",
    "PartitionBlock",
    "TextKeys",
    "create_attention",
    "layer_specs",
    "list_attention",
    "register_attention",
]
