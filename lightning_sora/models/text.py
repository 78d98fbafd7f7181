"""Text encoders: captions to sequences of vectors."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import SelfProjection
from lightning_sora.nn.attention.kernels import kernel_for
from lightning_sora.nn.layers import GatedMLP
from lightning_sora.nn.rope import Rope, axis_pairs, rotary
from lightning_sora.registry import Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextContext:
    """The encoded captions of a batch.

    Attributes:
        embeddings: padded at the end.
        mask: True where there is text; at least once per clip.
    """

    embeddings: Float[Tensor, "clips text_tokens dim"]
    mask: Bool[Tensor, "clips text_tokens"]


class TextEncoder(nn.Module, ABC):
    """Encodes captions; the empty caption is the unconditional one.

    Attributes:
        dim: width of the embeddings.
        trainable: whether it learns together with the DiT.
    """

    dim: int
    trainable: bool

    @abstractmethod
    def forward(self, captions: Sequence[str]) -> TextContext:
        """Encodes captions of any length; each, the empty one too, has at least one unmasked token."""


TEXT_ENCODERS: Registry[TextEncoder] = Registry("text encoder")


@TEXT_ENCODERS.register("bytes")
class BytesEncoder(TextEncoder):
    """A small bidirectional transformer over UTF-8 bytes, trained jointly: any language, no vocabulary.

    Bytes as tokens follow ByT5 (Xue et al. 2021, arXiv:2105.13626). A batch is padded to its longest
    caption, rounded up to a multiple of 8.

    Args:
        dim: width.
        depth: number of layers.
        num_heads: divides ``dim``.
        max_bytes: a longer caption is cut at a character boundary, with one warning.
    """

    trainable = True
    bos, eos, pad = 256, 257, 258

    def __init__(self, dim: int = 128, depth: int = 2, num_heads: int = 2, max_bytes: int = 256) -> None:
        super().__init__()
        if max_bytes < 1:
            raise SoraError(f"max_bytes={max_bytes} must be at least 1")
        self.dim, self.max_bytes, self.head_dim = dim, max_bytes, dim // num_heads
        self.embedding = nn.Embedding(259, dim)
        self.blocks = nn.ModuleList(_TextBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        axis_pairs(self.head_dim, axes=1)
        self._warned = False

    def forward(self, captions: Sequence[str]) -> TextContext:
        rows = [[self.bos, *self._cut(caption), self.eos] for caption in captions]
        length = -(-max(map(len, rows)) // 8) * 8
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])
        ids = ids.to(self.embedding.weight.device, non_blocking=True)
        mask = ids != self.pad
        rope = rotary(torch.arange(length, device=ids.device)[:, None], self.head_dim)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, mask, rope)
        return TextContext(self.norm(x), mask)

    def _cut(self, caption: str) -> bytes:
        text = caption.encode("utf-8", errors="replace")
        if len(text) <= self.max_bytes:
            return text
        if not self._warned:
            logger.warning(
                "a caption of %d bytes is cut to max_bytes=%d (further ones are cut without a word): %.60s",
                len(text),
                self.max_bytes,
                caption,
            )
            self._warned = True
        return text[: self.max_bytes].decode("utf-8", errors="ignore").encode()


class _TextBlock(nn.Module):
    """Pre-norm transformer layer with a mask over padding."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = SelfProjection(dim, num_heads)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = GatedMLP(dim, ratio=2.67)
        self.kernel = kernel_for("sdpa", ("sdpa",), "text encoder")

    def forward(
        self, x: Float[Tensor, "clips text_tokens dim"], mask: Bool[Tensor, "clips text_tokens"], rope: Rope
    ) -> Float[Tensor, "clips text_tokens dim"]:
        q, k, v = self.project(self.norm(x), rope)
        x = x + self.out(self.kernel(q, k, v, mask).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


@TEXT_ENCODERS.register("hf")
def frozen_transformer(
    name: str, *, max_tokens: int = 256, dtype: str = "float32", cache: str | None = None, memory: int = 4096
) -> TextEncoder:
    """A :class:`lightning_sora.models.text_hf.FrozenTransformer`, whose options these are."""
    from lightning_sora.models.text_hf import FrozenTransformer

    return FrozenTransformer(name, max_tokens=max_tokens, dtype=dtype, cache=cache, memory=memory)
