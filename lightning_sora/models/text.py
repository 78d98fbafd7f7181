"""Text encoders: captions to sequences of vectors."""

from __future__ import annotations

import hashlib
import logging
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.text_base import TEXT_ENCODERS, TextContext, TextEncoder
from lightning_sora.models.text_cached import CachedTransformer as CachedTransformer  # registers it
from lightning_sora.models.text_hunyuan import HunyuanVideoText as HunyuanVideoText  # registers it
from lightning_sora.nn.attention.base import SelfProjection, head_width
from lightning_sora.nn.attention.kernels import kernel_for
from lightning_sora.nn.layers import GatedMLP
from lightning_sora.nn.rope import Rope, axis_pairs, rotary

logger = logging.getLogger(__name__)

#: Ideographs, which are written without spaces: the blocks that BERT's multilingual tokenizer parts too.
IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
WORDS = re.compile(rf"[{IDEOGRAPHS}]|(?:(?![{IDEOGRAPHS}])\w)+|[^\w\s]")

#: By which part of its length a row of a table has moved that some caption trained; rounding moves others less.
BARELY = 1e-4


class JointEncoder(TextEncoder):
    """A small bidirectional transformer over a caption's tokens, trained together with the DiT.

    A batch is padded to its longest caption, rounded up to a multiple of 8. Loaded from a checkpoint, it says which
    parts of a caption it was never trained on: their rows are as they were drawn, and tell the DiT nothing.

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
        self._untrained: set[int] = set()
        self._told: set[str] = set()

    @abstractmethod
    def parts(self, caption: str) -> list[tuple[str, list[int]]]:
        """The parts of a caption, such as words, with their token ids; marks are parts without a name. At least one."""

    def tokens(self, caption: str) -> list[int]:
        """The token ids of a caption; at least one."""
        return [token for _, ids in self.parts(caption) for token in ids]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        trained = state_dict.get(f"{prefix}embedding.weight")
        if isinstance(trained, Tensor) and trained.shape == self.embedding.weight.shape:
            self._untrained = _as_drawn(self.embedding.weight.detach(), trained)

    def _warn_untrained(self, captions: Sequence[str]) -> None:
        for caption in captions:
            unknown = [name for name, ids in self.parts(caption) if name and not self._untrained.isdisjoint(ids)]
            new = [name for name in dict.fromkeys(unknown) if name not in self._told]
            self._told.update(new)
            if new:
                logger.warning(
                    "the text encoder was not trained on %s%s, which tell it nothing: %.60r; say it in words of the "
                    "training captions",
                    ", ".join(map(repr, new[:8])), " and others" if len(new) > 8 else "", caption,
                )  # fmt: skip

    def length(self, captions: Sequence[str]) -> int:
        return _up_to_eight(max(len(self.tokens(caption)) for caption in captions))

    def forward(self, captions: Sequence[str]) -> TextContext:
        if self._untrained and not self.training:
            self._warn_untrained(captions)
        rows = [self.tokens(caption) for caption in captions]
        length = _up_to_eight(max(map(len, rows)))
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])
        return self._encode(ids.to(self.embedding.weight.device, non_blocking=True))

    def probe(self, tokens: int) -> TextContext:
        return self._encode(torch.zeros((1, tokens), dtype=torch.long, device=self.embedding.weight.device))

    def _encode(self, ids: Int[Tensor, "clips text_tokens"]) -> TextContext:
        mask = ids != self.pad
        rope = rotary(torch.arange(ids.shape[1], device=ids.device)[:, None], self.head_dim)
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


def _as_drawn(drawn: Float[Tensor, "rows dim"], trained: Float[Tensor, "rows dim"]) -> set[int]:
    """The rows that are what they were, but for a decay of their length: no gradient ever reached them."""
    barely = max(BARELY, torch.finfo(trained.dtype).eps)  # weights that are stored in half precision are rounded
    drawn, trained = drawn.double().cpu(), trained.double().cpu()
    along = (drawn * trained).sum(dim=1, keepdim=True) / drawn.square().sum(dim=1, keepdim=True)
    moved = (trained - along * drawn).norm(dim=1) > barely * trained.norm(dim=1)
    # The last but one marks every caption: where that is as drawn too, nothing is known of this encoder's training.
    return set() if not moved[-2] else set((~moved).nonzero().flatten().tolist())


def _up_to_eight(longest: int) -> int:
    return -(-longest // 8) * 8


@TEXT_ENCODERS.register("bytes")
class BytesEncoder(JointEncoder):
    """UTF-8 bytes: any language, no vocabulary (ByT5, Xue et al. 2021, arXiv:2105.13626).

    Args:
        max_bytes: a longer caption is cut at a character boundary, with one warning.
        dim: width of the vectors.
        depth: number of layers of a small transformer over them.
        num_heads: of its attention; divides ``dim``.
    """

    bos, eos = 256, 257

    def __init__(self, dim: int = 128, depth: int = 2, num_heads: int = 2, max_bytes: int = 256) -> None:
        if max_bytes < 1:
            raise SoraError(f"max_bytes={max_bytes} must be at least 1")
        super().__init__(259, dim, depth, num_heads)
        self.max_bytes = max_bytes

    def parts(self, caption: str) -> list[tuple[str, list[int]]]:
        text = caption.encode("utf-8", errors="replace")
        if len(text) > self.max_bytes:
            self.warn_cut(caption, len(text), f"max_bytes={self.max_bytes}")
            text = text[: self.max_bytes].decode("utf-8", errors="ignore").encode()
        letters = [(letter, list(letter.encode())) for letter in text.decode()]
        return [("", [self.bos]), *letters, ("", [self.eos])]


@TEXT_ENCODERS.register("words")
class WordsEncoder(JointEncoder):
    """Whole words, hashed into a fixed number of rows (Weinberger et al. 2009, arXiv:0902.2206).

    Learns what a word means from fewer clips than bytes do, and gives the DiT fewer text tokens. Any
    language that parts its words; each Chinese ideograph is a word of its own. Case is ignored. Words that share a row
    cannot be told apart.

    Args:
        rows: of the table; take many times the number of different words.
        max_words: a longer caption is cut, with one warning.
        dim: width of the vectors.
        depth: number of layers of a small transformer over them.
        num_heads: of its attention; divides ``dim``.
    """

    def __init__(
        self, dim: int = 128, depth: int = 1, num_heads: int = 2, rows: int = 4096, max_words: int = 128
    ) -> None:
        if rows < 1 or max_words < 1:
            raise SoraError(f"rows={rows} and max_words={max_words} must be at least 1")
        super().__init__(rows + 2, dim, depth, num_heads)
        self.rows, self.max_words = rows, max_words

    def parts(self, caption: str) -> list[tuple[str, list[int]]]:
        words = WORDS.findall(caption.lower())
        if len(words) > self.max_words:
            self.warn_cut(caption, len(words), f"max_words={self.max_words}")
        return [("", [self.rows]), *((word, [self._row(word)]) for word in words[: self.max_words])]

    def _row(self, word: str) -> int:
        content = word.encode("utf-8", errors="replace")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") % self.rows


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
    name: str,
    *,
    max_tokens: int = 256,
    dtype: str = "float32",
    cache: str | None = None,
    memory: int = 4096,
    padded: bool = False,
) -> TextEncoder:
    """The last hidden states of a pretrained encoder of transformers, frozen: T5, BERT, CLIP's text tower ...

    Args:
        name: a local directory, or a name on the hub; of the folder of a pipeline of diffusers, its `text_encoder`
            and `tokenizer` are taken.
        max_tokens: longer captions are cut, with one warning.
        dtype: in which the encoder runs: float32, bfloat16 or float16. Embeddings come out in float32.
        cache: directory of encoded captions, for later runs; made if absent.
        memory: how many captions to keep in memory.
        padded: pads every caption to ``max_tokens``, and has the encoder see the padding, as CogVideoX (226 tokens) and
            LTX (128) were trained.
    """
    from lightning_sora.models.text_hf import FrozenTransformer

    return FrozenTransformer(name, max_tokens=max_tokens, dtype=dtype, cache=cache, memory=memory, padded=padded)
