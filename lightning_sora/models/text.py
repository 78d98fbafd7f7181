"""Text encoders: captions to sequences of vectors."""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import SelfProjection, head_width
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

    @classmethod
    def join(cls, contexts: Sequence[TextContext]) -> TextContext:
        """The clips of several batches in one, padded to the longest text."""
        length = max(context.mask.shape[1] for context in contexts)
        padding = [length - context.mask.shape[1] for context in contexts]
        return cls(
            torch.cat([F.pad(c.embeddings, (0, 0, 0, more)) for c, more in zip(contexts, padding, strict=True)]),
            torch.cat([F.pad(c.mask, (0, more)) for c, more in zip(contexts, padding, strict=True)]),
        )


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

    @torch.no_grad()
    def length(self, captions: Sequence[str]) -> int:
        """Tokens of each row of :meth:`forward`, padding included."""
        return self(captions).mask.shape[1]


TEXT_ENCODERS: Registry[TextEncoder] = Registry("text encoder")


class JointEncoder(TextEncoder):
    """A small bidirectional transformer over a caption's tokens, trained together with the DiT.

    A batch is padded to its longest caption, rounded up to a multiple of 8.

    Args:
        vocabulary: number of token ids, the last of which pads.
        dim: width.
        depth: number of layers.
        num_heads: divides ``dim``.
    """

    trainable = True

    def __init__(self, vocabulary: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        if dim < 1 or depth < 0:
            raise SoraError(f"dim={dim} must be at least 1 and depth={depth} 0 or more")
        self.dim, self.head_dim, self.pad = dim, head_width(dim, num_heads), vocabulary - 1
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(_TextBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        axis_pairs(self.head_dim, axes=1)
        self._warned = False

    @abstractmethod
    def tokens(self, caption: str) -> list[int]:
        """The token ids of a caption; at least one."""

    def length(self, captions: Sequence[str]) -> int:
        return _up_to_eight(max(len(self.tokens(caption)) for caption in captions))

    def forward(self, captions: Sequence[str]) -> TextContext:
        rows = [self.tokens(caption) for caption in captions]
        length = _up_to_eight(max(map(len, rows)))
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])
        ids = ids.to(self.embedding.weight.device, non_blocking=True)
        mask = ids != self.pad
        rope = rotary(torch.arange(length, device=ids.device)[:, None], self.head_dim)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, mask, rope)
        return TextContext(self.norm(x), mask)

    def warn_cut(self, caption: str, length: int, limit: str) -> None:
        """Says once that captions are cut."""
        if not self._warned:
            logger.warning(
                "a caption of length %d is cut to %s (further ones are cut without a word): %.60s",
                length,
                limit,
                caption,
            )
            self._warned = True


def _up_to_eight(longest: int) -> int:
    return -(-longest // 8) * 8


@TEXT_ENCODERS.register("bytes")
class BytesEncoder(JointEncoder):
    """UTF-8 bytes: any language, no vocabulary (ByT5, Xue et al. 2021, arXiv:2105.13626).

    Args:
        max_bytes: a longer caption is cut at a character boundary, with one warning.
        dim, depth, num_heads: see :class:`JointEncoder`.
    """

    bos, eos = 256, 257

    def __init__(self, dim: int = 128, depth: int = 2, num_heads: int = 2, max_bytes: int = 256) -> None:
        if max_bytes < 1:
            raise SoraError(f"max_bytes={max_bytes} must be at least 1")
        super().__init__(259, dim, depth, num_heads)
        self.max_bytes = max_bytes

    def tokens(self, caption: str) -> list[int]:
        text = caption.encode("utf-8", errors="replace")
        if len(text) > self.max_bytes:
            self.warn_cut(caption, len(text), f"max_bytes={self.max_bytes}")
            text = text[: self.max_bytes].decode("utf-8", errors="ignore").encode()
        return [self.bos, *text, self.eos]


@TEXT_ENCODERS.register("words")
class WordsEncoder(JointEncoder):
    """Whole words, hashed into a fixed number of rows (Weinberger et al. 2009, arXiv:0902.2206).

    Learns what a word means from fewer clips than bytes do, and gives the DiT fewer text tokens. Any
    language that parts its words; case is ignored. Words that share a row cannot be told apart.

    Args:
        rows: of the table; take many times the number of different words.
        max_words: a longer caption is cut, with one warning.
        dim, depth, num_heads: see :class:`JointEncoder`.
    """

    def __init__(
        self, dim: int = 128, depth: int = 1, num_heads: int = 2, rows: int = 4096, max_words: int = 128
    ) -> None:
        if rows < 1 or max_words < 1:
            raise SoraError(f"rows={rows} and max_words={max_words} must be at least 1")
        super().__init__(rows + 2, dim, depth, num_heads)
        self.rows, self.max_words = rows, max_words

    def tokens(self, caption: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", caption.lower())
        if len(words) > self.max_words:
            self.warn_cut(caption, len(words), f"max_words={self.max_words}")
        hashes = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words[: self.max_words])
        return [self.rows, *(int.from_bytes(h, "little") % self.rows for h in hashes)]


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
